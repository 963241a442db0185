"""Find what a user wants segmented: files, folders, patterns, addresses."""
import dataclasses
import functools
import glob
import io
import pathlib
import re
import sys
import urllib.parse

from media.images import read_image
from models.utils.errors import InputError

PICTURES = {'.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.gif', '.tif', '.tiff',
            '.webp', '.avif', '.ppm', '.pgm', '.jp2', '.tga'}
VIDEOS = {'.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg'}
MAX_ADDRESS_BYTES = 256 << 20
TIMEOUT = 30  # seconds without a byte
FRAME_NUMBER = re.compile(r'%0?\d*d')


@dataclasses.dataclass(frozen=True)
class Input:
    """Something to segment.

    Attributes:
        name (str): what to call it.
        stem (pathlib.PurePath): where results go below the output folder,
            without an ending.
        path (pathlib.Path): the file; None where it is none.
        is_video (bool): whether it has many pictures.

    """

    name: str
    stem: pathlib.PurePath
    path: pathlib.Path = None
    is_video: bool = False

    def read(self, max_pixels):
        """Return the picture: float32, (3, H, W), RGB in [0, 255].

        Raises:
            InputError, OSError: see `images.read_image`.

        """
        if self.path is not None:
            return read_image(self.path, max_pixels)
        data = (_standard_input() if self.name == '-'
                else _from_address(self.name))
        return read_image(io.BytesIO(data), max_pixels, self.name)


def find_inputs(arguments):
    """Return the inputs that the arguments name, and what is wrong with some.

    Args:
        arguments (list of str): files, folders (all pictures and videos below
            them, sorted), patterns with * ? [ or **, numbered frames as
            frame_%04d.png, http(s) addresses, or - for standard input.

    Returns:
        (list of Input, list of str): and one line for each that is not there.

    """
    found, problems = [], []
    for argument in arguments:
        try:
            found += _inputs(argument)
        except InputError as error:
            problems.append(str(error))
    return found, problems


def _inputs(argument):
    path = pathlib.Path(argument)
    if argument == '-':
        return [Input('-', pathlib.PurePath('stdin'))]
    if argument.startswith(('http://', 'https://')):
        name = pathlib.PurePosixPath(urllib.parse.unquote(
            urllib.parse.urlsplit(argument).path)).stem.replace('\0', '')
        return [Input(argument, pathlib.PurePath(name or 'picture'))]
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return [_file(path)]
    if FRAME_NUMBER.search(path.name):
        stem = FRAME_NUMBER.sub('', path.stem).strip('_-. ') or 'frames'
        return [Input(argument, pathlib.PurePath(stem), path, True)]
    if glob.has_magic(argument):
        paths = sorted(map(pathlib.Path, glob.glob(argument, recursive=True)))
        if not paths:
            raise InputError(f'{argument}: no file has such a name')
        return [_file(path) for path in paths if path.is_file()]
    raise InputError(f'{argument}: No such file or directory')


def _file(path, folder=None):
    below = path.relative_to(folder) if folder else pathlib.Path(path.name)
    return Input(str(path), below.with_suffix(''), path,
                 path.suffix.lower() in VIDEOS)


def _in_folder(folder):
    found = [_file(path, folder) for path in sorted(folder.rglob('*'))
             if path.suffix.lower() in PICTURES | VIDEOS and path.is_file()
             and not path.name.startswith('.')]
    if not found:
        raise InputError(f'{folder}: no picture or video is in this folder')
    return found


@functools.cache
def _standard_input():
    return sys.stdin.buffer.read()


def _from_address(url):
    import urllib.request
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            data = response.read(MAX_ADDRESS_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f'{url}: {getattr(error, "reason", None) or error}'
                         ) from None
    if len(data) > MAX_ADDRESS_BYTES:
        raise InputError(f'{url}: more than {MAX_ADDRESS_BYTES} bytes')
    return data
