"""Read pictures as the network wants them."""
import pathlib
import struct

import numpy as np

from models.errors import InputError


def read_image(path):
    """Read a picture of any common format.

    Grey, palette, 16-bit and CMYK pictures are converted to RGB, an alpha
    channel is dropped, and the orientation in EXIF is applied.

    Args:
        path (str or pathlib.Path): the file.

    Returns:
        numpy.ndarray, (3, H, W), float32, RGB in [0, 255].

    Raises:
        InputError: the file is no picture, or not a whole one.
        OSError: it does not exist or cannot be opened.

    """
    from PIL import Image, ImageOps
    with open(path, 'rb') as file:
        try:
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image)
                rgb = np.asarray(_to_eight_bits(upright).convert('RGB'))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error,
                Image.DecompressionBombError, MemoryError) as error:
            reason = ('its format is not known'
                      if isinstance(error, Image.UnidentifiedImageError)
                      else error)
            raise InputError(f'{pathlib.Path(path)} cannot be read as a '
                             f'picture: {reason}') from None
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
