"""Find what a user wants segmented: files, folders, patterns, addresses."""
import dataclasses
import functools
import glob
import io
import os
import pathlib
import re
import sys
import urllib.parse

from media.images import read_image
from models.utils.errors import InputError

IMAGE_ENDINGS = {'.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.gif', '.tif',
                 '.tiff', '.webp', '.avif', '.ppm', '.pgm', '.jp2', '.tga'}
VIDEO_ENDINGS = {'.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg',
                 '.mpeg', '.mts', '.m2ts', '.ts', '.3gp', '.3g2', '.wmv',
                 '.asf', '.mxf', '.ogv', '.flv', '.vob', '.m2v', '.qt'}
MAX_URL_BYTES = 256 << 20
FRAME_NUMBER = re.compile(r'%0?\d*d')


@dataclasses.dataclass(frozen=True)
class Input:
    """An image or video to segment.

    Attributes:
        name (str): for messages.
        stem (pathlib.PurePath): of its results below the output folder,
            without an ending.
        path (pathlib.Path): of the file; None where there is none.
        is_video (bool): whether it has many images.
    """

    name: str
    stem: pathlib.PurePath
    path: pathlib.Path = None
    is_video: bool = False

    def read(self, max_pixels):
        """Return the image: float32, (3, H, W), RGB in [0, 255]."""
        if self.path is not None:
            return read_image(self.path, max_pixels)
        data = (_standard_input() if self.name == '-'
                else _from_url(self.name))
        return read_image(io.BytesIO(data), max_pixels, self.name)


def find_inputs(arguments):
    """Return the inputs that arguments name, and a line for each without one.

    An argument is a file, a folder (all images and videos below it, sorted), a
    pattern with * ? [ or **, numbered frames as frame_%04d.png, an http(s)
    address, or - for standard input.
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
        return [Input(argument, pathlib.PurePath(name or 'image'))]
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
            raise InputError(f'{argument}: no file matches')
        return [_file(path) for path in paths if path.is_file()]
    hint = (' (a size or scales are one word, as 513x1025 or 0.75,1.0)'
            if argument.replace('.', '').isdecimal() else '')
    raise InputError(f'{argument}: No such file or directory{hint}')


def _file(path, folder=None):
    below = path.relative_to(folder) if folder else pathlib.Path(path.name)
    return Input(str(path), below.with_suffix(''), path,
                 path.suffix.lower() in VIDEO_ENDINGS)


def _in_folder(folder):
    found = [_file(path, folder) for path in sorted(folder.rglob('*'))
             if path.suffix.lower() in IMAGE_ENDINGS | VIDEO_ENDINGS
             and path.is_file() and not path.name.startswith('.')]
    if not found:
        raise InputError(f'{folder}: this folder has no image or video')
    return found


@functools.cache
def _standard_input():
    # Not through sys.stdin, whose lock would keep an interrupted program.
    return b''.join(iter(lambda: os.read(sys.stdin.fileno(), 1 << 20), b''))


def _from_url(url):
    from models.utils.download import read_url
    try:
        return read_url(url, MAX_URL_BYTES)
    except InputError as error:
        raise InputError(f'{url}: {error}') from None
