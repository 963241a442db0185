"""The images of Cityscapes, VOC2012 and ADE20K with their labels, as read."""
import copy
import io
import pathlib
import typing

import numpy as np

from convert.conversion import CUSTOM
from evaluation.dataset_files import find_official, pair_folders, read_lines
from evaluation.scores import IGNORED
from media.images import open_image, read_image
from models.classes import label_colors
from models.utils.errors import InputError
from models.utils.files import atomic_path

# Values in the label images: of the classes in order, and of ignored pixels.
# Cityscapes' are the ids of the 19 classes that are trained and evaluated.
CLASS_VALUES = {
    'cityscapes': (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27,
                   28, 31, 32, 33),
    'voc': range(21),
    'ade20k': range(1, 151),
}
IGNORED_VALUES = {'cityscapes': (*range(34), 255), 'voc': (255,),
                  'ade20k': (0,)}
# Other values that such labels often have: name, for --label-map -> the same.
OTHER_VALUES = {'cityscapes': {'trainids': (range(19), (255,))},
                'ade20k': {'from0': (range(150), (255,))}}
TRAIN_IDS = '_labelTrainIds.png'  # end of the name of Cityscapes' own
OFFICIAL = 'official'
N_LOOKED_AT = 5  # first labels, which tell what the values are
# Colours of ignored pixels, where labels are stored in the palette's colours.
IGNORED_COLORS = {'cityscapes': [(0, 0, 0)], 'voc': [(224, 224, 192)],
                  'ade20k': [(0, 0, 0)]}
NO_CLASS = np.iinfo(np.int32).min  # of a value that stands for none
MAX_DIGITS = 9  # of a number in a label map
MAX_CLASSES = 255  # that 8 bits tell apart, with the ignored value


class Item(typing.NamedTuple):
    """An image of a dataset with its label."""

    image: np.ndarray  # float32, (3, H, W), RGB in [0, 255]
    label: np.ndarray  # int32, (H, W), the class of each pixel or `IGNORED`
    digests: tuple[str, str]  # of the two files that these were read from


class LabelValues(typing.NamedTuple):
    """What the values of label images mean."""

    classes: np.ndarray  # int32: value -> class; the last for all above, and -1
    colors: dict  # RGB as one number -> class, of images that hold colours


class LabelledImages:
    """Images of a dataset with their labels, in a fixed order.

    An item is (image, label), see `Item`. Pixels are those stored, as
    TensorFlow and cityscapesScripts read them: an orientation in EXIF is not
    applied, since labels have none. In a split without labels all pixels are
    ignored.

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
        for name in 'names', 'image_paths', 'label_paths':
            found = getattr(self, name)
            setattr(result, name, [found[i] for i in indices])
        return result

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        return self.read(i)[:2]

    def read(self, i):
        """Return `Item` i; raise InputError where a file is unreadable, the
        sizes differ, or the label holds a value that the dataset does not have.
        """
        path, label_path = self.image_paths[i], self.label_paths[i]
        data = path.read_bytes()
        image = read_image(io.BytesIO(data), name=path, as_stored=True)
        if label_path is None:
            nothing = np.full(image.shape[1:], IGNORED, np.int32)
            return Item(image, nothing, (_digest(data), ''))
        label_data = label_path.read_bytes()
        label = _read_label(label_data, label_path, self.values)
        if label.shape != image.shape[1:]:
            turned = read_image(io.BytesIO(data), name=path)
            if label.shape == turned.shape[1:]:
                raise InputError(
                    f'{path} fits its label only when turned as its EXIF '
                    'orientation says: save it with its pixels turned')
            raise InputError(f'{label_path} has {_size(label)} pixels, and its '
                             f'image {_size(image)}')
        return Item(image, label, (_digest(data), _digest(label_data)))

    def changed_file(self, i, digests):
        """Return the file of item i that is not as it was, else None."""
        for path, before in zip((self.image_paths[i], self.label_paths[i]),
                                digests, strict=True):
            if path is not None and _digest(path.read_bytes()) != before:
                return path
        return None


def _digest(data):
    from xxhash import xxh3_128_hexdigest
    return xxh3_128_hexdigest(data)


def _size(array):
    return ' x '.join(map(str, array.shape[-2:]))


def named_values(dataset, name):
    """Return the `LabelValues` of a name of `value_names`."""
    values, ignored = OTHER_VALUES.get(dataset, {}).get(name) or (
        CLASS_VALUES[dataset], IGNORED_VALUES[dataset])
    return _values(values, ignored, label_colors(dataset),
                   IGNORED_COLORS[dataset])


def value_names(dataset):
    """Return the names for --label-map of values that labels may have."""
    return [OFFICIAL, *OTHER_VALUES.get(dataset, {})]


def check_values(dataset, images):
    """Raise InputError where the first labels fit one of `OTHER_VALUES` only,
    or much better than what the dataset has.
    """
    found = set()
    for path in images.label_paths[:N_LOOKED_AT]:
        if path is not None and not path.name.endswith(TRAIN_IDS):
            mode, values = _pixels(path.read_bytes(), path)
            found.update(np.unique(values).tolist() if mode in {'L', 'P'}
                         else [None])
    official = {*CLASS_VALUES[dataset]}
    n_classes = len(found & official)
    for name, (values, ignored) in OTHER_VALUES.get(dataset, {}).items():
        is_better = (0 < 2 * n_classes < len(found - {255}) or
                     found - official - {*IGNORED_VALUES[dataset]})
        if found and is_better and found <= {*values, *ignored}:
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
        return _classes_of_colors(values[..., :3], path, known.colors)
    if mode not in {'L', 'P'} and not mode.startswith('I'):
        raise InputError(f'{path} is an image of mode {mode}, and a label '
                         'image has one channel of 8 or 16 bits, or colours')
    if values.dtype != np.uint8:  # of 8 bits, all are in the table
        values = values.astype(np.int64).clip(-1, len(known.classes) - 1)
    label = known.classes[values]
    if label.min() < IGNORED:
        _refuse(path, values, label < IGNORED, 'value')
    return label


def _pixels(data, path):
    """Return a label image's mode and its values as they are stored."""
    try:
        with open_image(io.BytesIO(data), ['PNG']) as image:
            return image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f'{path} cannot be read as a label image: {error}'
                         ) from None


def _classes_of_colors(values, path, colors):
    found, place = np.unique(_as_number(values), return_inverse=True)
    label = np.array([colors.get(color, NO_CLASS) for color in found.tolist()],
                     np.int32)[place].reshape(values.shape[:2])
    if label.min() < IGNORED:
        _refuse(path, values, label < IGNORED, 'colour')
    return label


def _refuse(path, values, where, kind):
    """Say which value is no class's, and where it is."""
    y, x = np.argwhere(where)[0]
    raise InputError(f'{path} holds the {kind} {values[y, x].tolist()} at row '
                     f'{y}, column {x}, which is no class of the dataset')


def write_prediction(path, label, dataset, colors):
    """Write a label map (H, W) in the form of the dataset's benchmark."""
    from PIL import Image
    values = (np.arange(len(colors)) if dataset in ('voc', CUSTOM)
              else np.array(CLASS_VALUES[dataset]))
    image = Image.fromarray(values.astype(np.uint8)[label])
    if dataset in ('voc', CUSTOM):
        image.putpalette(colors.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        image.save(temporary, format='PNG')
