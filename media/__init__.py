"""Images and videos: found, read, segmented, drawn and written."""
