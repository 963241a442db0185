"""Where results go: all paths are compared before the first is written."""
import contextlib
import os
import pathlib
import re
import typing

from models.utils.errors import InputError, describe
from models.utils.files import atomic_path, check_target, part_path

VIDEO_ENDING = '.mp4'
DEFAULT = ['default']  # kinds, where none is asked for
# What Pillow writes well, by the file's ending.
FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP',
           '.bmp': 'BMP', '.tif': 'TIFF', '.tiff': 'TIFF', '.pdf': 'PDF'}
OPTIONS = {'PNG': {'compress_level': 1}, 'JPEG': {'quality': 92},
           'WEBP': {'quality': 92}}
SUFFIXES = {'default': '_segmentation', 'figure': '_segmentation',
            'overlay': '_overlay', 'color_map': '_color_map',
            'indexed': '_indexed'}
# In each result, so that a later run knows it: as EXIF's or MP4's software.
MARK = 'deeplab_v3_plus result'
MARK_WITHIN = 1 << 13  # bytes from the beginning or end of a file
FRAME = re.compile(r'\d{6,}\.png')  # in the folder of a video's 'indexed'
REFUSE, REPLACE, SKIP = 'refuse', 'replace', 'skip'  # results that exist


class Plan(typing.NamedTuple):
    """What a run will write."""

    # Input -> {kind: pathlib.Path}, of a folder for the numbered images that
    # are a video's 'indexed'.
    results: dict
    problems: list[str]  # why an input has no result
    notes: list[str]  # on inputs that are skipped


def plan_outputs(kinds, output, inputs, existing=REFUSE, documents=None,
                 sources=()):
    """Decide where all goes that a run writes, and compare it with all that
    the run reads, with each other and with what exists.

    Args:
        kinds (list of str): of results, see `visualization.draw`. None means
            `DEFAULT`, a figure of an image and an overlay of a video, unless
            documents alone are asked for.
        output (str): a folder; a file, for one input and one kind; or None,
            for this folder.
        inputs (list of Input): to be segmented.
        existing (str): what to do with results that exist: `REFUSE`,
            `REPLACE` or `SKIP`.
        documents (dict): option -> path (str or None) of others to write.
        sources (list of str): other files to read.

    Returns:
        Plan: an input of which a result may not be written has none.

    Raises:
        InputError, OSError: the output, or a document, cannot be written.
    """
    documents = {option: path for option, path in (documents or {}).items()
                 if path}
    kinds = kinds or ([] if documents and not output else DEFAULT)
    if '..' in pathlib.PurePath(output or '.').parts:
        output = os.path.realpath(output)  # its folders need not exist
    file, folder = _one_file(kinds, output, inputs), pathlib.Path(output or '.')
    if kinds:
        _check_folder(file.parent if file else folder, '--output')
    with_suffix = len(kinds) > 1 or output is None
    results, problems, n_skipped = {}, [], 0
    files = _Files()
    for each in inputs:
        files.add(each.name, each.files(), is_read=True)
    files.add('the model', sources, is_read=True)
    for each in inputs:
        paths = dict(_paths(kinds, each, file, folder, with_suffix))
        try:
            left = {kind: path for kind, path in paths.items()
                    if existing != SKIP or not path.exists()}
            parts = {kind: part_path(path) for kind, path in left.items()
                     if each.is_video}
            written = [*paths.values(), *parts.values()]
            files.check(each.name, written)
            _check_results(each, left, existing)
            _check_results(each, parts, existing, is_part=True)
        except (InputError, OSError) as error:
            problems.append(describe(error))
            continue
        files.add(each.name, written)
        if paths and not left:
            n_skipped += 1
        else:
            results[each] = left
    for option, path in documents.items():
        _check_folder(pathlib.Path(path).parent, option)
        files.check(option, [path])
        files.add(option, [path])
        check_target(path, existing == REPLACE)
    return Plan(results, problems, [
        f'skipped {n_skipped} with existing results'] if n_skipped else [])


def _check_results(each, paths, existing, is_part=False):
    """Raise InputError or OSError where a result may not be written."""
    for kind, path in paths.items():
        is_folder = each.is_video and kind == 'indexed'
        if is_folder:
            check_frames(path)
        else:
            check_target(path, force=True)
        if path.exists() and (existing == REFUSE or (
                existing == SKIP and not is_folder and not is_marked(path))):
            raise InputError(f'{path} exists: give --force to overwrite it' + (
                '' if is_part else ', or --skip-existing to skip it'))


