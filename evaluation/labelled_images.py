"""The images of Cityscapes, VOC2012 and ADE20K with their labels.

They are read from the official folders as they come out of the archives,
sorted, and every image is paired with its label by name.
"""
import pathlib

import numpy as np

from media.images import read_image
from models.utils.errors import InputError

IGNORED = -1
# Cityscapes' ids of the 19 classes that are trained and evaluated.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27,
                  28, 31, 32, 33)


class LabelledImages:

    """Images of a data set with their labels, in a fixed order.

    An item is (image, label): float32 (3, H, W), RGB in [0, 255], and int32
    (H, W), the class of each pixel or -1 where it is not to be judged.

    Args:
        dataset (str): 'cityscapes', 'voc' or 'ade20k'.
        data_dir (str or pathlib.Path): where the data set was unpacked.
        split (str): 'val' or 'train'; any that the data set has.
        n_class (int): how many classes there are, in data of the user's own
            in VOC2012's layout; by default, the data set's.

    Attributes:
        names (list of str): what each image is called.
        image_paths, label_paths (list of pathlib.Path): its files.

    Raises:
        InputError: there is no image, or a partner is missing.

    """

    def __init__(self, dataset, data_dir, split, n_class=None):
        find, self._classes = _DATASETS[dataset]
        if n_class is not None:
            if n_class > 255:
                raise InputError(f'the model has {n_class} classes, and a '
                                 'label picture tells at most 255 apart')
            self._classes = _table(range(n_class), [255])
        found = find(pathlib.Path(data_dir), split)
        self.names, self.image_paths, self.label_paths = zip(
            *found, strict=True)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        """Return item i.

        Raises:
            InputError: a file cannot be read, the sizes differ, or the label
                holds a value that the data set does not know.

        """
        image = read_image(self.image_paths[i])
        label = _read_label(self.label_paths[i], self._classes)
        if label.shape != image.shape[1:]:
            raise InputError(
                f'{self.label_paths[i]} has {_size(label)} pixels, and its '
                f'image {_size(image)}')
        return image, label


def _size(array):
    return ' x '.join(map(str, array.shape[-2:]))


def _cityscapes(root, split):
    def name(path, ending):
        return path.name.removesuffix(ending)

    ending, label_ending = '_leftImg8bit.png', '_gtFine_labelIds.png'
    images = {name(path, ending): path for path in sorted(
        (root / 'leftImg8bit' / split).glob(f'*/*{ending}'))}
    labels = {name(path, label_ending): path for path in sorted(
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
            raise InputError(f'{listing} names {name}, and must name files '
                             'without a folder')
        image = root / 'JPEGImages' / f'{name}.jpg'
        label = root / 'SegmentationClass' / f'{name}.png'
        for path in image, label:
            if not path.is_file():
                raise InputError(f'{path} is missing, and {listing} names it')
        result.append((name, image, label))
    if not result:
        raise InputError(f'{listing} names no image')
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


def _table(classes, ignored):
    """Return value in the file -> class; None marks what is unknown."""
    table = np.full(256, np.iinfo(np.int32).min, np.int32)
    table[list(ignored)] = IGNORED
    table[list(classes)] = np.arange(len(classes))
    return table


_DATASETS = {  # how files are found, and what their values mean
    'cityscapes': (_cityscapes, _table(CITYSCAPES_IDS, [*range(34), 255])),
    'voc': (_voc, _table(range(21), [255])),
    'ade20k': (_ade20k, _table(range(1, 151), [0])),
}


def _read_label(path, classes):
    from PIL import Image
    try:
        with (open(path, 'rb') as file,
              Image.open(file, formats=['PNG']) as picture):
            mode, values = picture.mode, np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f'{path} cannot be read as a label picture: '
                         f'{error}') from None
    if mode not in {'L', 'P'}:
        raise InputError(f'{path} is a picture of mode {mode}, and a label '
                         'picture has one channel of 8 bits')
    label = classes[values]
    if label.min() < IGNORED:
        unknown = values[label < IGNORED][0]
        raise InputError(f'{path} holds the value {unknown}, which is no '
                         'class of the data set')
    return label


def write_prediction(path, label, dataset, colors):
    """Write a label map as the data set's benchmark wants it.

    Args:
        path (str or pathlib.Path): the PNG file; it appears whole.
        label (numpy.ndarray, (H, W), int32): the class of each pixel.
        dataset (str): 'cityscapes' (its label ids), 'voc' (classes, with the
            palette) or 'ade20k' (class + 1).
        colors (numpy.ndarray, (n_class, 3), uint8): the palette.

    """
    from PIL import Image

    from models.utils.files import atomic_path
    values = {'cityscapes': np.array(CITYSCAPES_IDS),
              'voc': np.arange(len(colors)), 'ade20k': np.arange(1, 151)}
    picture = Image.fromarray(values[dataset].astype(np.uint8)[label])
    if dataset == 'voc':
        picture.putpalette(colors.tobytes())
    with atomic_path(path) as temporary:
        picture.save(temporary, format='PNG')
