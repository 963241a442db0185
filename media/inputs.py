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
import urllib.request

import numpy as np

from media.images import REASONS, START, formats, kind_of, read_image
from media.outputs import is_marked
from models.utils.errors import (
    InputError,
    describe,
    shortened,
    without_secrets,
)

ENDINGS = {ending: kind for kind, endings in {
    'image': '.jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .dib .gif .tif .tiff '
             '.webp .avif .avifs .pnm .pbm .pgm .ppm .jp2 .j2k .j2c .jpc .jpf '
             '.jpx .tga',
    'video': '.mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .mpe .mts .m2ts .ts '
             '.3gp .3g2 .wmv .asf .mxf .ogv .ogm .flv .f4v .vob .mod .tod .m1v '
             '.m2v .qt .divx .dv .gxf .nut .ivf .y4m .mjpeg .mjpg .h264 .264 '
             '.avc .h265 .265 .hevc .h266 .266 .h263 .vc1 .obu .av1 .wtv',
    'sound': '.m4a .m4b .m4r .mka .wma .weba',  # that begin as videos do
    'HEIF': '.heic .heif .hif',
    'RAW': '.cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .pef .srw .nrw .raw',
}.items() for ending in endings.split()}
ENDINGS |= {ending: ending for ending in (  # for messages
    '.psd', '.xcf', '.svg', '.exr', '.hdr', '.jxl', '.ico', '.eps', '.pfm',
    '.pam', '.dds', '.pcx', '.rm', '.rmvb', '.swf')}
# Names of thumbnails, of earlier versions and of what was deleted.
SYSTEM_NAMES = {'@eaDir', '#recycle', '#snapshot', '@Recycle', '$RECYCLE.BIN',
                '__MACOSX', 'lost+found', 'Thumbs.db', 'desktop.ini'}
JPEG_JOINT = b'\xff\xd9\xff\xd8\xff'  # end of one, start of the next
PHOTO = re.compile(rb'MPF\0|http://ns\.adobe')  # others may come behind it
MAX_BYTES = 256 << 20  # of an address, a pipe or standard input
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
    # Of a pipe or standard input, which can be read only once.
    data: bytes | None = dataclasses.field(default=None, repr=False,
                                           compare=False)

    def files(self):
        """Return the files that it is read from."""
        if self.path is None:
            return []
        return frames_of(self.path) if is_numbered(self.path) else [self.path]

    def source(self):
        """Return what it is read from: a path, or all of it as bytes."""
        source = self.path or (_from_url(self.url) if self.url else self.data)
        if not source:
            raise InputError(f'{self.name} is empty: an image is needed')
        return source

    def read(self, max_pixels):
        """Return the image: uint8, (3, H, W), RGB."""
        source = self.source()
        return read_image(source if self.path else io.BytesIO(source),
                          max_pixels, self.name, dtype=np.uint8)


def find_inputs(arguments):
    """Return the inputs that arguments name, a line for each argument or folder
    that cannot be read, and lines on files that are passed over.

    An argument is a file, a folder (all images and videos below it, sorted,
    but for results of an earlier run), a pattern with * ? [ or **, numbered
    frames as frame_%04d.png, an address (http, https or file), a pipe, or -
    for standard input. The last two are read here, as that goes only once.
    """
    found, problems, notes = {}, [], []
    for argument in arguments:
        try:
            items = _items(argument)
            if not items:
                raise InputError(f'{argument}: no image or video was found')
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
    for key, each in list(found.items()):
        if is_read_once(each.name):
            try:
                found[key] = _read(each)
            except (InputError, OSError) as error:
                problems.append(describe(error))
                del found[key]
    earlier = {each for each in found.values()
               if each.found_in is not None and is_marked(each.path)}
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
    is_exact = re.match('file://(localhost)?/', argument, re.IGNORECASE)
    if is_exact:
        argument = urllib.request.url2pathname(
            urllib.parse.urlsplit(argument).path)
    elif re.match(r'\w+://', argument):
        raise InputError(f'{without_secrets(argument)}: an address begins with '
                         'http://, https:// or file:///')
    if not argument or '\0' in argument:
        raise InputError(f'{argument!r} is no name of a file')
    path = pathlib.Path(argument)
    if path.is_dir():
        return _in_folder(path)
    if is_numbered(path) and not is_exact:
        stem = FRAME_NUMBER.sub('', path.stem).strip('_-. ') or 'frames'
        return [Input(argument, pathlib.PurePath(stem), path, True)]
    if glob.has_magic(argument) and not path.exists() and not is_exact:
        return _matching(argument)
    if re.fullmatch(r'[\d.]+', argument) and not path.exists():
        raise InputError(f'{argument}: No such file or directory (a size or '
                         'scales are one word, as 513x1025 or 0.75,1.0)')
    path.stat()  # raises where there is none
    return [_file(path)]


