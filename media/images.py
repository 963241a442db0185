"""Read images in the form that the link takes: CHW float32 RGB in [0, 255].

A damaged colour profile, comment or EXIF block does not cost the pixels.
"""
import contextlib
import functools
import io
import re
import struct
import threading
import warnings
from os import PathLike
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from media import MAX_PIXELS
from models.utils.errors import InputError

# What Pillow reads by itself; for others it would start another program.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'AVIF', 'PPM',
           'JPEG2000', 'TGA')
SEVERAL_FRAMES = {'GIF', 'WEBP', 'PNG'}  # animated ones
BITS_PER_SAMPLE, BANDS, LAYOUT = 258, 277, 284  # tags of TIFF
ORIENTATION = 274  # of EXIF
# The first 16 bytes of a kind of file, by Pillow's name where it has one.
BEGINNINGS = {
    'JPEG': rb'\xff\xd8\xff', 'PNG': rb'\x89PNG\r\n\x1a\n',
    'GIF': rb'GIF8[79]a', 'TIFF': rb'II\*\0|MM\0\*',
    'JPEG2000': rb'\0\0\0\x0cjP  ', 'WEBP': rb'RIFF....WEBP',
    'AVIF': rb'....ftypavi[fs]', 'RAW': rb'....ftypcrx ',
    'HEIF': rb'....ftyp(hei[cmsx]|hev[cx]|mif1|msf1)',
    'Photoshop': rb'8BPS', 'JPEG XL': rb'\xff\x0a|\0\0\0\x0cJXL ',
    'video': rb'....ftyp|RIFF....AVI |\x1aE\xdf\xa3|\0\0\x01\xba',
}
PNG_NEEDED = {b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'}
PHOTOSHOP = b'Photoshop 3.0\0'  # begins its block of metadata in a JPEG
TURNS = {  # orientation in EXIF: what makes an image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_pillow_limit = threading.Lock()


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
    if isinstance(file, str | PathLike):
        with open(file, 'rb') as opened:
            return read_image(opened, max_pixels, file, as_stored)
    if not file.seekable():  # a pipe
        file = io.BytesIO(file.read())
    name = name or 'the image'
    try:
        return to_array(_decoded(file, max_pixels, name, as_stored))
    except Exception as error:  # Pillow raises many kinds
        reason = error
    if isinstance(reason, UnidentifiedImageError):
        reason = _unknown_format(file)
    if not isinstance(reason, InputError):
        with contextlib.suppress(Exception):
            image = _decoded(io.BytesIO(_without_metadata(file)), max_pixels,
                             name, as_stored)
            _warn(f'{name}: its metadata are damaged, and are ignored')
            return to_array(image)
    raise InputError(f'{name} cannot be read as an image: {reason}')


def open_image(file, formats, max_pixels=MAX_PIXELS):
    """Open an image of some formats with Pillow; its pixels are not read yet.

    Raise InputError where it has more than `max_pixels`, whatever Pillow's own
    limit is, which stays as it was.
    """
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
    return *FORMATS, 'HEIF'


def _warn(text):
    warnings.warn(text, stacklevel=2)


def _decoded(file, max_pixels, name, as_stored):
    """Return an image as a PIL.Image.Image of mode RGB; raise what Pillow
    raises.
    """
    with open_image(file, formats(), max_pixels) as image:
        image.load()
        result = _to_eight_bits(image)
        for what, step in () if as_stored else STEPS.items():
            try:
                result = step(result, image)
            except Exception as error:  # Pillow raises many kinds
                _warn(f'{name}: its {what} cannot be understood, and is '
                      f'ignored ({error})')
        with contextlib.suppress(Exception):  # a later frame may be damaged
            if image.format in SEVERAL_FRAMES and image.is_animated:
                _warn(f'{name}: only the first of {image.n_frames} frames is '
                      'used')
        return result.convert('RGB')


def _turned(result, image):
    """Turn an image as the EXIF data of the original say."""
    turn = TURNS.get(image.getexif().get(ORIENTATION))
    return result if turn is None else result.transpose(turn)


def _in_srgb(result, image):
    """Convert colours from the profile of the original to sRGB."""
    profile = image.info.get('icc_profile')
    if not profile or result.mode not in {'RGB', 'CMYK'}:
        return result
    profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if 'sRGB' in ImageCms.getProfileDescription(profile):
        return result
    return ImageCms.profileToProfile(
        result, profile, ImageCms.createProfile('sRGB'), outputMode='RGB')


# What metadata ask for: their name for the user, and what does it.
STEPS = {'colour profile': _in_srgb, 'EXIF orientation': _turned}


def _to_eight_bits(image):
    """16-bit grey to 8: a plain `convert` would clip instead of scale."""
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
    file.seek(0)
    start = file.read(16)
    kind = kind_of(start)
    if kind == 'HEIF':
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
    return next((kind for kind, pattern in BEGINNINGS.items()
                 if re.match(pattern, start, re.DOTALL)), None)


def to_array(image):
    """Return a PIL.Image.Image (RGB) as float32, (3, H, W), in [0, 255]."""
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32)


def to_pillow(image):
    """Return an image (3, H, W), RGB in [0, 255], as a PIL.Image.Image."""
    return Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8))


def _without_metadata(file):
    """Return a PNG or JPEG, as bytes, without metadata over which Pillow fails
    where they are damaged; b'' of others.
    """
    file.seek(0)
    start = file.read(16)
    kind = kind_of(start)
    if kind == 'JPEG':
        return (start + file.read()).replace(PHOTOSHOP, bytes(len(PHOTOSHOP)))
    return b''.join(_needed(start + file.read())) if kind == 'PNG' else b''


def _needed(data):
    """Yield the parts of a PNG that make its pixels."""
    position = 8
    yield data[:position]
    while position < len(data):
        size, kind = struct.unpack_from('>I4s', data, position)
        end = position + size + 12
        if kind in PNG_NEEDED:
            yield data[position:end]
        position = end
