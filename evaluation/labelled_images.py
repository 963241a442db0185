"""The images of Cityscapes, VOC2012 and ADE20K with their labels, as read."""
import copy
import io
import pathlib
import typing

import numpy as np
from xxhash import xxh3_128_hexdigest as digest

from convert.conversion import CUSTOM
from evaluation.dataset_files import (
    TRAIN_IDS,
    find_official,
    pair_folders,
    read_lines,
)
from evaluation.scores import IGNORED
from media.images import open_image, read_image
from models.classes import label_colors
from models.utils.errors import InputError
from models.utils.files import atomic_path

OFFICIAL = 'official'
# What the values in label images may mean, by dataset and name for --label-map:
# those of the classes in order, and those of ignored pixels. Cityscapes' are
# the ids of the 19 classes that are trained and evaluated.
VALUES = {
    'cityscapes': {
        OFFICIAL: ((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27,
                    28, 31, 32, 33), (*range(34), 255)),
        'trainids': (range(19), (255,)),
    },
    'voc': {OFFICIAL: (range(21), (255,))},
    'ade20k': {OFFICIAL: (range(1, 151), (0,)), 'from0': (range(150), (255,))},
}
N_LOOKED_AT = 5  # first labels, which tell what the values are
# Colours of ignored pixels, where labels are stored in the palette's colours.
IGNORED_COLORS = {'cityscapes': [(0, 0, 0)], 'voc': [(224, 224, 192)],
                  'ade20k': [(0, 0, 0)]}
NO_CLASS = np.iinfo(np.int32).min  # of a value that stands for none
MAX_DIGITS = 9  # of a number in a label map
MAX_CLASSES = 255  # that 8 bits tell apart, with the ignored value


class LabelValues(typing.NamedTuple):
    """What the values of label images mean."""

    classes: np.ndarray  # int32: value -> class; the last for all above
    colors: dict  # RGB as one number -> class, of images that hold colours


class LabelledImages:
    """Images of a dataset with their labels, in a fixed order.

    An item is (image, label): (3, H, W), uint8, RGB; and (H, W), int32,
    the class of each pixel or `IGNORED`, as all are in a split without
    labels. Pixels are those stored, as TensorFlow and cityscapesScripts read
    them: an orientation in EXIF is not applied, since labels have none.

    Args:
        dataset (str): 'cityscapes', 'voc' or 'ade20k'.
        data_dir (str or pathlib.Path): where the dataset was unpacked.
        split (str): 'val', 'train' or another that the dataset has.
        folders (pair of paths): instead of the two above, a folder of images
            and one of labels with the same names, at any depth.
        values (LabelValues): of the labels; by default the dataset's own.

    Attributes:
        names (list of str): of the images.
        image_paths, label_paths (list of pathlib.Path): the files; None for
            a label of ADE20K's split test, which has none.

    Raises:
        InputError: there is no image, or an image or label is missing.
    """

    def __init__(self, dataset, data_dir=None, split='val', folders=None,
                 values=None):
        found = (find_official(dataset, pathlib.Path(data_dir), split)
                 if folders is None else
                 pair_folders(*map(pathlib.Path, folders)))
        self.names, self.image_paths, self.label_paths = zip(
            *found, strict=True)
        if values is None and str(self.label_paths[0]).endswith(TRAIN_IDS):
            values = named_values(dataset, 'trainids')
        self.values = values or named_values(dataset, OFFICIAL)

    def subset(self, indices):
        """Return the images of some indices, as LabelledImages."""
        result = copy.copy(self)
        result.names, result.image_paths, result.label_paths = (
            [found[i] for i in indices]
            for found in (self.names, self.image_paths, self.label_paths))
        return result

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        return self.read(i)[:2]

    def read(self, i):
        """Return image, label and the digests of the two files.

        Raise InputError where a file is unreadable, the sizes differ, or the
        label holds a value that the dataset does not have.
        """
        path, label_path = self.image_paths[i], self.label_paths[i]
        data = path.read_bytes()
        image = read_image(io.BytesIO(data), name=path, as_stored=True,
                           dtype=np.uint8)
        if label_path is None:
            return (image, np.full(image.shape[1:], IGNORED, np.int32),
                    (digest(data), ''))
        label_data = label_path.read_bytes()
        label = _read_label(label_data, label_path, self.values)
        if label.shape != image.shape[1:]:
            raise InputError(
                f'{label_path} has {_size(label)} pixels, and its image '
                f'{_size(image)} as stored, before any EXIF orientation')
        return image, label, (digest(data), digest(label_data))

    def changed_file(self, i, digests):
        """Return the file of item i that is not as it was, else None."""
        for path, before in zip((self.image_paths[i], self.label_paths[i]),
                                digests, strict=True):
            if path is not None and digest(path.read_bytes()) != before:
                return path
        return None


def _size(array):
    return ' x '.join(map(str, array.shape[-2:]))


def named_values(dataset, name):
    """Return the `LabelValues` of a name in `VALUES`."""
    return _values(*VALUES[dataset][name], label_colors(dataset),
                   IGNORED_COLORS[dataset])


