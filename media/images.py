"""Read images in the form that the link takes: CHW, RGB in [0, 255].

A damaged colour profile, comment or EXIF block does not cost the pixels. What
a file holds counts, not what it is called.
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
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL import TiffImagePlugin as Tiff
from PIL.ExifTags import Base

from media import MAX_PIXELS
from models.utils.errors import InputError

# What Pillow reads by itself; for others it would start another program.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'AVIF', 'PPM',
           'JPEG2000', 'TGA')
NO_PAGE = 1 | 4  # bits of TIFF's tag NewSubfileType: smaller copies and masks
WHITE_IS_ZERO, PLANAR, SIGNED = 0, 2, 2  # values of TIFF's tags
# The first bytes of a kind of file, by Pillow's name where it has one.
START = 400  # bytes that suffice
BEGINNINGS = {
    'JPEG': rb'\xff\xd8\xff', 'PNG': rb'\x89PNG\r\n\x1a\n',
    'GIF': rb'GIF8[79]a', 'TIFF': rb'II[*+]\0|MM\0[*+]',
    'JPEG2000': rb'\0\0\0\x0cjP  |\xff\x4f\xff\x51', 'WEBP': rb'RIFF....WEBP',
    'BMP': rb'BM.{4}\0{4}', 'PPM': rb'P[1-6]\s(\s|#[^\n]*\n)*\d+\s',
    'AVIF': rb'....ftypavi[fs]', 'RAW': rb'....ftypcrx ',
    'HEIF': rb'....ftyp(hei[cmsx]|hev[cx]|mif1|msf1)',
    'Photoshop': rb'8BPS', 'JPEG XL': rb'\xff\x0a|\0\0\0\x0cJXL ',
    'sound': rb'....ftypM4[AB]',
    'video': rb'....ftyp|RIFF....AVI |\x1aE\xdf\xa3|FLV\x01|DKIF|YUV4MPEG2|'
             rb'nut/|\0?\0\0\x01[\x06\x09\x27\x40\x46\x67\xb0\xb3\xba]|'
             rb'\x06\x0e\x2b\x34|\x30\x26\xb2\x75|OggS.{24}\x80theora|'
             rb'G.{187}G.{187}G|.{4}G.{191}G.{191}G',
}
REASONS = {  # why files of a kind are not read, where it helps to say more
    None: 'unknown format',
    **{kind: f'it is cut off, or of a kind of {kind} that is not supported: '
             'save it as PNG' for kind in FORMATS},
    'HEIF': 'HEIC needs pillow-heif (pip install pillow-heif)',
    'RAW': "a camera's raw format is not supported (save as JPEG or PNG)",
    'broken link': 'it is a link that leads nowhere',
    'video': 'it holds a video, whatever it is called',
}
# Primaries and transfer in PNG and AVIF (ITU-T H.273), if not near sRGB's.
OTHER_COLORS = re.compile(rb'(?:cICP|colrnclx\0)(?![\1\2\5\6]\0?[\1\2\6\r-\17])'
                          rb'(.)\0?(.)', re.DOTALL)
# Modes of Pillow that need not become RGB; modes of the colours of profiles.
MODES = {'L': 'L', 'LA': 'L', '1': 'L', 'CMYK': 'CMYK'}
PROFILE_MODES = {'RGB ': 'RGB', 'GRAY': 'L', 'CMYK': 'CMYK'}
ROUNDING = 2  # of 255, between two profiles of one colour space
# x and y of white, red, green and blue (ITU-R BT.709); white in profiles (XYZ),
# and the cones of the eye, on which a change of white works.
SRGB = 0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06
D50 = 0.9642, 1, 0.8249
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367],
                     [0.0389, -0.0685, 1.0296]])
PNG_NEEDED = {b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'}
JPEG_END = b'\xff\xd9'
# Random bits, also after each mark at which a decoder may begin anew.
JPEG_NOISE = [b'\xff'.join(bytes([0xcf + i]) * (i > 0) + part.tobytes()
                           for i, part in enumerate(parts))
              for parts in np.random.default_rng(0).integers(
                  0xff, size=(4, 9, 64), dtype=np.uint8)]
_pillow_settings = threading.Lock()


def read_image(file: str | PathLike | BinaryIO, max_pixels: int = MAX_PIXELS,
               name: str = 'the image', as_stored: bool = False,
               dtype: type = np.float32) -> np.ndarray:
    """Read an image of a common format.

    Grey, palette, 16-bit and CMYK images are converted to RGB, an alpha
    channel is dropped, colours are converted to sRGB from the profile or gamma
    that the file has, and the orientation in EXIF is applied. Metadata that
    cannot be understood are ignored with a warning, as all pages and frames but
    the first are.

    Args:
        file (str, pathlib.Path or binary file): a path, or an open file.
        max_pixels (int): larger images are refused.
        name (str): of an open file, for messages.
        as_stored (bool): take the pixels as they are, without profile and
            orientation, and refuse a JPEG without all of them; what is there
            of it is else read, with a warning.
        dtype: of the array, as ChainerCV's; uint8 takes a quarter.

    Returns:
        numpy.ndarray, (3, H, W), of `dtype`, RGB in [0, 255].

    Raises:
        InputError: the file is no image, or not a whole one.
        OSError: it does not exist or cannot be opened.
    """
    if isinstance(file, str | PathLike):
        with open(file, 'rb') as opened:
            return read_image(opened, max_pixels, file, as_stored, dtype)
    if not file.seekable():  # a pipe
        file = io.BytesIO(file.read())
    decoded = functools.partial(_decoded, max_pixels=max_pixels, name=name,
                                as_stored=as_stored)
    try:
        return to_array(decoded(file), dtype)
    except Exception as error:  # Pillow raises many kinds
        reason = error
    file.seek(0)
    kind = kind_of(file.read(START))
    if kind in FORMATS and not isinstance(reason, InputError):
        rescue = _without_metadata if kind == 'PNG' else _cut_off
        with contextlib.suppress(Exception):
            file.seek(0)
            image, loss = rescue(file.read(), decoded, as_stored)
            warnings.warn(f'{name}: {loss}', stacklevel=2)
            return to_array(image, dtype)
    if isinstance(reason, UnidentifiedImageError):
        reason = REASONS.get(kind, f'{kind} is not supported')
    raise InputError(f'{name} cannot be read as an image: {reason}')


def open_image(file, formats, max_pixels=MAX_PIXELS):
    """Open an image of some formats with Pillow; its pixels are not read yet.

    Raise InputError where it has more than `max_pixels`, whatever Pillow's own
    limit is, which stays as it was.
    """
    with _pillow_settings:
        before = Image.MAX_IMAGE_PIXELS, Tiff.READ_LIBTIFF
        # Pillow's own reader takes planes of 16 bits, among others, wrongly.
        Image.MAX_IMAGE_PIXELS, Tiff.READ_LIBTIFF = None, True
        try:
            image = Image.open(file, formats=formats)
            if image.format == 'TIFF':
                image.seek(_pages(Image.open(file, formats=formats))[0])
        finally:
            Image.MAX_IMAGE_PIXELS, Tiff.READ_LIBTIFF = before
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


def _pages(image):
    """Return the numbers of a file's images, but for masks and small copies."""
    pages, size, n_frames = [], image.size, 1
    with contextlib.suppress(Exception):  # a later one may be damaged
        n_frames = image.n_frames
    if image.format not in {'TIFF', 'MPO'}:
        return range(n_frames)
    for i in range(n_frames):
        with contextlib.suppress(Exception):
            image.seek(i)
        if (image.size == size if image.format == 'MPO' else
                not image.tag_v2.get(Base.NewSubfileType, 0) & NO_PAGE):
            pages.append(i)
    return pages or [0]


