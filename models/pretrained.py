"""The pretrained models: what they are for, and where they come from."""
import pathlib
import urllib.error
import urllib.request
import zipfile

from models.errors import InputError
from models.files import atomic_path

# ChainerCV's conversions of the official frozen graphs. `tf_class` counts the
# outputs of the TensorFlow graph; ADE20K's channel 0 ("other") is dropped.
PRETRAINED_MODELS = {
    'voc': {
        'n_class': 21, 'tf_class': 21, 'min_input_size': (513, 513),
        'url': 'https://chainercv-models.preferred.jp/'
               'deeplabv3plus_xception65_voc_converted_2019_02_15.npz'},
    'cityscapes': {
        'n_class': 19, 'tf_class': 19, 'min_input_size': (1025, 2049),
        'url': 'https://chainercv-models.preferred.jp/'
               'deeplabv3plus_xception65_cityscapes_converted_2019_02_15.npz'},
    'ade20k': {
        'n_class': 150, 'tf_class': 151, 'min_input_size': (513, 513),
        'url': 'https://chainercv-models.preferred.jp/'
               'deeplabv3plus_xception65_ade20k_converted_2019_03_08.npz'},
}
TIMEOUT = 30  # seconds without an answer


def pretrained_path(pretrained_model):
    """Return the path of the npz of a pretrained model.

    Args:
        pretrained_model (str or pathlib.Path): a name of `PRETRAINED_MODELS`,
            downloaded if it is not in ChainerCV's cache yet, or a path.

    Raises:
        InputError: the name or path does not exist, or the download fails.

    """
    if pretrained_model in PRETRAINED_MODELS:
        return _cached(pretrained_model)
    path = pathlib.Path(pretrained_model)
    if not path.is_file():
        raise InputError(f'{path} is no file: give the path of an npz, or one '
                         f'of {", ".join(PRETRAINED_MODELS)}')
    return path


def _cached(name):
    from chainer.dataset import get_dataset_directory
    url = PRETRAINED_MODELS[name]['url']
    folder = get_dataset_directory('pfnet/chainercv/models')
    path = pathlib.Path(folder, url.rpartition('/')[2])
    if not path.exists():
        _download(url, path, name)
    return path


def _download(url, path, name):
    print(f'downloading {url} to {path}', flush=True)
    try:
        with atomic_path(path) as temporary:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response, \
                    open(temporary, 'wb') as file:
                while block := response.read(1 << 20):
                    file.write(block)
            if not zipfile.is_zipfile(temporary):
                raise InputError('what came is not an npz file')
    except (InputError, OSError) as error:
        reason = getattr(error, 'reason', None) or error
        raise InputError(
            f'the {name} model cannot be downloaded from {url} ({reason}): '
            f'put the file at {path}, or convert the official graph with '
            f'`python tf2npz.py {name} frozen_inference_graph.pb {name}.npz` '
            f'and give `--pretrained-model {name}.npz`') from None
