"""Read images in the form that the link takes: CHW float32 RGB in [0, 255].

A damaged colour profile, comment or EXIF block does not cost the pixels.
"""
import contextlib
import functools
import io
import pathlib
import struct
import threading
import warnings
from os import PathLike
from typing import BinaryIO

import numpy as np

from models.utils.errors import InputError

MAX_PIXELS = 100_000_000  # a small file can claim to be a huge image
# What Pillow reads by itself; for others it would start another program.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'AVIF', 'PPM',
           'JPEG2000', 'TGA')


HEIF = 'HEIF'  # of phones; read where pillow-heif is installed
SEVERAL_FRAMES = {'GIF', 'WEBP', 'PNG'}  # animated ones
BITS_PER_SAMPLE, BANDS, LAYOUT = 258, 277, 284  # tags of TIFF
ORIENTATION = 274  # of EXIF
HEIC_BRANDS = {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1',
               b'msf1'}
BEGINNINGS = [
    (b'\xff\xd8\xff', 'JPEG'), (b'\x89PNG\r\n\x1a\n', 'PNG'),
    (b'GIF87a', 'GIF'), (b'GIF89a', 'GIF'), (b'II*\0', 'TIFF'),
    (b'MM\0*', 'TIFF'), (b'\0\0\0\x0cjP  ', 'JPEG2000'),
    (b'\x1aE\xdf\xa3', 'video'), (b'\0\0\x01\xba', 'video'),
    (b'8BPS', 'Photoshop'), (b'\xff\x0a', 'JPEG XL'),
    (b'\0\0\0\x0cJXL ', 'JPEG XL'),
]
# What a step needs, in words.
METADATA = {'_in_srgb': 'colour profile', '_turned': 'EXIF orientation'}
_pillow_limit = threading.Lock()
PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_NEEDED = {b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'}
# Markers of JPEG: APP1 to 13, 15 and comments can go. APP0 and 14 say how the
# colours are coded (ITU-T T.81, T.871, T.872).
JPEG_START, JPEG_SCAN = b'\xff\xd8', 0xda
JPEG_DROPPED = {*range(0xe1, 0xee), 0xef, 0xfe}


def read_image(file: str | PathLike | BinaryIO, max_pixels: int = MAX_PIXELS,
               name: str | None = None, as_stored: bool = False) -> np.ndarray:
    """Read an image of a common format.

    Grey, palette, 16-bit and CMYK images are converted to RGB, an alpha
    channel is dropped, colour profiles are converted to sRGB, and the
    orientation in EXIF is applied. Metadata that cannot be understood are
    ignored with a warning.

    Args:
        file (str, pathlib.Path or binary file): a path, or an open file.
        max_pixels (int): larger images are refused.
        name (str): of an open file, for messages.
        as_stored (bool): take the pixels as they are, without profile and
            orientation.

    Returns:
        numpy.ndarray, (3, H, W), float32, RGB in [0, 255].

    Raises:
        InputError: the file is no image, or not a whole one.
        OSError: it does not exist or cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(file, str | PathLike):
            name = pathlib.Path(file)
            file = stack.enter_context(open(file, 'rb'))
        if not file.seekable():  # a pipe
            file = io.BytesIO(file.read())
        return to_array(_read(file, max_pixels, name or 'the image',
                              as_stored))


def _read(file, max_pixels, name, as_stored):
    """Read an image; if that fails, once more without its metadata."""
    from PIL import Image

    def attempt(file):
        with open_image(file, formats(), max_pixels) as image:
            return _decoded(image, name, as_stored)

    try:
        return attempt(file)
    except Exception as error:  # Pillow raises many kinds
        reason = error
    if isinstance(reason, Image.UnidentifiedImageError):
        reason = _unknown_format(file)
    if not isinstance(reason, InputError):
        file.seek(0)
        has_metadata = kind_of(file.read(16)) in {'JPEG', 'PNG'}
        file.seek(0)
        data = without_metadata(file.read()) if has_metadata else None
        with contextlib.suppress(Exception):
            if data is not None:
                image = attempt(io.BytesIO(data))
                warn(f'{name}: its metadata are damaged, and are ignored')
                return image
    raise InputError(f'{name} cannot be read as an image: {reason}')


def open_image(file, formats, max_pixels=MAX_PIXELS):
    """Open an image of some formats with Pillow; its pixels are not read yet.

    Raise InputError where it has more than `max_pixels`, whatever Pillow's own
    limit is, which stays as it was.
    """
    from PIL import Image
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    check_size(image.width, image.height, max_pixels)
    return image


def check_size(width, height, max_pixels):
    """Raise InputError for more than `max_pixels`."""
    if width * height > max_pixels:
        raise InputError(f'it has {width} x {height} pixels, and at most '
                         f'{max_pixels} are read (demo.py --max-pixels)')


@functools.cache
def formats():
    """Return the formats that are read, as Pillow names them."""
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return *FORMATS, HEIF


def warn(text):
    warnings.warn(text, stacklevel=2)


def _decoded(image, name, as_stored):
    """Return a PIL.Image.Image as RGB."""
    image.load()
    result = _to_eight_bits(image)
    for step in () if as_stored else (_in_srgb, _turned):
        try:
            result = step(result, image)
        except Exception as error:  # Pillow raises many kinds
            warn(f'{name}: its {METADATA[step.__name__]} cannot be '
                 f'understood, and is ignored ({error})')
    result = result.convert('RGB')
    with contextlib.suppress(Exception):  # a later frame may be damaged
        if image.format in SEVERAL_FRAMES and image.is_animated:
            warn(f'{name}: only the first of {image.n_frames} frames is used')
    return result


def _turned(result, image):
    """Turn an image as the EXIF data of the original say."""
    from PIL import Image
    turns = Image.Transpose
    turn = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180,
            4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE, 6: turns.ROTATE_270,
            7: turns.TRANSVERSE, 8: turns.ROTATE_90}.get(
                image.getexif().get(ORIENTATION))
    return result if turn is None else result.transpose(turn)


def _in_srgb(result, image):
    """Convert colours from the profile of the original to sRGB."""
    from PIL import ImageCms
    profile = image.info.get('icc_profile')
    if not profile or result.mode not in {'RGB', 'CMYK'}:
        return result
    profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if 'sRGB' in ImageCms.getProfileDescription(profile):
        return result
    return ImageCms.profileToProfile(
        result, profile, ImageCms.createProfile('sRGB'), outputMode='RGB')


def _to_eight_bits(image):
    """16-bit grey to 8: a plain `convert` would clip instead of scale."""
    from PIL import Image
    if image.mode.startswith('I'):
        values = np.asarray(image).astype(np.int64)
        bits = 16
        if image.format == 'TIFF':  # the only one with fewer as they are
            bits = max(8, image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0])
        if bits > 16 or values.min() < 0 or values.max() >> bits:
            raise InputError('its grey values are not of 8 to 16 bits')
        return Image.fromarray((values >> bits - 8).astype(np.uint8))
    if image.mode == 'F':
        raise InputError('floating-point grey has no agreed range; save it '
                         'with 8 or 16 bits')
    if image.mode in {'RGBA', 'RGBX'}:
        return image.convert('RGB')
    return image


def _unknown_format(file):
    """Say what Pillow does not know, as far as its beginning tells."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2
    file.seek(0)
    start = file.read(16)
    kind = kind_of(start)
    if kind == 'HEIC':
        return 'HEIC needs pillow-heif: pip install pillow-heif'
    if kind == 'TIFF':
        with contextlib.suppress(Exception):
            tags = ImageFileDirectory_v2(start[:8])
            file.seek(tags.next)
            tags.load(file)
            layout = 'planar' if tags.get(LAYOUT) == 2 else 'interleaved'
            return (f'a TIFF of {tags.get(BANDS, 1)} bands with '
                    f'{tags.get(BITS_PER_SAMPLE, (1,))[0]} bits, {layout}: '
                    'save it as RGB with 8 or 16 bits')
    return 'unknown format'


def kind_of(start):
    """Return the kind of an image or video by its first 16 bytes, or None."""
    if start[4:8] == b'ftyp':
        brand = start[8:12]
        return ('HEIC' if brand in HEIC_BRANDS else
                'AVIF' if brand in {b'avif', b'avis'} else
                'RAW' if brand == b'crx ' else 'video')
    if start.startswith(b'RIFF'):
        return {b'WEBP': 'WEBP', b'AVI ': 'video'}.get(start[8:12])
    return next((kind for first, kind in BEGINNINGS if start.startswith(first)),
                None)


def to_array(image):
    """Return a PIL.Image.Image (RGB) as float32, (3, H, W), in [0, 255]."""
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32)


def to_pillow(image):
    """Return an image (3, H, W), RGB in [0, 255], as a PIL.Image.Image."""
    from PIL import Image
    return Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8))


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
