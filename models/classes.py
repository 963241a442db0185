"""Names and colours of the classes of Cityscapes, VOC2012 and ADE20K."""
import pathlib

import numpy as np

from .constants import DATASETS
from .utils.errors import InputError

# ChainerCV has VOC2012's names and all three palettes. These Cityscapes names
# are cityscapesScripts'; each ADE20K name is the first synonym in
# objectInfo150.txt (ChainerCV takes the last: "soul" for person).
CITYSCAPES_NAMES = (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light',
    'traffic sign', 'vegetation', 'terrain', 'sky', 'person', 'rider', 'car',
    'truck', 'bus', 'train', 'motorcycle', 'bicycle')
ADE20K_NAMES = (
    'wall', 'building', 'sky', 'floor', 'tree', 'ceiling', 'road', 'bed',
    'windowpane', 'grass', 'cabinet', 'sidewalk', 'person', 'earth', 'door',
    'table', 'mountain', 'plant', 'curtain', 'chair', 'car', 'water',
    'painting', 'sofa', 'shelf', 'house', 'sea', 'mirror', 'rug', 'field',
    'armchair', 'seat', 'fence', 'desk', 'rock', 'wardrobe', 'lamp', 'bathtub',
    'railing', 'cushion', 'base', 'box', 'column', 'signboard',
    'chest of drawers', 'counter', 'sand', 'sink', 'skyscraper', 'fireplace',
    'refrigerator', 'grandstand', 'path', 'stairs', 'runway', 'case',
    'pool table', 'pillow', 'screen door', 'stairway', 'river', 'bridge',
    'bookcase', 'blind', 'coffee table', 'toilet', 'flower', 'book', 'hill',
    'bench', 'countertop', 'stove', 'palm', 'kitchen island', 'computer',
    'swivel chair', 'boat', 'bar', 'arcade machine', 'hovel', 'bus', 'towel',
    'light', 'truck', 'tower', 'chandelier', 'awning', 'streetlight', 'booth',
    'television receiver', 'airplane', 'dirt track', 'apparel', 'pole', 'land',
    'bannister', 'escalator', 'ottoman', 'bottle', 'buffet', 'poster', 'stage',
    'van', 'ship', 'fountain', 'conveyer belt', 'canopy', 'washer',
    'plaything', 'swimming pool', 'stool', 'barrel', 'basket', 'waterfall',
    'tent', 'bag', 'minibike', 'cradle', 'oven', 'ball', 'food', 'step',
    'tank', 'trade name', 'microwave', 'pot', 'animal', 'bicycle', 'lake',
    'dishwasher', 'screen', 'blanket', 'sculpture', 'hood', 'sconce', 'vase',
    'traffic light', 'tray', 'ashcan', 'fan', 'pier', 'crt screen', 'plate',
    'monitor', 'bulletin board', 'shower', 'radiator', 'glass', 'clock',
    'flag')


def dataset_of(n_class: int, dataset: str | None = None) -> str | None:
    """Return the dataset that an npz names, else the one with so many classes;
    None where there is none.
    """
    if dataset is not None:
        return dataset if dataset in DATASETS else None
    return next((name for name, known in DATASETS.items()
                 if known['n_class'] == n_class), None)


def labels_of(model, dataset: str | None = None
              ) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names and colours of a link's classes.

    Args:
        model (DeepLabV3plusXception65): the link.
        dataset (str): use its classes; by default those in the model's npz,
            else those of the dataset with as many, else `numbered_names`.

    Returns:
        (tuple of str, numpy.ndarray): one name for each class; and uint8,
        (n_class, 3), RGB.

    Raises:
        InputError: the dataset has another number of classes.
    """
    if dataset is None and 'class_names' in model.metadata:
        names = tuple(model.metadata['class_names'])
        colors = np.array(model.metadata['class_colors'], np.uint8)
    else:
        dataset = dataset or dataset_of(
            model.n_class, model.metadata.get('task'))
        if dataset is None:
            return numbered_names(model.n_class), np.array(
                _palette(model.n_class), np.uint8)
        names, colors = label_names(dataset), label_colors(dataset)
    if len(names) != model.n_class or colors.shape != (len(names), 3):
        raise InputError(f'{dataset or "the npz"} has {len(names)} classes, '
                         f'and the model {model.n_class}')
    return names, colors


def numbered_names(n_class: int) -> tuple[str, ...]:
    """Return names for classes of which a model tells none."""
    return tuple(f'class {i}' for i in range(n_class))


def label_names(dataset: str) -> tuple[str, ...]:
    """Return the class names of a key of `DATASETS`."""
    from chainercv import datasets
    return {'cityscapes': CITYSCAPES_NAMES,
            'voc': datasets.voc_semantic_segmentation_label_names,
            'ade20k': ADE20K_NAMES}[dataset]


def label_colors(dataset: str) -> np.ndarray:
    """Return the official palette: uint8, (n_class, 3), RGB.

    ADE20K's has one colour for both road and skyscraper.
    """
    from chainercv import datasets
    return np.array({
        'cityscapes': datasets.cityscapes_semantic_segmentation_label_colors,
        'voc': datasets.voc_semantic_segmentation_label_colors,
        'ade20k': datasets.ade20k_semantic_segmentation_label_colors,
    }[dataset], np.uint8)


def read_classes(names_path, colors_path, n_class):
    """Read a user's own n_class classes, as an npz holds them.

    Args:
        names_path (str): a text file in UTF-8, one name a line.
        colors_path (str): a text file, one colour a line, '128 64 128' or
            '#804080'. None: a palette like VOC2012's.

    Returns:
        dict: 'class_names' (list of str), 'class_colors' (uint8, (n, 3)).

    Raises:
        InputError: another number of lines, a name twice, or no colour.
    """
    names = _lines(names_path, n_class)
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(f'{names_path} has {repeated[0]} twice')
    colors = _palette(n_class) if colors_path is None else [
        _color(colors_path, line) for line in _lines(colors_path, n_class)]
    return {'class_names': names, 'class_colors': np.array(colors, np.uint8)}


def _lines(path, n_class):
    try:
        text = pathlib.Path(path).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError:
        raise InputError(f'{path} is not a text file in UTF-8') from None
    lines = [' '.join(line.split()) for line in text.splitlines()
             if line.strip()]
    if len(lines) != n_class:
        raise InputError(f'{path} has {len(lines)} lines, and the model '
                         f'{n_class} classes')
    return lines


def _color(path, line):
    try:
        if line.startswith('#') and len(line) == 7:
            return list(bytes.fromhex(line[1:]))
        red, green, blue = map(int, line.replace(',', ' ').split())
        return list(bytes([red, green, blue]))
    except ValueError:
        raise InputError(f'{path}: {line!r} is no colour like "128 64 128" or '
                         '"#804080"') from None


def _palette(n_class):
    """VOC2012's formula: three bits of the class at a time, the lowest first,
    are the next lower bits of red, green and blue.
    """
    colors = np.zeros((n_class, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (
                (np.arange(n_class) >> (3 * bit + channel) & 1)
                << (7 - bit)).astype(np.uint8)
    return colors
