"""Find what a user wants segmented: files, folders, patterns, addresses."""
import contextlib
import dataclasses
import glob
import io
import os
import pathlib
import re
import sys
import urllib.parse

from media.images import formats, kind_of, read_image
from media.outputs import earlier_results
from models.utils.errors import (
    InputError,
    describe,
    shortened,
    without_secrets,
)

ENDINGS = {ending: kind for kind, endings in {
    'image': '.jpg .jpeg .jfif .png .bmp .gif .tif .tiff .webp .avif .ppm '
             '.pgm .jp2 .tga',
    'video': '.mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .mts .m2ts .ts .3gp '
             '.3g2 .wmv .asf .mxf .ogv .flv .vob .m2v .qt',
    'HEIF': '.heic .heif .hif',
    'RAW': '.cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .pef .srw .nrw .raw',
    'Photoshop': '.psd', 'GIMP': '.xcf', 'SVG': '.svg', 'OpenEXR': '.exr',
    'Radiance HDR': '.hdr', 'JPEG XL': '.jxl', 'ICO': '.ico', 'EPS': '.eps',
    'RealMedia': '.rm .rmvb', 'Flash': '.swf',
}.items() for ending in endings.split()}
REASONS = {  # why files of a kind are not read, where it helps to say more
    'HEIF': 'HEIC is not supported without pillow-heif (pip install '
            'pillow-heif)',
    'RAW': "a camera's raw format is not supported (save as JPEG or PNG)",
}
MAX_URL_BYTES = 256 << 20
FRAME_NUMBER = re.compile(r'%0?\d*d')


@dataclasses.dataclass(frozen=True)
class Input:
    """An image or video to segment."""

    name: str  # for messages
    stem: pathlib.PurePath  # of results, below the output folder; no ending
    path: pathlib.Path | None = None  # of the file, if there is one
    is_video: bool = False  # it has many images
    found_in: pathlib.Path | None = None  # folder; None: it was named itself
    url: str | None = dataclasses.field(default=None, repr=False)  # has secrets
    # Of a video without a path.
    data: bytes | None = dataclasses.field(default=None, repr=False,
                                           compare=False)

    def files(self):
        """Return the files that it is read from."""
        if self.path is None:
            return []
        return frames_of(self.path) if is_numbered(self.path) else [self.path]

    def read(self, max_pixels):
        """Return the image: float32, (3, H, W), RGB in [0, 255]."""
        if self.path is not None:
            return read_image(self.path, max_pixels)
        data = _standard_input() if self.name == '-' else _from_url(self.url)
        if not data:
            raise InputError(f'{self.name} is empty: an image is needed')
        return read_image(io.BytesIO(data), max_pixels, self.name)


def find_inputs(arguments):
    """Return the inputs that arguments name, a line for each argument or folder
    that cannot be read, and lines on files that are passed over.

    An argument is a file, a folder (all images and videos below it, sorted,
    but for results of an earlier run), a pattern with * ? [ or **, numbered
    frames as frame_%04d.png, an http(s) address, or - for standard input.
    """
    found, problems, notes = {}, [], []
    for argument in arguments:
        try:
            items = _items(argument)
        except (InputError, OSError) as error:
            items = [error]
        notes += [each for each in items if isinstance(each, str)]
        problems += [describe(each) for each in items
                     if isinstance(each, Exception)]
        for each in items:
            if isinstance(each, Input):
                key = each.url or (each.path and os.path.abspath(each.path))
                before = found.setdefault(key, each)
                if each.found_in is None and before is not each:
                    found[key] = dataclasses.replace(before, found_in=None)
                    if before.found_in is None:
                        notes.append(f'{each.name} is named twice')
    earlier = set(earlier_results(found.values()))
    if earlier:
        notes.append(f'skipped {len(earlier)} that an earlier run has written: '
                     + shortened(sorted(each.name for each in earlier)))
    return ([each for each in found.values() if each not in earlier],
            problems, notes)


