"""The pretrained models: what they are for, and where they come from."""
import os
import pathlib
import sys

from .utils.errors import InputError, describe_os_error

# ChainerCV's conversions of the official frozen graphs, and these themselves.
# `tf_class` counts the outputs of the TensorFlow graph; ADE20K's channel 0
# ("other") is dropped.
CHAINERCV = 'https://chainercv-models.preferred.jp/'
# The store behind http://download.tensorflow.org/models/, by https.
TENSORFLOW = ('https://storage.googleapis.com/download.tensorflow.org/'
              'models/')
PRETRAINED_MODELS = {
    'voc': {
        'n_class': 21, 'tf_class': 21, 'min_input_size': (513, 513),
        'npz': f'{CHAINERCV}deeplabv3plus_xception65_voc_converted_'
               '2019_02_15.npz',
        'tarball': f'{TENSORFLOW}deeplabv3_pascal_train_aug_2018_01_04.tar.gz',
    },
    'cityscapes': {
        'n_class': 19, 'tf_class': 19, 'min_input_size': (1025, 2049),
        'npz': f'{CHAINERCV}deeplabv3plus_xception65_cityscapes_converted_'
               '2019_02_15.npz',
        'tarball': f'{TENSORFLOW}deeplabv3_cityscapes_train_2018_02_06.tar.gz',
    },
    'ade20k': {
        'n_class': 150, 'tf_class': 151, 'min_input_size': (513, 513),
        'npz': f'{CHAINERCV}deeplabv3plus_xception65_ade20k_converted_'
               '2019_03_08.npz',
        'tarball': f'{TENSORFLOW}deeplabv3_xception_ade20k_train_2018_05_29'
                   '.tar.gz',
    },
}
MIRROR = 'DEEPLAB_MIRROR'  # environment: where the same files lie as well


def pretrained_path(pretrained_model: str | os.PathLike) -> pathlib.Path:
    """Return the path of the npz of a pretrained model.

    Args:
        pretrained_model (str or pathlib.Path): a name of `PRETRAINED_MODELS`,
            downloaded if it is not in ChainerCV's cache yet, or a path.

    Raises:
        InputError: the name or path does not exist, the download fails, or
            what was downloaded has changed since.

    """
    if pretrained_model in PRETRAINED_MODELS:
        return _cached(pretrained_model)
    path = pathlib.Path(pretrained_model)
    if not path.is_file():
        raise InputError(f'{path} is no file: give the path of an npz, or one '
                         f'of {", ".join(PRETRAINED_MODELS)}')
    return path


def read_settings(path: pathlib.Path, pretrained_model: str | os.PathLike
                  ) -> dict:
    """Return what is known of a pretrained model before it is loaded.

    Args:
        path (pathlib.Path): of its npz.
        pretrained_model (str or pathlib.Path): as it was asked for.

    Returns:
        dict: 'n_class'; 'metadata', see `models.weights.METADATA_FORMS`;
        and where they are known 'min_input_size' and 'output_stride'.

    Raises:
        InputError: the npz is damaged, or of another network.

    """
    from .weights import read_npz
    metadata, shapes = read_npz(path)
    logits = shapes.get('decoder/conv_logits/W', ())
    if len(logits) != 4:
        raise InputError(f'{path} does not hold a DeepLabV3+ Xception65: it '
                         'has no decoder/conv_logits/W with four axes')
    if metadata.get('n_class', logits[0]) != logits[0]:
        raise InputError(f'{path} says that it has {metadata["n_class"]} '
                         f'classes, and has {logits[0]}: convert it again')
    settings = {'n_class': logits[0], 'metadata': metadata}
    if pretrained_model in PRETRAINED_MODELS:
        settings['min_input_size'] = (
            PRETRAINED_MODELS[pretrained_model]['min_input_size'])
    for key in 'min_input_size', 'output_stride':
        if key in metadata:
            settings[key] = metadata[key]
    return settings


def _cached(name):
    from chainer.dataset import get_dataset_directory

    from .utils.files import locked, sha256
    folder = get_dataset_directory('pfnet/chainercv/models')
    path = pathlib.Path(folder, PRETRAINED_MODELS[name]['npz'].split('/')[-1])
    if not path.exists():
        with locked(path):
            if not path.exists():
                _obtain(name, path)
    recorded = _recorded_sha256(path)
    if recorded.exists() and recorded.read_text().split()[:1] != [
            sha256(path)]:
        raise InputError(f'{path} has changed since it was downloaded: remove '
                         f'it and {recorded.name}, and it is downloaded again')
    return path


def _obtain(name, path):
    """Download the npz, or the official graph and convert it."""
    reasons = []
    for url, take in _sources(name):
        print(f'downloading {url} to {path.parent}', file=sys.stderr,
              flush=True)
        try:
            take(name, url, path)
        except InputError as error:
            reasons.append(f'{url}: {error}')
        except OSError as error:
            reasons.append(f'{url}: {describe_os_error(error)}')
        else:
            return
    raise InputError(
        f'the {name} model cannot be downloaded ({"; ".join(reasons)}): put '
        f'the npz at {path}, or take the official archive and run '
        f'`python tf2npz.py {name} ARCHIVE.tar.gz {name}.npz`, then give '
        f'`--pretrained-model {name}.npz`')


def _sources(name):
    """Yield (address, function that takes it), the best first."""
    mirror = os.environ.get(MIRROR)
    for kind, take in ('npz', _take_npz), ('tarball', _take_tarball):
        url = PRETRAINED_MODELS[name][kind]
        if mirror:
            yield f'{mirror.rstrip("/")}/{url.split("/")[-1]}', take
        yield url, take


def _take_npz(name, url, path):
    from .utils.download import download
    part = download(url, path.parent, lambda part: _check(name, part))
    _record(part, path)
    os.replace(part, path)


def _take_tarball(name, url, path):
    from convert.conversion import Conversion
    from convert.sources import open_source

    from .utils.download import download
    from .utils.files import atomic_path
    found = []

    def check(part):
        found[:] = [Conversion(open_source(part), name)]

    part = download(url, path.parent, check)
    with atomic_path(path) as temporary:
        found[0].write(temporary)
        _check(name, temporary)
        _record(temporary, path)
    part.unlink()


def _check(name, path):
    """Raise InputError unless a file holds the weights of a model."""
    from .deeplab_v3_plus import DeepLabV3plusXception65
    from .weights import leave_unset, load_weights
    link = DeepLabV3plusXception65(PRETRAINED_MODELS[name]['n_class'],
                                   initialW=leave_unset)
    load_weights(path, link)


def _record(part, path):
    """Keep the digest of a file that is about to get its name."""
    from .utils.files import atomic_path, sha256
    with atomic_path(_recorded_sha256(path)) as temporary:
        temporary.write_text(f'{sha256(part)}  {path.name}\n')


def _recorded_sha256(path):
    return pathlib.Path(f'{path}.sha256')
