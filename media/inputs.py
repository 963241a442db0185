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
from models.utils.errors import (
    InputError,
    describe,
    shortened,
    without_secrets,
)

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
EMPTY = 'this folder has no image or video'
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
        found_in (pathlib.Path): the folder in which it was looked for; None
            where it was named itself.
        url (str): its address, with what must not be shown.
    """

    name: str
    stem: pathlib.PurePath
    path: pathlib.Path = None
    is_video: bool = False
    found_in: pathlib.Path = None
    url: str = dataclasses.field(default=None, repr=False)

    def files(self):
        """Return the files that it is read from."""
        if self.path is None:
            return []
        return frames_of(self.path) if is_numbered(self.path) else [self.path]

    def read(self, max_pixels):
        """Return the image: float32, (3, H, W), RGB in [0, 255]."""
        if self.path is not None:
            return read_image(self.path, max_pixels)
        data = (_standard_input() if self.name == '-'
                else _from_url(self.url))
        if not data:
            raise InputError(f'{self.name} is empty: an image is needed')
        return read_image(io.BytesIO(data), max_pixels, self.name)


def find_inputs(arguments):
    """Return the inputs that arguments name, a line for each without one, and
    lines on files that are passed over.

    An argument is a file, a folder (all images and videos below it, sorted), a
    pattern with * ? [ or **, numbered frames as frame_%04d.png, an http(s)
    address, or - for standard input.
    """
    found, problems, notes = {}, [], []
    for argument in arguments:
        try:
            for each in _inputs(argument, problems, notes):
                key = each.url or (each.path and os.path.abspath(each.path))
                before = found.setdefault(key, each)
                if each.found_in is None and before is not each:
                    found[key] = dataclasses.replace(before, found_in=None)
                    if before.found_in is None:
                        notes.append(f'{each.name} is named twice')
        except (InputError, OSError) as error:
            problems.append(describe(error))
    return list(found.values()), problems, notes


def _inputs(argument, problems, notes):
    if argument == '-':
        return [Input('-', pathlib.PurePath('stdin'))]
    if re.match('https?://', argument, re.IGNORECASE):
        return [_address(argument)]
    if re.match(r'\w+://', argument):
        raise InputError(f'{without_secrets(argument)}: an address begins with '
                         'http:// or https://')
    if not argument:
        raise InputError('an input is empty')
    path = pathlib.Path(argument)
    if _exists(path):
        return (_in_folder(path, problems, notes) if path.is_dir()
                else [_file(path)])
    if is_numbered(path):
        stem = FRAME_NUMBER.sub('', path.stem).strip('_-. ') or 'frames'
        return [Input(argument, pathlib.PurePath(stem), path, True)]
    if glob.has_magic(argument):
        return _matching(argument, problems, notes)
    hint = (' (a size or scales are one word, as 513x1025 or 0.75,1.0)'
            if argument.replace('.', '').isdecimal() else '')
    raise InputError(f'{argument}: No such file or directory{hint}')


def _exists(path):
    """As `path.exists()`, which in Python 3.14 hides all errors."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError:
        raise InputError(f'{path} is no name of a file') from None
    return True


def _address(url):
    try:
        path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    except ValueError:
        raise InputError(f'{without_secrets(url)} is no valid address'
                         ) from None
    name = pathlib.PurePosixPath(path).stem.replace('\0', '')
    return Input(without_secrets(url), pathlib.PurePath(name or 'image'),
                 url=url)


def _matching(pattern, problems, notes):
    """Return what a pattern names: files, and what is in folders."""
    paths = sorted(map(pathlib.Path, glob.glob(pattern, recursive=True)))
    if not paths:
        raise InputError(f'{pattern}: no file matches')
    first = next(i for i, part in enumerate(pathlib.Path(pattern).parts)
                 if glob.has_magic(part))
    base, found, reasons = (pathlib.Path(*pathlib.Path(pattern).parts[:first]),
                            [], [])
    for path in paths:
        try:
            found += _in_folder(path, problems, notes) if path.is_dir() else [
                dataclasses.replace(_file(path), found_in=base)]
        except (InputError, OSError) as error:
            reasons.append(describe(error))
    problems += reasons if not found else [
        each for each in reasons if EMPTY not in each]
    return found


def is_numbered(path):
    """Return whether a path stands for numbered frames."""
    return FRAME_NUMBER.search(path.name) is not None and not path.exists()


def frames_of(path):
    """Return the files that numbered frames are, in the order of numbers."""
    pattern = re.compile(FRAME_NUMBER.sub(
        r'(\\d+)', re.escape(path.name).replace(r'\%', '%')))
    if not path.parent.is_dir():
        return []
    found = [(match, each) for each in path.parent.iterdir()
             if (match := pattern.fullmatch(each.name))]
    return [each for *_, each in sorted(
        (*map(int, match.groups()), each) for match, each in found)]


def _file(path, folder=None):
    below = path.relative_to(folder) if folder else pathlib.Path(path.name)
    return Input(str(path), below.with_suffix(''), path,
                 path.suffix.lower() in VIDEO_ENDINGS or (
                     path.suffix.lower() not in IMAGE_ENDINGS
                     and _kind(path) == 'video'), folder)


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
        raise InputError(f'{folder}: {EMPTY}')
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
    return sorted(filter(os.path.isfile, result))


def _unsupported(path):
    """Return why a file is not read; None if it is, '' if it is no image."""
    ending = path.suffix.lower()
    if ending in (IMAGE_ENDINGS | VIDEO_ENDINGS) - {'.ts'}:
        return None
    if ending == '.ts':  # a video, or a program in TypeScript
        return None if _start(path)[:1] in {b'G', b''} else ''
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
    return kind_of(_start(path))


def _start(path):
    """Return the first bytes of a file; none of a pipe, which would lose them,
    or where it cannot be read.
    """
    if not os.path.isfile(path):
        return b''
    try:
        with open(path, 'rb') as file:
            return file.read(16)
    except OSError:
        return b''


@functools.cache
def _standard_input():
    # Not through sys.stdin, whose lock would keep an interrupted program.
    return b''.join(iter(lambda: os.read(sys.stdin.fileno(), 1 << 20), b''))


def _from_url(url):
    from models.utils.download import read_url
    try:
        return read_url(url, MAX_URL_BYTES)
    except InputError as error:
        raise InputError(f'{without_secrets(url)}: {error}') from None