def _items(argument):
    """Return what an argument names, a list of `Input`, errors and notes."""
    if argument == '-':
        return [Input('-', pathlib.PurePath('stdin'))]
    if re.match('https?://', argument, re.IGNORECASE):
        return [_address(argument)]
    if re.match(r'\w+://', argument):
        raise InputError(f'{without_secrets(argument)}: an address begins with '
                         'http:// or https://')
    if not argument or '\0' in argument:
        raise InputError(f'{argument!r} is no name of a file')
    path = pathlib.Path(argument)
    if path.is_dir():
        items = _in_folder(path)
        if not items:
            raise InputError(f'{path}: this folder has no image or video')
        return items
    if is_numbered(path):
        stem = FRAME_NUMBER.sub('', path.stem).strip('_-. ') or 'frames'
        return [Input(argument, pathlib.PurePath(stem), path, True)]
    if glob.has_magic(argument) and not path.exists():
        return _matching(argument)
    try:
        path.stat()
    except FileNotFoundError:
        if not argument.replace('.', '').isdecimal():
            raise
        raise InputError(f'{argument}: No such file or directory (a size or '
                         'scales are one word, as 513x1025 or 0.75,1.0)'
                         ) from None
    return [_file(path)]


def _address(url):
    try:
        path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    except ValueError:
        raise InputError(f'{without_secrets(url)} is no valid address'
                         ) from None
    name = pathlib.PurePosixPath(path).stem.replace('\0', '')
    return Input(without_secrets(url), pathlib.PurePath(name or 'image'),
                 url=url)


def _matching(pattern):
    """Return what a pattern names: files, and what is in folders."""
    parts = pathlib.Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    items = []
    for path in map(pathlib.Path, sorted(glob.glob(pattern, recursive=True))):
        items += _in_folder(path) if os.path.isdir(path) else [
            dataclasses.replace(_file(path), found_in=pathlib.Path(
                *parts[:first]))]
    if not items:
        raise InputError(f'{pattern}: no image or video matches')
    return items


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
    below = path.relative_to(folder or path.parent)
    return Input(str(path), below.with_suffix(''), path,
                 _kind(path) == 'video', folder)


def _in_folder(folder):
    """Return what a file manager shows as images and videos, also in linked
    folders, and a note on what looks like one and is not read.
    """
    items, paths, unread, seen = [], [], {}, set()
    for base, folders, names in os.walk(folder, followlinks=True,
                                        onerror=items.append):
        real = os.path.realpath(base)
        if real in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(real)
        paths += [pathlib.Path(base, name) for name in names
                  if not name.startswith('.')]
    for path in sorted(filter(os.path.isfile, paths)):
        kind = _kind(path)
        if path.suffix.lower() == '.ts' and (
                _start(path)[:1] not in {b'G', b''}):
            continue  # a program in TypeScript
        if kind in {'image', 'video', *formats()}:
            items.append(_file(path, folder))
        elif kind is not None:
            reason = REASONS.get(kind, f'{kind} is not supported')
            unread.setdefault(reason, []).append(path)
    return items + [
        f'skipped {len(paths)} file{"s" * (len(paths) > 1)}, {reason}: '
        f'{shortened(paths)}' for reason, paths in unread.items()]


def _kind(path):
    """Return the kind of a file by its ending, else by its first bytes."""
    return ENDINGS.get(path.suffix.lower()) or kind_of(_start(path))


def _start(path):
    """Return the first bytes of a file; none of a pipe, which would lose them,
    or where it cannot be read.
    """
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            with open(path, 'rb') as file:
                return file.read(16)
    return b''


def _standard_input():
    # Not through sys.stdin, whose lock would keep an interrupted program.
    return b''.join(iter(lambda: os.read(sys.stdin.fileno(), 1 << 20), b''))


def _from_url(url):
    from models.utils.download import read_url
    try:
        return read_url(url, MAX_URL_BYTES)
    except InputError as error:
        raise InputError(f'{without_secrets(url)}: {error}') from None
