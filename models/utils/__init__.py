"""Errors in one line, whole files, downloads and free memory."""
