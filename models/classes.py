"""Names and colours of the classes of Cityscapes, VOC2012 and ADE20K."""
import pathlib

import numpy as np

from .constants import DATASETS
from .utils.errors import InputError

# VOC2012's names and the palettes are ChainerCV's. The Cityscapes names are
# cityscapesScripts'; each ADE20K name is the first synonym in
# objectInfo150.txt (ChainerCV takes the last: "soul" for person).
NAMES = {
    'voc':
        'background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, '
        'chair, cow, diningtable, dog, horse, motorbike, person, pottedplant, '
        'sheep, sofa, train, tvmonitor',
    'cityscapes':
        'road, sidewalk, building, wall, fence, pole, traffic light, '
        'traffic sign, vegetation, terrain, sky, person, rider, car, truck, '
        'bus, train, motorcycle, bicycle',
    'ade20k':
        'wall, building, sky, floor, tree, ceiling, road, bed, windowpane, '
        'grass, cabinet, sidewalk, person, earth, door, table, mountain, '
        'plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, '
        'mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, '
        'lamp, bathtub, railing, cushion, base, box, column, signboard, '
        'chest of drawers, counter, sand, sink, skyscraper, fireplace, '
        'refrigerator, grandstand, path, stairs, runway, case, pool table, '
        'pillow, screen door, stairway, river, bridge, bookcase, blind, '
        'coffee table, toilet, flower, book, hill, bench, countertop, stove, '
        'palm, kitchen island, computer, swivel chair, boat, bar, '
        'arcade machine, hovel, bus, towel, light, truck, tower, chandelier, '
        'awning, streetlight, booth, television receiver, airplane, '
        'dirt track, apparel, pole, land, bannister, escalator, ottoman, '
        'bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, '
        'canopy, washer, plaything, swimming pool, stool, barrel, basket, '
        'waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, '
        'trade name, microwave, pot, animal, bicycle, lake, dishwasher, '
        'screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, '
        'ashcan, fan, pier, crt screen, plate, monitor, bulletin board, '
        'shower, radiator, glass, clock, flag',
}
# RGB, in hexadecimal; VOC2012 has the formula of `_palette`.
COLORS = {
    'cityscapes':
        '804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 '
        '4682b4 dc143c ff0000 00008e 000046 003c64 005064 0000e6 770b20',
    'ade20k':
        '787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 '
        'e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 '
        '0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff '
        '08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 '
        'ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f '
        '14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff '
        '0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 '
        '008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff '
        'ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 '
        '00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 '
        '8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff '
        '00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 '
        'ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 '
        '00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff '
        '4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff',
}


def dataset_of(n_class: int, dataset: str | None = None) -> str | None:
    """Return the dataset that an npz names, else the one with n_class classes;
    None if there is none.
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
        colors = np.array(model.metadata.get(
            'class_colors', _palette(model.n_class)), np.uint8)
    else:
        dataset = dataset or dataset_of(
            model.n_class, model.metadata.get('task'))
        if dataset is None:
            return numbered_names(model.n_class), _palette(model.n_class)
        names, colors = label_names(dataset), label_colors(dataset)
    counts = {len(names), len(colors)}
    if counts != {model.n_class}:
        raise InputError(f'{dataset or "the npz"} has '
                         f'{" or ".join(map(str, counts))} classes, and the '
                         f'model {model.n_class}')
    return names, colors


def numbered_names(n_class: int) -> tuple[str, ...]:
    """Return 'class 0' and so on, for a model without class names."""
    return tuple(f'class {i}' for i in range(n_class))


def label_names(dataset: str) -> tuple[str, ...]:
    """Return the class names of a key of `DATASETS`."""
    return tuple(NAMES[dataset].split(', '))


def label_colors(dataset: str) -> np.ndarray:
    """Return the official palette: uint8, (n_class, 3), RGB.

    ADE20K's has one colour for both road and skyscraper.
    """
    if dataset == 'voc':
        return _palette(DATASETS['voc']['n_class'])
    return np.frombuffer(
        bytes.fromhex(COLORS[dataset]), np.uint8).reshape(-1, 3)


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
