"""Where results go: all paths are compared before the first is written."""
import contextlib
import dataclasses
import functools
import os
import pathlib
import re

from models.utils.errors import InputError, describe
from models.utils.files import atomic_path, check_target, part_path

VIDEO_ENDING = '.mp4'
DEFAULT = ['default']  # kinds, where none is asked for
# What Pillow writes well, by the file's ending.
FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP',
           '.bmp': 'BMP', '.tif': 'TIFF', '.tiff': 'TIFF', '.pdf': 'PDF'}
OPTIONS = {'PNG': {'compress_level': 3}, 'JPEG': {'quality': 92},
           'WEBP': {'quality': 92}}
SUFFIXES = {'figure': '_segmentation', 'overlay': '_overlay',
            'color_map': '_color_map', 'indexed': '_indexed'}
# In each result, so that a later run knows it: as EXIF's or MP4's software.
MARK = 'deeplab_v3_plus result'
SOFTWARE = 305  # tag of EXIF
MARKED_FORMATS = {'PNG', 'JPEG', 'WEBP', 'TIFF'}
MARK_WITHIN = 1 << 13  # bytes from the beginning or end of a file
RESULT = re.compile(f'(.+)({"|".join(SUFFIXES.values())})(\\.part)?', re.DOTALL)
FRAME = re.compile(r'\d{6,}\.png')  # in the folder of a video's 'indexed'
REFUSE, REPLACE, SKIP = 'refuse', 'replace', 'skip'  # results that exist


@dataclasses.dataclass
class Plan:
    """What a run will write.

    Attributes:
        results (dict): Input -> {kind: pathlib.Path}, of a folder for the
            numbered images that are a video's 'indexed'.
        problems (list of str): why an input has no result, a line each.
        n_skipped (int): inputs that are skipped, as their results exist.
    """

    results: dict = dataclasses.field(default_factory=dict)
    problems: list = dataclasses.field(default_factory=list)
    n_skipped: int = 0


def plan_outputs(kinds, output, inputs, existing=REFUSE, documents=None,
                 sources=()):
    """Decide where all goes that a run writes, and compare it with all that
    the run reads, with each other and with what exists.

    Args:
        kinds (list of str): of results, see `visualization.draw`; `DEFAULT`:
            a figure of an image, an overlay of a video.
        output (str): a folder; a file, for one input and one kind; or None,
            for this folder.
        inputs (list of Input): to be segmented.
        existing (str): what to do with results that exist: `REFUSE`,
            `REPLACE` or `SKIP`.
        documents (dict): option -> path (str) of other files to write.
        sources (list of str): other files to read.

    Returns:
        Plan: an input of which a result may not be written has none.

    Raises:
        InputError, OSError: the output, or a document, cannot be written.
    """
    if '..' in pathlib.PurePath(output or '.').parts:
        output = os.path.realpath(output)  # its folders need not exist
    file = _one_file(kinds, output, inputs)
    folder = pathlib.Path(output or '.')
    if kinds:
        _check_folder(file.parent if file else folder, '--output')
    with_suffix = len(kinds) > 1 or output is None
    taken, plan = _Taken(), Plan()
    for each in inputs:
        taken.read(each.name, each.files())
    taken.read('the model', sources)
    for each in inputs:
        paths = dict(_paths(kinds, each, file, folder, with_suffix))
        try:
            taken.check(each.name, paths.values())
            left = {kind: path for kind, path in paths.items()
                    if existing != SKIP or not path.exists()}
            checked = _checked_paths(each, left, existing)
            taken.write(each.name, [*paths.values(), *checked])
            if paths and not left:
                plan.n_skipped += 1
            else:
                plan.results[each] = left
        except (InputError, OSError) as error:
            plan.problems.append(describe(error))
    for option, path in (documents or {}).items():
        _check_folder(pathlib.Path(path).parent, option)
        taken.write(option, [path])
        check_target(path, existing == REPLACE)
    return plan


def _checked_paths(each, paths, existing):
    """Return the paths of an input's results, and of their parts; raise
    InputError or OSError for one that may not be written.
    """
    result = []
    for kind, path in paths.items():
        is_folder = each.is_video and kind == 'indexed'
        check = check_frames if is_folder else functools.partial(
            check_target, force=True)
        check(path)
        if existing == REFUSE and path.exists():
            raise InputError(f'{path} exists: give --force to overwrite it, or '
                             '--skip-existing to skip it')
        result.append(path)
        if each.is_video:
            part = part_path(path)
            check(part)
            if part.exists() and (existing == REFUSE or (existing == SKIP
                                  and not is_folder and not is_marked(part))):
                raise InputError(f'{part} exists: give --force to overwrite it')
            result.append(part)
    return result