def _decoded(file, max_pixels, name, as_stored):
    """Return a PIL.Image.Image of mode RGB; raise what Pillow raises."""
    losses = []
    steps = {'colour profile': _in_srgb, 'EXIF orientation': _turned}
    with open_image(file, formats(), max_pixels) as image:
        image.load()
        result = _to_eight_bits(image)
        for what, step in () if as_stored else steps.items():
            try:
                result = step(result, image)
            except Exception as error:  # Pillow raises many kinds
                losses.append(f'its {what} cannot be understood, and is '
                              f'ignored ({error})')
        file.seek(0)
        data = file.read(None if image.format == 'PPM' else 1 << 16)
        tag = OTHER_COLORS.search(data)
        if tag and not (as_stored or 'icc_profile' in image.info):
            losses.append('its colours are taken as sRGB, and have primaries '
                          f'{tag[1][0]}, transfer {tag[2][0]} of ITU-T H.273')
        n_pages = (data.count(data[:6]) if image.format == 'PPM' else
                   len(_pages(image)))
        if n_pages > 1:
            losses.append(f'only the first of {n_pages} frames is used')
    for line in losses:
        warnings.warn(f'{name}: {line}', stacklevel=2)
    return result if result.mode == 'RGB' else result.convert('RGB')


def _cut_off(data, decoded, as_stored):
    """Return what a JPEG has without its end, and a line for the user."""
    data = data.rstrip(b'\xff')
    # Where pixels are missing, they depend on the bits that follow.
    image, *others = (decoded(io.BytesIO(data + more + JPEG_END))
                      for more in (b'', *JPEG_NOISE))
    if all(other == image for other in others):
        return image, 'the mark of its end is missing'
    if kind_of(data) != 'JPEG' or as_stored or all(
            low == high for low, high in image.getextrema()):
        raise ValueError('pixels are missing')
    return image, 'it is cut off, and the rest is grey'


def _turned(result, image):
    """Turn an image as the EXIF data of the original say."""
    orientation = image.getexif().get(Base.Orientation, 1)
    result.info.clear()  # Pillow would change its EXIF data as well
    result.getexif()[Base.Orientation] = orientation
    ImageOps.exif_transpose(result, in_place=True)
    return result


