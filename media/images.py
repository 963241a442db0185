"""Read pictures as the network wants them."""
import contextlib
import pathlib
import struct
from os import PathLike
from typing import BinaryIO

import numpy as np

from models.utils.errors import InputError

MAX_PIXELS = 100_000_000  # a small file can claim to be a huge picture
# What Pillow reads by itself; for others it would start another program.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'AVIF', 'PPM',
           'JPEG2000', 'TGA')


def read_image(path: str | PathLike | BinaryIO, max_pixels: int = MAX_PIXELS,
               name: str | None = None) -> np.ndarray:
    """Read a picture of a common format.

    Grey, palette, 16-bit and CMYK pictures are converted to RGB, an alpha
    channel is dropped, and the orientation in EXIF is applied.

    Args:
        path (str, pathlib.Path or binary file): the file.
        max_pixels (int): more are refused.
        name (str): what to call a file that has no path.

    Returns:
        numpy.ndarray, (3, H, W), float32, RGB in [0, 255].

    Raises:
        InputError: the file is no picture, or not a whole one.
        OSError: it does not exist or cannot be opened.

    """
    from PIL import Image, ImageOps
    with contextlib.nullcontext(path) if name else open(path, 'rb') as file:
        try:
            Image.MAX_IMAGE_PIXELS = None  # the limit is checked here
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ValueError(
                        f'it has {image.width} x {image.height} pixels, and '
                        f'at most {max_pixels} are read (--max-pixels)')
                upright = ImageOps.exif_transpose(image)
                rgb = np.asarray(_to_eight_bits(upright).convert('RGB'))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error,
                MemoryError) as error:
            reason = ('its format is not known'
                      if isinstance(error, Image.UnidentifiedImageError)
                      else error)
            raise InputError(f'{name or pathlib.Path(path)} cannot be read as '
                             f'a picture: {reason}') from None
    return rgb.transpose(2, 0, 1).astype(np.float32)  # HWC -> CHW


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