def _address(url):
    try:
        path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    except ValueError:
        raise InputError(f'{without_secrets(url)} is no valid address'
                         ) from None
    path = pathlib.PurePosixPath(path.replace('\0', ''))
    kind = ENDINGS.get(path.suffix.lower())
    if kind is None:
        with contextlib.suppress(InputError):  # it is said when it is read
            kind = kind_of(_from_url(url, is_start=True))
    return Input(without_secrets(url), pathlib.PurePath(path.stem or 'image'),
                 is_video=kind == 'video', url=url)


def _matching(pattern):
    """Return what a pattern names: files, and what is in folders."""
    parts = pathlib.Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    items = []
    for path in map(pathlib.Path, sorted(glob.glob(pattern, recursive=True))):
        if SYSTEM_NAMES.intersection(path.parts[first:]):
            continue
        items += _in_folder(path) if os.path.isdir(path) else [
            dataclasses.replace(_file(path), found_in=pathlib.Path(
                *parts[:first]))]
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


def is_hidden(name):
    """Return whether a file or folder is none of the user's own."""
    return name.startswith('.') or name in SYSTEM_NAMES


def _file(path, folder=None):
    below = path.relative_to(folder or path.parent)
    return Input(str(path), below.with_suffix(''), path,
                 _kind(path) == 'video', folder)


def _in_folder(folder):
    """Return images and videos, also in linked folders, and notes on others."""
    items, paths, unread, seen = [], [], {}, set()
    for base, folders, names in os.walk(folder, followlinks=True,
                                        onerror=items.append):
        real = os.path.realpath(base)
        if real in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        paths += [pathlib.Path(base, name) for name in names
                  if not is_hidden(name)]
    for path in sorted(paths):
        kind = _kind(path)
        if kind and path.suffix.lower() == '.ts' and (
                _start(path)[:1] not in {b'G', b''}):
            continue  # a program in TypeScript
        if kind in {'image', 'video', *formats()}:
            items.append(_file(path, folder))
        elif kind not in {None, 'sound'}:
            reason = REASONS.get(kind, f'{kind} is not supported')
            unread.setdefault(reason, []).append(path)
    return items + [
        f'skipped {len(paths)} file{"s" * (len(paths) > 1)}, {reason}: '
        f'{shortened(paths)}' for reason, paths in unread.items()]


def _kind(path):
    """Return the kind of a file by its ending, else by its first bytes."""
    if not os.path.isfile(path):
        return None if os.path.exists(path) else 'broken link'
    return ENDINGS.get(path.suffix.lower()) or kind_of(_start(path))


def _start(path):
    """Return the first bytes of a file, if it can be read."""
    with contextlib.suppress(OSError), open(path, 'rb') as file:
        return file.read(START)
    return b''


def is_read_once(name):
    """Return whether a name stands for standard input or a pipe."""
    return name == '-' or (not os.path.isfile(name) and os.path.exists(name)
                           and not os.path.isdir(name))


def _read(each):
    """Return an input with the data of a pipe or standard input."""
    # Not through sys.stdin, whose lock would keep an interrupted program.
    with open(each.path or os.dup(sys.stdin.fileno()), 'rb') as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f'{each.name}: more than {MAX_BYTES} bytes: save it, '
                         'and give the name of the file')
    kind, end = kind_of(data), data.find(JPEG_JOINT)
    if kind == 'JPEG' and end > 0 and not PHOTO.search(data, 0, end):
        kind = 'video'  # MJPEG
    return dataclasses.replace(each, path=None, found_in=None, data=data,
                               is_video=kind == 'video')


def _from_url(url, is_start=False):
    from models.utils.download import read_url
    try:
        return read_url(url, START if is_start else MAX_BYTES, is_start)
    except InputError as error:
        raise InputError(f'{without_secrets(url)}: {error}') from None
