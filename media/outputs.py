"""Where results go, and files that appear whole."""
import os
import pathlib

from models.utils.errors import InputError
from models.utils.files import atomic_path

VIDEO_ENDING = '.mp4'
DEFAULT = ['default']  # kinds, where none is asked for
# What Pillow writes well, by the file's ending.
FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP',
           '.bmp': 'BMP', '.tif': 'TIFF', '.tiff': 'TIFF', '.pdf': 'PDF'}
OPTIONS = {'PNG': {'compress_level': 3}, 'JPEG': {'quality': 92},
           'WEBP': {'quality': 92}}


def plan_outputs(kinds, output, inputs):
    """Decide where the results of all inputs go.

    Args:
        kinds (list of str): of results, see `visualization.draw`; `DEFAULT`:
            a figure of an image, an overlay of a video.
        output (str): a folder; a file, for one input and one kind; or None,
            for this folder.

    Returns:
        (dict, list of str): Input -> {kind: pathlib.Path}, of a folder for the
        numbered images that are a video's 'indexed'; and a problem for each
        input whose result would overwrite another one or an input.
    """
    file = _one_file(kinds, output, inputs)
    folder = pathlib.Path(output or '.')
    _check_folder(file.parent if file else folder)
    with_suffix = len(kinds) > 1 or output is None
    plan, problems = {}, []
    taken = {each.path.resolve(): each.name for each in inputs
             if each.path is not None}
    for each in inputs:
        paths = dict(_paths(kinds, each, file, folder, with_suffix))
        wanted = [path.resolve() for path in paths.values()]
        other = next((taken[path] for path in wanted if path in taken), None)
        if other is None:
            taken.update(dict.fromkeys(wanted, each.name))
            plan[each] = paths
        else:
            problems.append(_conflict(each.name, other,
                                      next(iter(paths.values()), file)))
    return plan, problems


def _paths(kinds, each, file, folder, with_suffix):
    """Yield (kind, path) for an input."""
    for kind in _kinds_of(kinds, each.is_video):
        suffix = '_segmentation' if kind == 'figure' or kinds == DEFAULT else (
            f'_{kind}')
        ending = '.png' if not each.is_video else (
            '' if kind == 'indexed' else VIDEO_ENDING)
        yield kind, file or folder / each.stem.parent / (
            each.stem.name + (suffix if with_suffix else '') + ending)


def _kinds_of(kinds, is_video):
    return kinds if kinds != DEFAULT else (
        ['overlay'] if is_video else ['figure'])


def _conflict(name, other, path):
    if name == other:
        return f'{name}: input and output are the same file: name another'
    return f'{name} and {other} would both be written to {path}'


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


def _check_folder(folder):
    """Refuse a folder that cannot be written, before the long work."""
    existing = next(path for path in (folder, *folder.absolute().parents)
                    if path.exists())
    if not existing.is_dir():
        raise InputError(f'--output: {existing} is a file, not a folder')
    if not os.access(existing, os.W_OK):
        raise InputError(f'--output: {existing} cannot be written')


def write_image(path, image):
    """Write a PIL.Image.Image; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = FORMATS[path.suffix.lower()]
    with atomic_path(path) as temporary:
        image.save(temporary, format=kind, **OPTIONS.get(kind, {}))
