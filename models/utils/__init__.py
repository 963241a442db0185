"""Errors in one line, whole files, downloads."""
