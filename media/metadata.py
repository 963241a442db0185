"""Images without what is not needed to show them.

A damaged colour profile, comment or EXIF block must not cost the pixels.
"""
import struct

PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_NEEDED = {b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'}
# Markers of JPEG: APP1 to 13, 15 and comments can go. APP0 and 14 say how the
# colours are coded (ITU-T T.81, T.871, T.872).
JPEG_START, JPEG_SCAN = b'\xff\xd8', 0xda
JPEG_DROPPED = {*range(0xe1, 0xee), 0xef, 0xfe}


def without_metadata(data: bytes) -> bytes | None:
    """Return a JPEG or PNG file without metadata; None for others, and for
    one that cannot be followed or has none.
    """
    try:
        parts = (_png(data) if data.startswith(PNG_START) else
                 _jpeg(data) if data.startswith(JPEG_START) else [])
        result = b''.join(parts)
    except (struct.error, IndexError):
        return None
    return result if result and len(result) < len(data) else None


def _png(data):
    yield PNG_START
    position = len(PNG_START)
    while position < len(data):
        size, kind = struct.unpack_from('>I4s', data, position)
        if kind in PNG_NEEDED:
            yield data[position:position + size + 12]
        position += size + 12


def _jpeg(data):
    yield JPEG_START
    position = len(JPEG_START)
    while data[position + 1] != JPEG_SCAN:
        if data[position] != 0xff:
            raise IndexError
        if data[position + 1] == 0xff:  # a byte to fill up
            position += 1
            continue
        size, = struct.unpack_from('>H', data, position + 2)
        if data[position + 1] not in JPEG_DROPPED:
            yield data[position:position + size + 2]
        position += size + 2
    yield data[position:]
