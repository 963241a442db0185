"""Images and videos: found, read, segmented, drawn and written."""

MAX_PIXELS = 100_000_000  # a small file can claim to be a huge image
OPACITY = 0.6  # of the colours of the classes over an image