def check_values(dataset, images):
    """Raise InputError where the first labels fit other `VALUES` only, or much
    better than the official ones.
    """
    found = set()
    for path in images.label_paths[:N_LOOKED_AT]:
        if path is not None and not path.name.endswith(TRAIN_IDS):
            mode, values = _pixels(path.read_bytes(), path)
            found.update(np.unique(values).tolist() if mode in {'L', 'P'}
                         else [None])
    official, official_ignored = map(set, VALUES[dataset][OFFICIAL])
    is_suspect = (0 < 2 * len(found & official) < len(found - {255}) or
                  found - official - official_ignored)
    for name, (values, ignored) in VALUES[dataset].items():
        if found and is_suspect and found <= {*values, *ignored} and (
                name != OFFICIAL):
            raise InputError(
                f'{images.label_paths[0]} and the next hold values from '
                f'{min(found)} to {max(found)}, which look like {name}: give '
                f'--label-map {name}, or --label-map {OFFICIAL} where they are '
                f"{dataset}'s own")


def own_values(n_class, colors):
    """Return the `LabelValues` of classes 0 to n_class - 1, and 255 for ignored
    pixels; or of their colours, (n_class, 3), uint8.
    """
    if n_class > MAX_CLASSES:
        raise InputError(f'the model has {n_class} classes, and a label image '
                         f'has at most {MAX_CLASSES}')
    return _values(range(n_class), [255], colors, [])


def _values(values, ignored, colors, ignored_colors):
    classes = np.full(257, NO_CLASS, np.int32)
    classes[list(ignored)] = IGNORED
    classes[list(values)] = np.arange(len(values))
    numbers = _as_number(np.asarray(colors)).tolist()
    return LabelValues(classes, {
        **{_as_number(np.array(color)): IGNORED for color in ignored_colors},
        **{number: i for i, number in enumerate(numbers)
           if numbers.count(number) == 1}})  # ADE20K has one colour twice


def read_label_map(path, n_class):
    """Return the `LabelValues` that a file gives, of `n_class` classes.

    Its lines are 'value class' or 'R G B class'; a class is a number from 0,
    or 'ignored'. Raise InputError where one is neither.
    """
    classes, colors = np.full((1 << 16) + 1, NO_CLASS, np.int32), {}
    for line in read_lines(path):
        *given, target = line.replace(',', ' ').split() or ['']
        found = IGNORED if target == 'ignored' else _number(target, n_class)
        limit = {1: 1 << 16, 3: 1 << 8}.get(len(given), 0)
        numbers = [_number(word, limit) for word in given]
        if not numbers or None in (found, *numbers):
            raise InputError(
                f"{path} has the line {line!r}, and must have 'value class' or "
                f"'R G B class', where a class is 0 to {n_class - 1} or "
                "'ignored'")
        if len(numbers) == 1:
            classes[numbers[0]] = found
        else:
            colors[int(_as_number(np.array(numbers)))] = found
    return LabelValues(classes, colors)


def _number(word, limit):
    """Return a number below a limit, else None."""
    is_one = word.isdecimal() and len(word) < MAX_DIGITS and int(word) < limit
    return int(word) if is_one else None


def _as_number(colors):
    """Return RGB colours (..., 3) as numbers (...), int64."""
    return colors.astype(np.int64) @ (1 << 16, 1 << 8, 1)


def _read_label(data, path, known):
    """Return a label image's classes, int32, (H, W).

    It has one channel of 8 or 16 bits, or the exact colours of the palette.
    """
    mode, values = _pixels(data, path)
    if mode in {'RGB', 'RGBA'}:
        kind, values = 'colour', values[..., :3]
        found, place = np.unique(_as_number(values), return_inverse=True)
        label = np.array([known.colors.get(color, NO_CLASS) for color in
                          found.tolist()], np.int32)[place].reshape(
                              values.shape[:2])
    elif mode in {'L', 'P'} or mode.startswith('I'):
        kind, label = 'value', known.classes.take(values, mode='clip')
    else:
        raise InputError(f'{path} is an image of mode {mode}, and a label '
                         'image has one channel of 8 or 16 bits, or colours')
    if label.min() < IGNORED:
        y, x = np.argwhere(label < IGNORED)[0]
        raise InputError(
            f'{path} holds the {kind} {values[y, x].tolist()} at row {y}, '
            f'column {x}, which is no class of the dataset')
    return label


def _pixels(data, path):
    """Return a label image's mode and its values as they are stored."""
    try:
        with open_image(io.BytesIO(data), ['PNG']) as image:
            return image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f'{path} cannot be read as a label image: {error}'
                         ) from None


def write_prediction(path, label, dataset, colors):
    """Write a label map (H, W) in the form of the dataset's benchmark."""
    from PIL import Image
    if dataset in ('voc', CUSTOM):
        image = Image.fromarray(label.astype(np.uint8))
        image.putpalette(colors.tobytes())
    else:
        values, _ = VALUES[dataset][OFFICIAL]
        image = Image.fromarray(np.array(values, np.uint8)[label])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        image.save(temporary, format='PNG')
