"""Where a dataset is: downloaded, unpacked, its images and labels found.

Cityscapes, VOC2012 and ADE20K are as unpacked from the official archives. What
is found is a sorted list of (name, path of the image, path of the label).
"""
import glob
import hashlib
import os
import pathlib
import shutil
import sys
import typing
import unicodedata

from media.inputs import is_hidden
from models.utils.download import check_space, download, file_name_of
from models.utils.errors import DownloadError, InputError
from models.utils.files import atomic_folder, locked

IMAGE_ENDINGS = '.jpg', '.jpeg', '.png'
LABEL_ENDINGS = ('.png',)
CITYSCAPES_IMAGE = '_leftImg8bit.png'
IDS, TRAIN_IDS = '_gtFine_labelIds.png', '_gtFine_labelTrainIds.png'
CITYSCAPES = 'leftImg8bit', 'gtFine'  # its folders, and names of archives


class Archive(typing.NamedTuple):
    """An official archive of a dataset."""

    folder: str  # in it, which is kept
    url: str
    sha1: str


# The addresses are those of ChainerCV's classes of datasets; the digests those
# that GluonCV's scripts check.
ARCHIVES = {
    'voc': Archive(
        'VOCdevkit/VOC2012',
        'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/'
        'VOCtrainval_11-May-2012.tar',
        '4e443f8a2eca6b1dac8a6c57641b67dd40621a49'),
    'ade20k': Archive(
        'ADEChallengeData2016', 'http://data.csail.mit.edu/places/ADEchallenge/'
        'ADEChallengeData2016.zip', '219e1696abb36c8ba3a3afe7fb2f4b4606a897c7'),
    'ade20k test': Archive(
        'release_test', 'http://data.csail.mit.edu/places/ADEchallenge/'
        'release_test.zip', 'e05747892219d10e9243933371a497e905a4860c'),
}


def dataset_folder(dataset, split):
    """Return the folder of a dataset, where ChainerCV keeps it; what is missing
    is downloaded and unpacked.

    Args:
        dataset (str): 'cityscapes', 'voc' or 'ade20k'.
        split (str): ADE20K's 'test' comes in an archive of its own.

    Returns:
        pathlib.Path: as `LabelledImages` takes it.

    Raises:
        InputError: it is unavailable; the message says what to put where.
    """
    from chainer.dataset import get_dataset_directory
    folder = pathlib.Path(get_dataset_directory(f'pfnet/chainercv/{dataset}'))
    if dataset == 'cityscapes':
        if not all((folder / name).is_dir() for name in CITYSCAPES):
            archives = ' and '.join(
                f'{name}_trainvaltest.zip' for name in CITYSCAPES)
            raise InputError(
                f'cityscapes needs a login: unpack {archives} from '
                f'www.cityscapes-dataset.com into {folder}, or give --data-dir')
        return folder
    archive = ARCHIVES.get(f'{dataset} {split}', ARCHIVES[dataset])
    target = folder / archive.folder
    if not target.is_dir():
        with locked(folder / file_name_of(archive.url)):
            if not target.is_dir():
                _bring(archive, folder)
    return folder


def _bring(archive, folder):
    """Download and unpack an archive."""
    try:
        download(archive.url, folder, lambda part: (
            _unpack(part, archive, folder), part.unlink()))
    except DownloadError as error:
        raise InputError(
            f'{file_name_of(archive.url)} cannot be downloaded ({error}): '
            f'unpack it into {folder}, or give --data-dir') from None


def _unpack(path, archive, folder):
    """Unpack the official archive; its folder appears whole or not at all."""
    name, target = file_name_of(archive.url), folder / archive.folder
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha1').hexdigest()
    if digest != archive.sha1:
        raise InputError(
            f'{name} is not the official archive (SHA-1 {digest}, not '
            f'{archive.sha1}): unpack it yourself, and give --data-dir')
    print(f'unpacking {name} to {folder}', file=sys.stderr, flush=True)
    check_space(folder, path.stat().st_size)  # images pack hardly smaller
    kind = name.rpartition('.')[2]
    with atomic_folder(target) as temporary:
        shutil.unpack_archive(path, temporary, kind,
                              filter='data' if kind == 'tar' else None)
        os.replace(temporary / archive.folder, target)


def find_official(dataset, root, split):
    """Find a split of a dataset; a label of ADE20K's split test is None.

    Raise InputError where there is no image, or an image or label is missing.
    """
    if dataset == 'cityscapes':
        images, labels = (root / name / split for name in CITYSCAPES)
        ids = IDS if _by_name(labels, [IDS]) else TRAIN_IDS
        return [(pathlib.PurePath(name).name, *paths)  # without the city
                for name, *paths in pair_folders(
                    images, labels, [CITYSCAPES_IMAGE], [ids])]
    if dataset == 'voc':
        root = _first_folder(root, 'VOCdevkit/VOC2012', 'VOC2012')
        return pair_folders(
            root / 'JPEGImages', root / 'SegmentationClass',
            listing=root / 'ImageSets' / 'Segmentation' / f'{split}.txt')
    if split == 'test':  # without labels
        return pair_folders(
            _first_folder(root, 'release_test/testing', 'testing'), None)
    root = _first_folder(root, 'ADEChallengeData2016')
    split = {'val': 'validation', 'train': 'training'}.get(split, split)
    return pair_folders(root / 'images' / split, root / 'annotations' / split)


def _first_folder(root, *below):
    return next((root / name for name in below if (root / name).is_dir()),
                root)


def pair_folders(image_folder, label_folder, image_endings=IMAGE_ENDINGS,
                 label_endings=LABEL_ENDINGS, listing=None):
    """Pair images and labels by their paths without ending: all, or those that
    a list names. Without a folder of labels, these are None.
    """
    images = _by_name(image_folder, image_endings)
    labels = (dict.fromkeys(images) if label_folder is None else
              _by_name(label_folder, label_endings))
    names = sorted(images | labels) if listing is None else _listed(listing)
    of_list = f' that {listing} lists' if listing else ''
    if not names or not images:
        raise InputError(
            f'no image {image_folder}/*{"|".join(image_endings)}'
            f'{of_list}: check --data-dir and --split, or --images')
    for name in names:
        for kind, found, folder, endings in (
                ('image', images, image_folder, image_endings),
                ('label', labels, label_folder, label_endings)):
            if name not in found:
                raise InputError(f'the {kind} {folder}/{name}'
                                 f'{"|".join(endings)}{of_list} is missing')
    return [(name, images[name], labels[name]) for name in names]


def _listed(path):
    if not path.is_file():
        raise InputError(
            f'there is no {path}: check --data-dir, which holds VOCdevkit, and '
            "--split; a split of your own is a list of its images' names, "
            'without ending, one a line')
    return sorted(unicodedata.normalize('NFC', name)
                  for name in read_lines(path))


def read_lines(path):
    """Return the lines of a list, which may be from a Windows program."""
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError:
        raise InputError(f'{path} is no text in UTF-8: save it as such'
                         ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _by_name(folder, endings):
    """Return name -> path of the files below a folder that have an ending of
    these, but for hidden ones.
    """
    result = {}
    for below in sorted(glob.glob('**', root_dir=folder, recursive=True)):
        path = folder / below
        stem = next((below[:-len(ending)] for ending in endings
                     if below.lower().endswith(ending.lower())), None)
        if (stem is None or any(map(is_hidden, below.split('/')))
                or not path.is_file()):
            continue
        name = unicodedata.normalize('NFC', stem)
        if name in result:
            raise InputError(f'{path} and another file differ only in their '
                             'endings: keep one')
        result[name] = path
    return result
