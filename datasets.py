"""Names and colours of the classes of Cityscapes, VOC2012 and ADE20K."""
import numpy as np

from models.errors import InputError
from models.pretrained import PRETRAINED_MODELS

# ChainerCV has the names of VOC2012 and all three palettes. Cityscapes is
# spelt here as in cityscapesScripts; for ADE20K, each name is the first
# synonym of objectInfo150.txt (ChainerCV takes the last: "soul" for person).
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


def guess_dataset(model):
    """Return the dataset that a link's npz names, or with as many classes.

    Raises:
        InputError: there is none.

    """
    task = model.metadata.get('task')
    for dataset, known in PRETRAINED_MODELS.items():
        if dataset == task or (task is None
                               and known['n_class'] == model.n_class):
            return dataset
    raise InputError(f'the model has {model.n_class} classes and does not say '
                     'which: give --dataset')


def label_names(dataset):
    """Return the tuple of class names of 'cityscapes', 'voc' or 'ade20k'."""
    from chainercv import datasets
    return {'cityscapes': CITYSCAPES_NAMES,
            'voc': datasets.voc_semantic_segmentation_label_names,
            'ade20k': ADE20K_NAMES}[dataset]


def label_colors(dataset):
    """Return the official palette: uint8, (n_class, 3), RGB.

    ADE20K's gives road and skyscraper one colour.
    """
    from chainercv import datasets
    return np.array({
        'cityscapes': datasets.cityscapes_semantic_segmentation_label_colors,
        'voc': datasets.voc_semantic_segmentation_label_colors,
        'ade20k': datasets.ade20k_semantic_segmentation_label_colors,
    }[dataset], np.uint8)
