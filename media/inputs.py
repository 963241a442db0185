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

from media.images import HEIF, formats, kind_of, read_image
from models.utils.errors import InputError, describe, shortened

IMAGE_ENDINGS = {'.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.gif', '.tif',
                 '.tiff', '.webp', '.avif', '.ppm', '.pgm', '.jp2', '.tga'}
VIDEO_ENDINGS = {'.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg',
                 '.mpeg', '.mts', '.m2ts', '.ts', '.3gp', '.3g2', '.wmv',
                 '.asf', '.mxf', '.ogv', '.flv', '.vob', '.m2v', '.qt'}
HEIC_ENDINGS = {'.heic', '.heif', '.hif'}
RAW_ENDINGS = {'.cr2', '.cr3', '.nef', '.arw', '.dng', '.orf', '.rw2', '.raf',
               '.pef', '.srw', '.nrw', '.raw'}
OTHER_ENDINGS = {'.psd', '.xcf', '.svg', '.exr', '.hdr', '.jxl', '.ico', '.eps',
                 '.rm', '.rmvb', '.swf'}
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
    """Return the inputs that arguments name, a line for each without one, and
    lines on files in folders that are passed over.

    An argument is a file, a folder (all images and videos below it, sorted), a
    pattern with * ? [ or **, numbered frames as frame_%04d.png, an http(s)
    address, or - for standard input.
    """
    found, problems, notes = [], [], []
    for argument in arguments:
        try:
            found += _inputs(argument, problems, notes)
        except InputError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(describe(error))
    return found, problems, notes


def _inputs(argument, problems, notes):
    path = pathlib.Path(argument)
    if argument == '-':
        return [Input('-', pathlib.PurePath('stdin'))]
    if argument.startswith(('http://', 'https://')):
        name = pathlib.PurePosixPath(urllib.parse.unquote(
            urllib.parse.urlsplit(argument).path)).stem.replace('\0', '')
        return [Input(argument, pathlib.PurePath(name or 'image'))]
    if path.is_dir():
        return _in_folder(path, problems, notes)
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
                 path.suffix.lower() in VIDEO_ENDINGS or (
                     path.suffix.lower() not in IMAGE_ENDINGS
                     and _kind(path) == 'video'))


def _in_folder(folder, problems, notes):
    """Return what a file manager shows as images and videos, also in linked
    folders; note what looks like one and is not read.
    """
    found, others = [], {}
    for path in _files(folder, problems):
        reason = _unsupported(path)
        if reason is None:
            found.append(_file(path, folder))
        elif reason:
            others.setdefault(reason, []).append(path)
    notes += [f'skipped {len(paths)} file{"s" * (len(paths) > 1)}, {reason}: '
              f'{shortened(paths)}' for reason, paths in others.items()]
    if not found and not others:
        raise InputError(f'{folder}: this folder has no image or video')
    return found


def _files(folder, problems):
    """Return the files below a folder, sorted, without hidden ones."""
    result, seen = [], set()
    for base, folders, names in os.walk(
            folder, followlinks=True,
            onerror=lambda error: problems.append(describe(error))):
        real = os.path.realpath(base)
        if real in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(real)
        result += [pathlib.Path(base, name) for name in names
                   if not name.startswith('.')]
    return sorted(path for path in result if path.is_file())


def _unsupported(path):
    """Return why a file is not read; None if it is, '' if it is no image."""
    ending = path.suffix.lower()
    if ending in (IMAGE_ENDINGS | VIDEO_ENDINGS) - {'.ts'}:
        return None
    if ending == '.ts':  # a video, or a program in TypeScript
        with open(path, 'rb') as file:
            return None if file.read(1) == b'G' else ''
    kind = _kind(path)
    if ending in HEIC_ENDINGS or kind == 'HEIC':
        return None if HEIF in formats() else (
            'HEIC is not supported without pillow-heif (pip install '
            'pillow-heif)')
    if ending in RAW_ENDINGS or kind == 'RAW':
        return "a camera's raw format is not supported (save as JPEG or PNG)"
    if ending in OTHER_ENDINGS:
        return f'{ending} is not supported'
    if kind in {'Photoshop', 'JPEG XL'}:
        return f'{kind} is not supported'
    return '' if kind is None else None


def _kind(path):
    try:
        with open(path, 'rb') as file:
            return kind_of(file.read(16))
    except OSError:
        return None


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