def _in_srgb(result, image):
    """Convert colours to sRGB, as the original has a profile or PNG's gamma."""
    profile = image.info.get('icc_profile') or _profile_of_png(image.info)
    if not profile:
        return result
    profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = PROFILE_MODES[profile.profile.xcolor_space]
    if (result.mode, mode) == ('L', 'RGB'):
        result = result.convert('RGB')
    transform = ImageCms.buildTransform(  # optimised, greys are less exact
        profile, ImageCms.createProfile('sRGB'), result.mode, 'RGB',
        flags=ImageCms.Flags.NOOPTIMIZE if mode == 'L' else 0)
    if mode == 'RGB':
        colors = Image.fromarray(np.indices((16, 16, 16), np.uint8).reshape(
            3, 64, 64).transpose(1, 2, 0) * 17)
        found = np.asarray(ImageCms.applyTransform(colors, transform), int)
        if abs(found - np.asarray(colors)).max() <= ROUNDING:
            return result  # it is sRGB
    return ImageCms.applyTransform(result, transform)


def _profile_of_png(info):
    """Return the ICC profile that gAMA and cHRM stand for; None for sRGB."""
    gamma, xy = info.get('gamma', 1 / 2.2), info.get('chromaticity', SRGB)
    is_usual = abs(gamma * 2.2 - 1) < 0.05 and np.allclose(xy, SRGB, 0, 0.005)
    if info.get('srgb') is not None or is_usual:
        return None
    if not (0.1 < gamma < 10 and min(xy) >= 0 < min(xy[1::2])
            and max(xy) <= 1):
        raise ValueError(f'gamma {gamma}, primaries {xy}')
    x, y = np.reshape(xy, (4, 2)).T
    white, *primaries = (np.stack([x, y, 1 - x - y]) / y).T
    primaries = np.transpose(primaries)
    cones = BRADFORD @ (primaries * np.linalg.solve(primaries, white))
    factors = BRADFORD @ D50 / cones.sum(1)
    primaries = np.linalg.solve(BRADFORD, cones * factors[:, np.newaxis]).T
    # sRGB's own profile, with these numbers.
    result = bytearray(ImageCms.ImageCmsProfile(
        ImageCms.createProfile('sRGB')).tobytes())
    for tag, numbers in zip((b'rXYZ', b'gXYZ', b'bXYZ', b'rTRC'), (
            *primaries, [1 / gamma, 1, 0, 0, 0]), strict=True):
        fixed = struct.pack(f'>{len(numbers)}i', *np.rint(  # or refuses them
            np.multiply(numbers, 1 << 16)).astype(int))
        start, size = struct.unpack_from('>2I', result, result.index(tag) + 4)
        result[start + size - len(fixed):start + size] = fixed
    return bytes(result)


def _to_eight_bits(image):
    """Return an image in the mode L, RGB or CMYK."""
    tags = image.tag_v2 if image.format == 'TIFF' else {}
    if image.mode == 'F' or SIGNED in tags.get(Tiff.SAMPLEFORMAT, ()) or (
            image.mode == 'La'
            and tags.get(Tiff.PLANAR_CONFIGURATION) == PLANAR):
        raise InputError(  # the first two have no agreed range
            'floating-point grey, signed grey, and grey with a plane for alpha '
            'are not supported: save it with 8 or 16 bits')
    if image.mode.startswith('I'):  # `convert` would clip it
        values = np.asarray(image).astype(np.int64)
        # TIFF is the only one with fewer bits as they are.
        bits = max(8, tags.get(Tiff.BITSPERSAMPLE, (16,))[0])
        if bits > 16 or values.min() < 0 or values.max() >> bits:
            raise InputError('its grey values are not of 8 to 16 bits')
        values >>= bits - 8
        if tags.get(Tiff.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
            values = 255 - values
        return Image.fromarray(values.astype(np.uint8))
    if image.palette is not None and max(tags.get(Tiff.COLORMAP, [256])) < 256:
        image.putpalette(np.reshape(  # of 8 bits, against the standard
            tags[Tiff.COLORMAP], (3, -1)).astype(np.uint8).T.tobytes())
    if image.mode == 'La':  # multiplied by alpha
        image = image.convert('LA')
    image.info.pop('transparency', None)  # of a palette, Pillow warns of it
    return image.convert(MODES.get(image.mode, 'RGB'))


def kind_of(start):
    """Return the kind of a file by its first `START` bytes, or None."""
    return next((kind for kind, pattern in BEGINNINGS.items()
                 if re.match(pattern, start, re.DOTALL)), None)


def to_array(image, dtype=np.uint8):
    """Return a PIL.Image.Image (RGB) as an array (3, H, W), in [0, 255]."""
    return np.asarray(image).transpose(2, 0, 1).astype(dtype, copy=False)


def to_pillow(image):
    """Return an image (3, H, W), RGB in [0, 255], as a PIL.Image.Image."""
    return Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8))


def _without_metadata(data, decoded, as_stored):
    """Return what a PNG shows without them, and a line for the user."""
    parts, position = [data[:8]], 8
    while position < len(data):
        size, kind = struct.unpack_from('>I4s', data, position)
        end = position + size + 12
        if kind in PNG_NEEDED:
            parts.append(data[position:end])
        position = end
    return (decoded(io.BytesIO(b''.join(parts))),
            'its metadata are damaged, and are ignored')
