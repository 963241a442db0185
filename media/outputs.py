"""Write results: pictures of several kinds, whole or not at all."""
import os
import pathlib

from media import visualization
from models.utils.errors import InputError
from models.utils.files import atomic_path

KINDS = ('figure', 'overlay', 'color_map', 'indexed')
VIDEO_ENDING = '.mp4'
# What Pillow writes well, by the file's ending.
FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP',
           '.bmp': 'BMP', '.tif': 'TIFF', '.tiff': 'TIFF', '.pdf': 'PDF'}
OPTIONS = {'PNG': {'compress_level': 3}, 'JPEG': {'quality': 92},
           'WEBP': {'quality': 92}}


class Outputs:
    """Where the results of inputs go.

    Args:
        kinds (list of str): of `KINDS`.
        output (str): a folder; a file, for one input and one kind; or None,
            for this folder.
        inputs (list of Input): all there are.

    Attributes:
        problems (list of str): one line for each input that cannot be
            written, as another one is to be written there, or it lies there
            itself; these are missing in `paths`.
        paths (dict): Input -> {kind: pathlib.Path}.

    Raises:
        InputError: the file cannot be of such a type, or the folder not be
            written.

    """

    def __init__(self, kinds, output, inputs):
        self.kinds = kinds
        self.folder = pathlib.Path(output or '.')
        self.file = self._one_file(output, inputs)
        _check_folder(self.file.parent if self.file else self.folder)
        self.suffixes = len(kinds) > 1 or output is None
        self.paths, self.problems = {}, []
        taken = {each.path.resolve(): each for each in inputs
                 if each.path is not None}
        for each in inputs:
            paths = self._paths(each)
            wanted = [path.resolve() for path in paths.values()]
            other = next((taken[path] for path in wanted if path in taken),
                         None)
            if other is not None:
                what = 'it lies' if other is each else f'{other.name} goes'
                self.problems.append(
                    f'{each.name} would be written where {what}: '
                    f'{next(iter(paths.values()))}')
                continue
            taken.update(dict.fromkeys(wanted, each))
            self.paths[each] = paths

    def _one_file(self, output, inputs):
        path = pathlib.Path(output or '.')
        if not output or output.endswith('/') or path.is_dir() or (
                not path.suffix):
            return None
        if len(inputs) > 1 or len(self.kinds) > 1:
            raise InputError(f'--output {output} is a file, and there are '
                             'several results: name a folder')
        ending = path.suffix.lower()
        allowed = [VIDEO_ENDING] if inputs and inputs[0].is_video else (
            ['.png'] if self.kinds == ['indexed'] else list(FORMATS))
        if ending not in allowed:
            raise InputError(f'--output {output} must end in one of '
                             f'{", ".join(allowed)}')
        return path

    def _paths(self, each):
        if self.file is not None:
            return {self.kinds[0]: self.file}
        if each.is_video:
            suffix = '_segmentation' if self.suffixes else ''
            return {'overlay': self._path(each, suffix + VIDEO_ENDING)}
        return {kind: self._path(each, self._suffix(kind) + '.png')
                for kind in self.kinds}

    def _suffix(self, kind):
        if not self.suffixes:
            return ''
        return '_segmentation' if kind == 'figure' else f'_{kind}'

    def _path(self, each, ending):
        return self.folder / each.stem.parent / (each.stem.name + ending)


def _check_folder(folder):
    """Refuse a folder that cannot be written, before the long work."""
    there = next(path for path in (folder, *folder.absolute().parents)
                 if path.exists())
    if not there.is_dir():
        raise InputError(f'--output: {there} is a file, not a folder')
    if not os.access(there, os.W_OK):
        raise InputError(f'--output: {there} cannot be written')


def write_picture(path, picture):
    """Write a PIL.Image.Image; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = FORMATS[path.suffix.lower()]
    with atomic_path(path) as temporary:
        picture.save(temporary, format=kind, **OPTIONS.get(kind, {}))


def draw(kind, image, label, names, colors, shown, opacity):
    """Return one kind of picture of a result; see `visualization`."""
    from PIL import Image
    if kind == 'figure':
        return visualization.figure(image, label, names, colors, shown)
    if kind == 'overlay':
        return Image.fromarray(visualization.overlay(
            image, label, colors, opacity, shown))
    if kind == 'color_map':
        return Image.fromarray(visualization.colorize(label, colors, shown))
    return visualization.indexed(label, colors, shown)
