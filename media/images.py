"""Read images in the form that the link takes: CHW float32 RGB in [0, 255]."""
import contextlib
import pathlib
import struct
from os import PathLike
from typing import BinaryIO

import numpy as np

from models.utils.errors import InputError

MAX_PIXELS = 100_000_000  # a small file can claim to be a huge image
# What Pillow reads by itself; for others it would start another program.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'AVIF', 'PPM',
           'JPEG2000', 'TGA')


def read_image(file: str | PathLike | BinaryIO, max_pixels: int = MAX_PIXELS,
               name: str | None = None, as_stored: bool = False) -> np.ndarray:
    """Read an image of a common format.

    Grey, palette, 16-bit and CMYK images are converted to RGB, an alpha
    channel is dropped, and the orientation in EXIF is applied.

    Args:
        file (str, pathlib.Path or binary file): a path, or an open file.
        max_pixels (int): larger images are refused.
        name (str): of an open file, for messages.
        as_stored (bool): do not turn the image as its EXIF data says.

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
        return to_array(_read(file, max_pixels, name or 'the image',
                              as_stored))


def _read(file, max_pixels, name, as_stored):
    from PIL import Image, ImageOps
    Image.MAX_IMAGE_PIXELS = None  # the limit is checked here
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f'it has {image.width} x {image.height} pixels, and at '
                    f'most {max_pixels} are read (--max-pixels)')
            turned = image if as_stored else ImageOps.exif_transpose(image)
            return _to_eight_bits(turned).convert('RGB')
    except (OSError, SyntaxError, ValueError, EOFError, struct.error,
            MemoryError) as error:
        reason = ('unknown format'
                  if isinstance(error, Image.UnidentifiedImageError)
                  else error)
        raise InputError(f'{name} cannot be read as an image: {reason}'
                         ) from None


def _to_eight_bits(image):
    """16-bit grey to 8: a plain `convert` would clip instead of scale."""
    from PIL import Image
    if image.mode.startswith('I'):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xffff:
            raise ValueError('its grey values are not 16-bit')
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == 'F':
        raise ValueError('floating-point grey has no agreed range; save it '
                         'with 8 or 16 bits')
    return image


def to_array(image):
    """Return a PIL.Image.Image (RGB) as float32, (3, H, W), in [0, 255]."""
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32)


def to_pillow(image):
    """Return an image (3, H, W), RGB in [0, 255], as a PIL.Image.Image."""
    from PIL import Image
    return Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8))
