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
import tarfile
import typing
import unicodedata
import urllib.parse
import zipfile
import zlib

from convert.sources import TarMember
from media.inputs import is_hidden
from models.utils.download import check_space, download
from models.utils.errors import DownloadError, InputError
from models.utils.files import locked

IMAGE_ENDINGS = '.jpg', '.jpeg', '.png'  # of own images in VOC2012's layout
MAX_MEMBERS = 200_000  # (44,000 in ADE20K's)
MAX_BYTES = 32 << 30  # unpacked (11 GB in Cityscapes')
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError,
          NotImplementedError, RuntimeError, OverflowError, ValueError,
          FileExistsError, NotADirectoryError, IsADirectoryError,
          *([zipfile.lzma.LZMAError] if zipfile.lzma else []))


class Archive(typing.NamedTuple):
    """An official archive of a dataset."""

    folder: str  # in it, which is kept
    url: str
    sha1: str | None  # None: it needs a login

    @property
    def name(self):
        return pathlib.PurePosixPath(urllib.parse.urlsplit(self.url).path).name


# The addresses are those of ChainerCV's classes of datasets; the digests those
# that GluonCV's scripts check.
VOC = Archive(
    'VOCdevkit/VOC2012', 'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/'
    'VOCtrainval_11-May-2012.tar', '4e443f8a2eca6b1dac8a6c57641b67dd40621a49')
ADE20K = Archive(
    'ADEChallengeData2016', 'http://data.csail.mit.edu/places/ADEchallenge/'
    'ADEChallengeData2016.zip', '219e1696abb36c8ba3a3afe7fb2f4b4606a897c7')
ADE20K_TEST = Archive(
    'release_test', 'http://data.csail.mit.edu/places/ADEchallenge/'
    'release_test.zip', 'e05747892219d10e9243933371a497e905a4860c')
CITYSCAPES = [
    Archive(name, 'https://www.cityscapes-dataset.com/downloads/'
            f'{name}_trainvaltest.zip', None)
    for name in ('leftImg8bit', 'gtFine')]

# Where images and labels are; the last labels where there are no others.
LAYOUTS = {
    'cityscapes': ('leftImg8bit/{split}/*/*_leftImg8bit.png',
                   'gtFine/{split}/*/*_gtFine_labelIds.png',
                   'gtFine/{split}/*/*_gtFine_labelTrainIds.png'),
    'ade20k': ('images/{split}/*.jpg', 'annotations/{split}/*.png'),
}


