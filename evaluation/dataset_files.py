"""Where a dataset is kept; VOC2012 and ADE20K are downloaded there."""
import hashlib
import os
import pathlib
import shutil
import sys
import typing
import urllib.parse

from evaluation.unpacking import unpack
from models.utils.download import download_and_use
from models.utils.errors import DownloadError, InputError
from models.utils.files import locked


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
    path = folder / archive.name
    if path.is_file():
        _check_digest(path, archive)
        _unpack(path, archive, folder)
        return

    def check(part):
        _check_digest(part, archive)
        _unpack(part, archive, folder)

    try:
        download_and_use(archive.url, folder, check, lambda part: part.unlink())
    except DownloadError as error:
        raise InputError(
            f'{archive.name} cannot be downloaded ({error}): put it into '
            f'{folder}, or give --data-dir') from None


def _check_digest(path, archive):
    """Raise InputError where a file is not the official archive."""
    if archive.sha1 is None:
        return
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha1').hexdigest()
    if digest != archive.sha1:
        raise InputError(
            f'{archive.name} is not the official archive (SHA-1 {digest}, not '
            f'{archive.sha1}): unpack it yourself, and give --data-dir')


def _unpack(path, archive, folder):
    """Unpack; the archive's folder appears whole or not at all."""
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
