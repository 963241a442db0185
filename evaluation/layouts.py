"""Find the images and labels of a dataset in its folders, by their names.

Cityscapes, VOC2012 and ADE20K are as unpacked from the official archives.
What is found is a sorted list of (name, path of the image, path of the label).
"""
import pathlib

from models.utils.errors import InputError

IMAGE_ENDINGS = '.jpg', '.jpeg', '.png'  # of own images in VOC2012's layout


def find_official(dataset, root, split):
    """Find a split of a dataset; a label of ADE20K's split test is None.

    Raise InputError where there is no image, or an image or label is missing.
    """
    return _FIND[dataset](root, split)


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
        if (root / 'JPEGImages').is_dir():
            raise InputError(f'there is no {listing}: write the names of the '
                             "split's images into it, without ending, one a "
                             'line; or give another --split')
        raise InputError(f'there is no {root}/JPEGImages: --data-dir is the '
                         'folder that holds VOCdevkit, and --split is train, '
                         'val or trainval')
    result = []
    for name in sorted(read_lines(listing)):
        if pathlib.PurePath(name).name != name:
            raise InputError(f'{listing} lists {name}, and must list names '
                             'without a folder')
        label = root / 'SegmentationClass' / f'{name}.png'
        if not label.is_file():
            raise InputError(f'{label} is missing, and {listing} lists it')
        result.append((name, _voc_image(root / 'JPEGImages', name, listing),
                       label))
    if not result:
        raise InputError(f'{listing} lists no image')
    return result


def read_lines(path):
    """Return the lines of a list, which may be from a Windows program."""
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError:
        raise InputError(f'{path} is no text in UTF-8: save it as such'
                         ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _voc_image(folder, name, listing):
    """Return an image by its name without ending."""
    for ending in IMAGE_ENDINGS:
        for path in (folder / f'{name}{ending}',
                     folder / f'{name}{ending.upper()}'):
            if path.is_file():
                return path
    raise InputError(f'{folder}/{name}.jpg (or {", ".join(IMAGE_ENDINGS[1:])}) '
                     f'is missing, and {listing} lists it')


def _ade20k(root, split):
    if split == 'test':
        return _ade20k_test(root)
    root = _first_folder(root, 'ADEChallengeData2016')
    folder = {'val': 'validation', 'train': 'training'}.get(split, split)
    images = {path.stem: path for path in sorted(
        (root / 'images' / folder).glob('*.jpg'))}
    labels = {path.stem: path for path in sorted(
        (root / 'annotations' / folder).glob('*.png'))}
    return _paired(images, labels, f'{root}/images/{folder}/*.jpg',
                   f'{root}/annotations/{folder}/*.png')


def _ade20k_test(root):
    """Its images come in an archive of their own, without labels."""
    folder = _first_folder(root, 'release_test/testing', 'testing')
    images = sorted(folder.glob('*.jpg'))
    if not images:
        raise InputError(f'no image {folder}/*.jpg: for --split test, '
                         '--data-dir is the folder that holds release_test')
    return [(path.stem, path, None) for path in images]


def pair_folders(image_folder, label_folder):
    """Pair images and labels by their paths without ending."""
    found = []
    for folder, endings in ((image_folder, IMAGE_ENDINGS),
                            (label_folder, ('.png',))):
        paths = [path for path in sorted(folder.rglob('*'))
                 if path.suffix.lower() in endings and path.is_file()]
        by_name = {path.relative_to(folder).with_suffix('').as_posix(): path
                   for path in paths}
        if len(by_name) < len(paths):
            twice = next(path for path in paths if path not in set(
                by_name.values()))
            raise InputError(f'{twice} and another file differ only in their '
                             'endings: keep one')
        found.append(by_name)
    return _paired(*found, f'{image_folder}/**/*{"|".join(IMAGE_ENDINGS)}',
                   f'{label_folder}/**/*.png')


_FIND = {'cityscapes': _cityscapes, 'voc': _voc, 'ade20k': _ade20k}


def _first_folder(root, *below):
    return next((root / name for name in below if (root / name).is_dir()),
                root)


def _paired(images, labels, images_from, labels_from):
    if not images:
        raise InputError(f'no image {images_from}: check --data-dir and '
                         '--split, or --images')
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            raise InputError(f'{images[name]} has no label among '
                             f'{labels_from}')
        raise InputError(f'{labels[name]} has no image among {images_from}')
    return [(name, images[name], labels[name]) for name in sorted(images)]