class _Taken:
    """Files that a run reads or writes: no two are the same, and none is above
    another.
    """

    def __init__(self):
        self._users, self._above = {}, {}  # real path -> name, whether read
        self._inodes, self._real_folders = {}, {}

    def read(self, name, paths):
        for path in paths:
            self._add(path, (name, True))
            with contextlib.suppress(OSError):
                found = os.stat(path)
                self._inodes[found.st_dev, found.st_ino] = name, True

    def check(self, name, paths):
        """Raise InputError where one of the paths is another's."""
        for path in paths:
            other, is_read = self._user(path) or (None, False)
            if is_read and other == name:
                raise InputError(f'{name}: input and output are the same file: '
                                 'name another')
            if is_read:
                raise InputError(f'{name}: {path} would overwrite the input '
                                 f'{other}: name another')
            if other is not None:
                raise InputError(f'{name} and {other} would both be written '
                                 f'to {path}')

    def write(self, name, paths):
        """Add the paths of one user; raise as `check`, and add none."""
        self.check(name, paths)
        for path in paths:
            self._add(path, (name, False))

    def _add(self, path, user):
        real, above = self._real(path)
        self._users[real] = user
        for folder in above:
            self._above[folder] = user

    def _user(self, path):
        real, above = self._real(path)
        with contextlib.suppress(OSError):
            found = os.stat(real)
            if (found.st_dev, found.st_ino) in self._inodes:
                return self._inodes[found.st_dev, found.st_ino]
        return self._above.get(real) or next(
            (self._users[each] for each in (real, *above)
             if each in self._users), None)

    def _real(self, path):
        """Return where a path leads, and the folders above."""
        folder, name = os.path.split(path)
        if folder not in self._real_folders:  # a look at each part is slow
            real = pathlib.Path(os.path.realpath(folder))
            self._real_folders[folder] = (str(real), list(map(str, (
                real, *real.parents))))
        real, above = self._real_folders[folder]
        path = os.path.join(real, name)
        if os.path.islink(path) or name in {'', '..'}:
            path = pathlib.Path(os.path.realpath(path))
            return str(path), list(map(str, path.parents))
        return path, above


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
        if not _is_frame(path):
            raise InputError(f'{folder} holds {path.name}, which --indexed did '
                             'not write: name another folder')


def _is_frame(path):
    return (FRAME.fullmatch(path.name) is not None and not path.is_symlink()
            and path.is_file() and is_marked(path))


def is_marked(path):
    """Return whether a run of this project has written a file."""
    with open(path, 'rb') as file:
        start = file.read(MARK_WITHIN)
        file.seek(max(len(start), os.fstat(file.fileno()).st_size
                      - MARK_WITHIN))
        return MARK.encode() in start + file.read()


def remove_frames(folder):
    """Remove a folder of frames, if it is there; raise as `check_frames`."""
    check_frames(folder)
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def earlier_results(inputs):
    """Return those of the inputs found in folders that a run has written: they
    are marked, or have the name of a result of another input.
    """
    origins = {(each.path.parent, each.path.stem) for each in inputs
               if each.path is not None}

    def is_result(each):
        match = RESULT.fullmatch(each.path.stem)
        if match and each.path.suffix in {'.png', VIDEO_ENDING} and (
                each.path.parent, match[1]) in origins:
            return True
        with contextlib.suppress(OSError):
            return is_marked(each.path)

    return [each for each in inputs
            if each.found_in is not None and is_result(each)]


def _paths(kinds, each, file, folder, with_suffix):
    """Yield (kind, path) for an input."""
    for kind in _kinds_of(kinds, each.is_video):
        suffix = SUFFIXES['figure' if kinds == DEFAULT else kind]
        ending = '.png' if not each.is_video else (
            '' if kind == 'indexed' else VIDEO_ENDING)
        yield kind, file or folder / each.stem.parent / (
            each.stem.name + (suffix if with_suffix else '') + ending)


def _kinds_of(kinds, is_video):
    return kinds if kinds != DEFAULT else (
        ['overlay'] if is_video else ['figure'])


def _one_file(kinds, output, inputs):
    """Return the path where --output names a file, else None."""
    path = pathlib.Path(output or '.')
    if not output or output.endswith('/') or path.is_dir() or not path.suffix:
        return None
    if len(inputs) > 1 or len(kinds) > 1:
        raise InputError(f'--output {output} is a file, and there are '
                         'several results: name a folder')
    is_video = bool(inputs) and inputs[0].is_video
    if is_video and kinds == ['indexed']:
        raise InputError(f'--output {output} is a file, and --indexed of a '
                         'video are numbered images: name a folder')
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
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = FORMATS[path.suffix.lower()]
    options = dict(OPTIONS.get(kind, {}))
    if kind in MARKED_FORMATS:
        options['exif'] = Image.Exif()
        options['exif'][SOFTWARE] = MARK
    with atomic_path(path, replace) as temporary:
        image.save(temporary, format=kind, **options)