def dataset_folder(dataset, split):
    """Return the folder of a dataset, where ChainerCV keeps it.

    What is missing is unpacked from archives that lie there, or downloaded.

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
    archives = {'voc': [VOC], 'cityscapes': CITYSCAPES,
                'ade20k': [ADE20K_TEST if split == 'test' else ADE20K]}
    missing = [archive for archive in archives[dataset]
               if not (folder / archive.folder).is_dir()]
    by_hand = [archive.name for archive in missing if archive.sha1 is None
               and not (folder / archive.name).is_file()]
    if by_hand:
        raise InputError(
            f'{dataset} needs a login: put {" and ".join(by_hand)} from '
            f'www.cityscapes-dataset.com into {folder}, or give --data-dir')
    for archive in missing:
        with locked(folder / archive.name):
            if not (folder / archive.folder).is_dir():
                _bring(archive, folder)
    return folder


def _bring(archive, folder):
    """Unpack an archive that was put into the folder, or a downloaded one."""
    if (folder / archive.name).is_file():
        _unpack(folder / archive.name, archive, folder)
        return
    try:
        download(archive.url, folder, lambda part: (
            _unpack(part, archive, folder), part.unlink()))
    except DownloadError as error:
        raise InputError(
            f'{archive.name} cannot be downloaded ({error}): put it into '
            f'{folder}, or give --data-dir') from None


def _unpack(path, archive, folder):
    """Unpack the official archive; its folder appears whole or not at all."""
    if archive.sha1 is not None:
        with open(path, 'rb') as file:
            digest = hashlib.file_digest(file, 'sha1').hexdigest()
        if digest != archive.sha1:
            raise InputError(
                f'{archive.name} is not the official archive (SHA-1 {digest}, '
                f'not {archive.sha1}): unpack it yourself, and give --data-dir')
    print(f'unpacking {archive.name} to {folder}', file=sys.stderr, flush=True)
    temporary = folder / f'.{archive.name}.unpacked'
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        unpack(path, temporary)
        target = folder / archive.folder
        if not (temporary / archive.folder).is_dir():
            raise InputError(f'{path} holds no {archive.folder}')
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / archive.folder, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_official(dataset, root, split):
    """Find a split of a dataset; a label of ADE20K's split test is None.

    Raise InputError where there is no image, or an image or label is missing.
    """
    if dataset == 'voc':
        return _voc(root, split)
    if dataset == 'ade20k' and split == 'test':
        return _ade20k_test(root)
    if dataset == 'ade20k':
        root = _first_folder(root, 'ADEChallengeData2016')
        split = {'val': 'validation', 'train': 'training'}.get(split, split)
    patterns = [pattern.format(split=glob.escape(split))
                for pattern in LAYOUTS[dataset]]
    images, *labels = [
        {path.name.removesuffix(pattern.rpartition('*')[2]): path
         for path in _found(root, pattern)} for pattern in patterns]
    return _paired(images, next(filter(None, labels), {}),
                   *(f'{root}/{pattern}' for pattern in patterns[:2]))


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
        label = _file(root / 'SegmentationClass', [f'{name}.png'])
        if label is None:
            raise InputError(f'{root}/SegmentationClass/{name}.png is missing, '
                             f'and {listing} lists it')
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
    path = _file(folder, [name + each for ending in IMAGE_ENDINGS
                          for each in (ending, ending.upper())])
    if path is None:
        raise InputError(
            f'{folder}/{name}.jpg (or {", ".join(IMAGE_ENDINGS[1:])}) is '
            f'missing, and {listing} lists it')
    return path


def _file(folder, names):
    """Return the first file that exists, in either form of Unicode: macOS
    stores letters and accents apart.
    """
    paths = (folder / unicodedata.normalize(form, name)
             for name in names for form in ('NFC', 'NFD'))
    return next(filter(pathlib.Path.is_file, paths), None)


def _ade20k_test(root):
    """Its images come in an archive of their own, without labels."""
    folder = _first_folder(root, 'release_test/testing', 'testing')
    images = _found(folder, '*.jpg')
    if not images:
        raise InputError(f'no image {folder}/*.jpg: for --split test, '
                         '--data-dir is the folder that holds release_test')
    return [(path.stem, path, None) for path in images]


def pair_folders(image_folder, label_folder):
    """Pair images and labels by their paths without ending."""
    found = []
    for folder, endings in ((image_folder, IMAGE_ENDINGS),
                            (label_folder, ('.png',))):
        paths = [path for path in _found(folder, '**/*')
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


def _found(folder, pattern):
    """Return the paths below a folder that match, sorted, without hidden ones.
    """
    return [path for path in sorted(folder.glob(pattern)) if not any(
        map(is_hidden, path.relative_to(folder).parts))]


def _first_folder(root, *below):
    return next((root / name for name in below if (root / name).is_dir()),
                root)


def _paired(images, labels, images_from, labels_from):
    images, labels = map(_by_form, (images, labels))
    if not images:
        raise InputError(f'no image {images_from}: check --data-dir and '
                         '--split, or --images')
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            raise InputError(f'{images[name]} has no label among '
                             f'{labels_from}')
        raise InputError(f'{labels[name]} has no image among {images_from}')
    return [(name, images[name], labels[name]) for name in sorted(images)]


def _by_form(paths):
    """Return name -> path with names in one form of Unicode, if they differ."""
    result = {unicodedata.normalize('NFC', name): path
              for name, path in paths.items()}
    return result if len(result) == len(paths) else paths


def unpack(archive, folder):
    """Unpack a .tar or .zip into a folder that does not exist yet.

    Count and sizes are bounded. The standard library lets no member out of the
    folder, and makes no device.

    Raises:
        InputError: the archive is damaged, too large, or a member is refused.
        OSError: the folder cannot be written.
    """
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _check_sizes(archive, folder, [
                    each.file_size for each in opened.infolist()])
                opened.extractall(folder)
            return
        with tarfile.open(archive, 'r:', tarinfo=TarMember) as opened:
            _check_sizes(archive, folder, [each.size for each in opened])
            # tarfile takes a damaged header for the end.
            opened.fileobj.seek(opened.offset)
            if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(
                    tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f'damaged at byte {opened.offset}')
            opened.extractall(folder, filter='data')
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f'{archive} cannot be unpacked ({error}): download '
                         'it again') from None


def _check_sizes(archive, folder, sizes):
    if len(sizes) > MAX_MEMBERS or sum(sizes) > MAX_BYTES:
        raise InputError(f'{archive} holds more than {MAX_MEMBERS} files or '
                         f'{MAX_BYTES} bytes: nothing is unpacked')
    check_space(folder, sum(sizes))
