"""The pretrained models: where they come from, and where they are kept."""
import contextlib
import os
import pathlib

from .constants import DATASETS
from .utils.errors import DownloadError, InputError, without_secrets
from .weights import WeightsFile

# ChainerCV's conversions of the official frozen graphs, and the official
# archives (the host behind http://download.tensorflow.org/models/).
_NPZ = 'https://chainercv-models.preferred.jp/deeplabv3plus_xception65_'
_ARCHIVE = ('https://storage.googleapis.com/download.tensorflow.org/models/'
            'deeplabv3_')
URLS = {
    'voc': {
        'npz': f'{_NPZ}voc_converted_2019_02_15.npz',
        'archive': f'{_ARCHIVE}pascal_train_aug_2018_01_04.tar.gz'},
    'cityscapes': {
        'npz': f'{_NPZ}cityscapes_converted_2019_02_15.npz',
        'archive': f'{_ARCHIVE}cityscapes_train_2018_02_06.tar.gz'},
    'ade20k': {
        'npz': f'{_NPZ}ade20k_converted_2019_03_08.npz',
        'archive': f'{_ARCHIVE}xception_ade20k_train_2018_05_29.tar.gz'},
}


def pretrained_path(pretrained_model: str | os.PathLike) -> pathlib.Path:
    """Return the path of the npz of a pretrained model.

    Args:
        pretrained_model (str or pathlib.Path): a key of `URLS`, downloaded at
            the first use to where ChainerCV keeps its models; or a path.

    Raises:
        DownloadError: no host has the npz; the message says what to do.
        InputError: the path is no file.
    """
    if pretrained_model not in URLS:
        path = pathlib.Path(pretrained_model)
        if not path.is_file():
            raise InputError(f'{without_secrets(str(pretrained_model))} is no '
                             'file: give the path of an npz, or one of '
                             f'{", ".join(URLS)}')
        return path
    path = cached_path(pretrained_model)

    def install(part):
        weights, wanted = WeightsFile(part), DATASETS[pretrained_model]
        if weights.n_class != wanted['n_class']:
            raise InputError(f'it has {weights.n_class} classes, not '
                             f'{wanted["n_class"]}')
        weights.arrays()  # raises where one is damaged
        os.replace(part, path)

    if not path.exists():
        obtain(pretrained_model, 'npz', install)
    return path


def cached_path(name):
    """Return where ChainerCV keeps the npz of a model."""
    from chainer.dataset import get_dataset_directory
    return pathlib.Path(get_dataset_directory('pfnet/chainercv/models'),
                        URLS[name]['npz'].rpartition('/')[2])


def obtain(name, kind, install):
    """Download a model's 'npz' or 'archive' unless its npz is there.

    `install` is called with the path of the downloaded file, and raises
    InputError for a wrong one. Another process that wants the same model waits.
    """
    from .utils.download import download, file_name_of
    from .utils.files import locked
    path, url = cached_path(name), URLS[name][kind]
    with contextlib.ExitStack() as stack:
        # tf2npz.py may download the same archive.
        for each in sorted({path, path.parent / file_name_of(url)}):
            stack.enter_context(locked(each))
        if path.exists():  # another process has brought it
            return
        try:
            download(url, path.parent, install)
        except DownloadError as error:
            source = 'zoo' if kind == 'npz' else file_name_of(url)
            raise DownloadError(
                f'the {name} model cannot be downloaded ({error}): run '
                f'`python tf2npz.py {name} {source} {name}.npz` and give '
                f'{name}.npz') from None
