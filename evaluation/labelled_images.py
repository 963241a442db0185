"""The images of Cityscapes, VOC2012 and ADE20K with their labels.

They are read from the official folders, as unpacked from the archives, sorted;
every image is paired with its label by name.
"""
import pathlib

import numpy as np

from evaluation.scores import IGNORED
from media.images import read_image
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
MAX_CLASSES = 255  # that 8 bits tell apart, with the ignored value


class LabelledImages:
    """Images of a dataset with their labels, in a fixed order.

    An item is (image, label): float32 (3, H, W), RGB in [0, 255], and int32
    (H, W), the class of each pixel or `IGNORED`.

    Args:
        dataset (str): 'cityscapes', 'voc' or 'ade20k'.
        data_dir (str or pathlib.Path): where the dataset was unpacked.
        split (str): 'val', 'train' or another that the dataset has.

    Attributes:
        names (list of str): of the images.
        image_paths, label_paths (list of pathlib.Path): the files.

    Raises:
        InputError: there is no image, or an image or label is missing.
    """

    def __init__(self, dataset, data_dir, split):
        found = _FIND[dataset](pathlib.Path(data_dir), split)
        self.names, self.image_paths, self.label_paths = zip(
            *found, strict=True)
        self._classes = _table(CLASS_VALUES[dataset], IGNORED_VALUES[dataset])

    def set_own_classes(self, n_class):
        """Read labels 0 to n_class - 1, and 255 for ignored pixels."""
        if n_class > MAX_CLASSES:
            raise InputError(f'the model has {n_class} classes, and a label '
                             f'image has at most {MAX_CLASSES}')
        self._classes = _table(range(n_class), [255])

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        """Return item i; raise InputError where a file is unreadable, the
        sizes differ, or the label holds a value that the dataset does not have.
        """
        image = read_image(self.image_paths[i])
        label = _read_label(self.label_paths[i], self._classes)
        if label.shape != image.shape[1:]:
            raise InputError(
                f'{self.label_paths[i]} has {_size(label)} pixels, and its '
                f'image {_size(image)}')
        return image, label


class Subset:
    """Some items of a sequence."""

    def __init__(self, sequence, indices):
        self.sequence, self.indices = sequence, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        return self.sequence[self.indices[i]]


def _size(array):
    return ' x '.join(map(str, array.shape[-2:]))


def _cityscapes(root, split):
    ending, label_ending = '_leftImg8bit.png', '_gtFine_labelIds.png'
    images = {path.name.removesuffix(ending): path for path in sorted(
        (root / 'leftImg8bit' / split).glob(f'*/*{ending}'))}
    labels = {path.name.removesuffix(label_ending): path for path in sorted(
        (root / 'gtFine' / split).glob(f'*/*{label_ending}'))}
    return _paired(images, labels, f'{root}/leftImg8bit/{split}/*/*{ending}',
                   f'{root}/gtFine/{split}/*/*{label_ending}')


def _voc(root, split):
    root = _first_folder(root, 'VOCdevkit/VOC2012', 'VOC2012')
    listing = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
    if not listing.is_file():
        raise InputError(f'there is no {listing}: --data-dir is the folder '
                         'that holds VOCdevkit, and --split is train, val or '
                         'trainval')
    result = []
    for name in sorted(listing.read_text().split()):
        if pathlib.PurePath(name).name != name:
            raise InputError(f'{listing} lists {name}, and must list names '
                             'without a folder')
        image = root / 'JPEGImages' / f'{name}.jpg'
        label = root / 'SegmentationClass' / f'{name}.png'
        for path in image, label:
            if not path.is_file():
                raise InputError(f'{path} is missing, and {listing} lists it')
        result.append((name, image, label))
    if not result:
        raise InputError(f'{listing} lists no image')
    return result


def _ade20k(root, split):
    root = _first_folder(root, 'ADEChallengeData2016')
    folder = {'val': 'validation', 'train': 'training'}.get(split, split)
    images = {path.stem: path for path in sorted(
        (root / 'images' / folder).glob('*.jpg'))}
    labels = {path.stem: path for path in sorted(
        (root / 'annotations' / folder).glob('*.png'))}
    return _paired(images, labels, f'{root}/images/{folder}/*.jpg',
                   f'{root}/annotations/{folder}/*.png')


_FIND = {'cityscapes': _cityscapes, 'voc': _voc, 'ade20k': _ade20k}


def _first_folder(root, *below):
    return next((root / name for name in below if (root / name).is_dir()),
                root)


def _paired(images, labels, images_from, labels_from):
    if not images:
        raise InputError(f'no image {images_from}: check --data-dir and '
                         '--split')
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            raise InputError(f'{images[name]} has no label among '
                             f'{labels_from}')
        raise InputError(f'{labels[name]} has no image among {images_from}')
    return [(name, images[name], labels[name]) for name in sorted(images)]


def _table(values, ignored):
    """Return value -> class; unknown values are below `IGNORED`."""
    table = np.full(256, np.iinfo(np.int32).min, np.int32)
    table[list(ignored)] = IGNORED
    table[list(values)] = np.arange(len(values))
    return table


def _read_label(path, classes):
    from PIL import Image
    try:
        with (open(path, 'rb') as file,
              Image.open(file, formats=['PNG']) as image):
            mode, values = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f'{path} cannot be read as a label image: {error}'
                         ) from None
    if mode not in {'L', 'P'}:
        raise InputError(f'{path} is an image of mode {mode}, and a label '
                         'image has one channel of 8 bits')
    label = classes[values]
    if label.min() < IGNORED:
        unknown = values[label < IGNORED][0]
        raise InputError(f'{path} holds the value {unknown}, which is no '
                         'class of the dataset')
    return label


def write_prediction(path, label, dataset, colors):
    """Write a label map (H, W) in the form of the dataset's benchmark."""
    from PIL import Image
    values = (np.arange(len(colors)) if dataset == 'voc'
              else np.array(CLASS_VALUES[dataset]))
    image = Image.fromarray(values.astype(np.uint8)[label])
    if dataset == 'voc':
        image.putpalette(colors.tobytes())
    with atomic_path(path) as temporary:
        image.save(temporary, format='PNG')