class _Files:
    """Files that a run reads or writes: all differ, none is above another."""

    def __init__(self):
        # The user of each real path, each 'folder/' above one, each inode.
        self._users = {}

    def add(self, name, paths, is_read=False):
        for path in paths:
            real, inode, above = _located(path)
            keys = real, inode, *(f'{folder}/' for folder in above)
            self._users.update(dict.fromkeys(keys, (name, is_read)))

    def check(self, name, paths):
        """Raise InputError where one of the paths is another's."""
        for path in paths:
            real, inode, above = _located(path)
            for key in inode, f'{real}/', real, *above:
                other, is_read = self._users.get(key, (None, False))
                if is_read:
                    raise InputError(f'{name}: {path} would overwrite the '
                                     f'input {other}: name another')
                if other is not None:
                    raise InputError(f'{name} and {other} would both be '
                                     f'written to {path}')


def _located(path):
    """Return a path behind all links, its inode, and the folders above it."""
    real = inode = os.path.realpath(path)
    with contextlib.suppress(OSError):
        found = os.stat(real)
        inode = found.st_dev, found.st_ino
    return real, inode, [real[:at.start()] for at in re.finditer('/', real)]


def check_frames(folder):
    """Raise InputError where a folder holds anything but label maps of a
    video's frames that a run has written.
    """
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise InputError(f'{folder} is a file, and --indexed of a video is '
                             'a folder: name another')
        return
    for path in sorted(folder.iterdir()):
        if not FRAME.fullmatch(path.name) or path.is_symlink() or (
                not path.is_file()) or not is_marked(path):
            raise InputError(f'{folder} holds {path.name}, which --indexed did '
                             'not write: name another folder')


def is_marked(path):
    """Return whether a run of this project has written a file."""
    with contextlib.suppress(OSError), open(path, 'rb') as file:
        start = file.read(MARK_WITHIN)
        file.seek(max(len(start), os.fstat(file.fileno()).st_size
                      - MARK_WITHIN))
        return MARK.encode() in start + file.read()
    return False


def remove_result(path):
    """Remove a file, or a folder as `check_frames` allows, if it is there."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    check_frames(path)
    for each in path.iterdir():
        each.unlink()
    path.rmdir()


def _paths(kinds, each, file, folder, with_suffix):
    """Yield (kind, path) for an input."""
    for asked in kinds:
        kind = asked if asked != 'default' else (
            'overlay' if each.is_video else 'figure')
        ending = '.png' if not each.is_video else (
            '' if kind == 'indexed' else VIDEO_ENDING)
        name = each.stem.name + (SUFFIXES[asked] if with_suffix else '')
        yield kind, file or folder / each.stem.parent / (name + ending)


def _one_file(kinds, output, inputs):
    """Return the path where --output names a file, else None."""
    path = pathlib.Path(output or '.')
    if not output or output.endswith('/') or path.is_dir() or not path.suffix:
        return None
    is_video = any(each.is_video for each in inputs)
    if len(inputs) > 1 or len(kinds) > 1 or (
            is_video and kinds == ['indexed']):
        raise InputError(f'--output {output} is a file, and there are several '
                         'results: name a folder')
    allowed = [VIDEO_ENDING] if is_video else (
        ['.png'] if kinds == ['indexed'] else list(FORMATS))
    if path.suffix.lower() not in allowed:
        raise InputError(f'--output {output} must end in one of '
                         f'{", ".join(allowed)}')
    return path


def _check_folder(folder, option):
    """Refuse a folder that cannot be written, before the long work."""
    existing = next(path for path in (folder, *folder.absolute().parents)
                    if path.exists())
    if not existing.is_dir():
        raise InputError(f'{option}: {existing} is a file, not a folder')
    if not os.access(existing, os.W_OK):
        raise InputError(f'{option}: {existing} cannot be written')


def write_image(path, image, replace=True):
    """Write a PIL.Image.Image, marked as a result; folders are made."""
    from PIL import ExifTags, Image
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, exif = FORMATS[path.suffix.lower()], Image.Exif()
    exif[ExifTags.Base.Software] = MARK
    with atomic_path(path, replace) as temporary:
        image.save(temporary, format=kind, exif=exif, **OPTIONS.get(kind, {}))
