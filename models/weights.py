"""Weights in an npz file: written whole, checked before a value is used.

The file is a plain `numpy.savez` archive of the link's parameters under
ChainerCV's names ('aspp/proj/conv/W', ...), which
`chainer.serializers.load_npz` reads as well. Arrays under 'metadata/' say
what the weights are for (see `METADATA_FORMS`); they are optional.
"""
import contextlib
import itertools
import pathlib
import re
import zipfile

import numpy as np

from . import constants
from .classes import dataset_of
from .resizing import ResizeRange
from .utils.errors import InputError, describe_differences

FORMAT_VERSION, LATEST_VERSION = 1, 3
# Version of files with these, which an older program would run in another way.
SINCE = {'atrous_rates': 2, 'scales': 2, 'flip': 2, 'resize_range': 2,
         'background_outputs': 3}
METADATA = 'metadata/'
METADATA_FORMS = {  # type, and sides (None: any but 0)
    'format_version': (np.integer, ()),
    'task': (np.str_, ()),  # the dataset, or 'custom'
    'n_class': (np.integer, ()),
    'output_stride': (np.integer, ()),
    'min_input_size': (np.integer, (2,)),  # height, width in pixels
    'atrous_rates': (np.integer, (3,)),  # of the ASPP, where not the official
    'scales': (np.floating, (None,)),  # over which the source averages
    'flip': (np.bool_, ()),  # whether also over the mirrored image
    'resize_range': (np.integer, (4,)),  # see resizing.ResizeRange
    # Kernel and bias of outputs that are no classes, but have a part in the
    # softmax that the source averages.
    'background_outputs': (np.floating, (None, 257)),
    'source_file': (np.str_, ()),
    'source_sha256': (np.str_, ()),
    'class_names': (np.str_, (None,)),  # of a user's own classes
    'class_colors': (np.uint8, (None, 3)),  # RGB
}
RANGES = {'format_version': (FORMAT_VERSION, LATEST_VERSION),
          'resize_range': (0, constants.MAX_INPUT_SIDE)}
MAX_BYTES = 1 << 30  # of all arrays (165 MB)
MAX_METADATA_BYTES = 1 << 20  # in one array
LOGITS = 'decoder/conv_logits/W'
# Other files that are taken for an npz: how they begin; for archives, how the
# name of a member ends.
TENSORFLOW = 'a TensorFlow graph, or an archive: convert it with tf2npz.py'
OTHER_FILES = {
    rb'\x89HDF': 'an HDF5 file', rb'....TFL3': 'a TFLite model',
    rb'\x80[\x02-\x05]': 'a pickle, as PyTorch makes it',
    rb'.{8}\{"': 'a safetensors file', rb'\x93NUMPY': 'a single array (.npy)',
    rb'\x08[\x03-\x20][\x12\x1a\x42:]': 'an ONNX model',
    rb'\s*<(!|html|head|body|\?xml)': 'a web page, not the file itself',
    rb'version https://git-lfs': 'a pointer of Git LFS (git lfs pull)',
    rb'\x0a.{1,5}\x0a|\x08\x01\x12': TENSORFLOW,
    rb'\x1f\x8b|BZh|\xfd7zXZ|.{257}ustar': TENSORFLOW,
}
OTHER_ARCHIVES = {'data.pkl': 'a PyTorch checkpoint', '.pb': TENSORFLOW,
                  '.weights.h5': 'a Keras model'}


def write_npz(path, arrays, metadata):
    """Write weights and what they are for.

    Args:
        path (str or pathlib.Path): the npz file, see `atomic_path`.
        arrays (iterable of (str, numpy.ndarray)): names and values, taken one
            at a time.
        metadata (dict): see `METADATA_FORMS`; 'format_version' is added.
    """
    version = max([FORMAT_VERSION, *map(SINCE.get, metadata.keys() & SINCE)])
    known = {METADATA + name: value for name, value in {
        'format_version': version, **metadata}.items()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, value in itertools.chain(known.items(), arrays):
            # ZipInfo's fixed date makes equal weights equal files.
            with archive.open(zipfile.ZipInfo(f'{name}.npy'), 'w',
                              force_zip64=True) as file:
                np.lib.format.write_array(
                    file, np.asarray(value, order='C'), allow_pickle=False)


class WeightsFile:
    """What an npz file says of its weights; the weights on demand.

    Args:
        path (str or pathlib.Path): the npz file. By default there is none, and
            the attributes are those of a link without a pretrained model.

    Attributes:
        metadata (dict): a name of `METADATA_FORMS` -> int, str or list; empty
            for a file that was not written by `write_npz`.
        n_class (int): number of classes; None without a file.
        output_stride (int), scales (tuple of float), flip (bool): the file's
            own, else the defaults.
        min_input_size (pair of int): likewise; the default is that of the
            dataset with as many classes.
        resize_range (ResizeRange): or None.
        background_outputs (numpy.ndarray, (K, 257), float32): or None.

    Raises:
        InputError: the file is damaged, holds pickled objects or another
            network.
        OSError: it cannot be opened.
    """

    def __init__(self, path=None):
        self.path, self.metadata, self.n_class = path, {}, None
        if path is not None:
            self.path = pathlib.Path(path)
            with self._opened() as npz:
                self._prefix = self._find_prefix(npz)
                self.n_class = len(self._array(npz, self._prefix + LOGITS))
                self.metadata = self._read_metadata(npz)
        known = self.metadata
        dataset = dataset_of(self.n_class, known.get('task'))
        self.min_input_size = known.get(
            'min_input_size', constants.DATASETS.get(dataset, {}).get(
                'min_input_size', constants.MIN_INPUT_SIZE))
        self.output_stride = known.get('output_stride', constants.OUTPUT_STRIDE)
        self.scales = tuple(known.get('scales', (1.,)))
        self.flip = known.get('flip', False)
        resize_range = known.get('resize_range')
        self.resize_range = resize_range and ResizeRange(*resize_range)
        outputs = known.get('background_outputs')
        self.background_outputs = outputs and np.float32(outputs)

    def atrous_rates(self, output_stride):
        """Return the dilations of the ASPP at an output stride: three ints.

        The source's own reach as many pixels at either output stride. Raise
        InputError where they cannot.
        """
        rates = self.metadata.get('atrous_rates')
        if rates is None:
            return constants.OUTPUT_STRIDES[output_stride]['aspp']
        scaled = [rate * self.output_stride / output_stride for rate in rates]
        if not all(rate.is_integer() for rate in scaled):
            raise InputError(f'{self.path} has the atrous rates {rates} at '
                             f'output stride {self.output_stride}, which '
                             f'output stride {output_stride} cannot have')
        return tuple(map(int, scaled))

    def load_into(self, link):
        """Give a link on a CPU these weights, once all are known to fit.

        Raise InputError where names, shapes or types are not the link's, a
        value is not finite, or the file is damaged; the link is then
        unchanged.
        """
        from chainer import serializers
        arrays, wanted = self.arrays(), named_arrays(link)
        unfit = (f'{name} holds {arrays[name].dtype}, not {array.dtype}'
                 for name, array in wanted.items() if name in arrays
                 and not np.can_cast(arrays[name].dtype, array.dtype,
                                     'same_kind'))
        differences = describe_differences(_shapes(arrays), _shapes(wanted),
                                           unfit)
        if differences:
            raise InputError(f'{self.path} does not hold the weights of this '
                             f'DeepLabV3+ Xception65: {differences}')
        for path, param in link.namedparams():  # without a copy
            param.array = arrays.pop(path[1:]).astype(param.dtype, copy=False)
        serializers.NpzDeserializer(arrays, strict=False).load(link)

    def arrays(self):
        """Return name -> array of the weights; InputError as `load_into`."""
        with self._opened() as npz:
            return {name.removeprefix(self._prefix): self._array(npz, name)
                    for name in npz.files if name.startswith(self._prefix)
                    and not name.startswith(METADATA)}

    @contextlib.contextmanager
    def _opened(self):
        """Open the file, of limited size; say in one line how it is damaged."""
        try:
            kind = kind_of(self.path, OTHER_FILES, OTHER_ARCHIVES)
            if kind is not None:
                raise InputError(f'an npz is needed, and {self.path} is {kind}')
            with zipfile.ZipFile(self.path) as archive:
                n_bytes = sum(each.file_size for each in archive.infolist())
            if n_bytes > MAX_BYTES:
                raise ValueError(f'it unpacks to {n_bytes} bytes')
            with np.load(self.path, allow_pickle=False) as npz:
                yield npz
        except InputError:
            raise
        except Exception as error:  # many, of zipfile, zlib and NumPy
            if isinstance(error, OSError) and error.filename:
                raise  # it cannot be opened
            raise InputError(f'{self.path} is not a whole npz file ({error}): '
                             'convert it with tf2npz.py, or download it again'
                             ) from None

    def _find_prefix(self, npz):
        """Return what is before the names of the link's arrays: of a link that
        wraps it, or in a snapshot of a Trainer; often ''.
        """
        found = [name.removesuffix(LOGITS) for name in npz.files
                 if f'/{name}'.endswith(f'/{LOGITS}')]
        if '' not in found and len(found) != 1:
            raise InputError(f'{self.path} does not hold a DeepLabV3+ '
                             f'Xception65: {len(found)} arrays are named '
                             f'{LOGITS}, and one must be')
        return min(found)

    def _array(self, npz, name):
        array = npz[name]
        if not isinstance(array, np.ndarray):  # NumPy's answer to other files
            raise ValueError(f'{name} is no array')
        if array.dtype.kind == 'f' and not np.isfinite(array).all():
            raise InputError(f'{self.path}: {name} holds a value that is not '
                             'finite')
        return array

    def _read_metadata(self, npz):
        """Return the known metadata; others are of a later version."""
        result = {}
        for key, (kind, sides) in METADATA_FORMS.items():
            name = METADATA + key
            if name not in npz.files:
                continue
            array = self._array(npz, name)
            if not (np.issubdtype(array.dtype, kind)
                    and 0 < array.nbytes <= MAX_METADATA_BYTES
                    and len(array.shape) == len(sides) and all(
                        wanted in {None, side} for side, wanted in zip(
                            array.shape, sides, strict=True))):
                raise InputError(
                    f'{self.path}: {name} is {array.dtype} of shape '
                    f'{array.shape}, which this program never writes')
            result[key] = array.tolist()
        for key, (low, high) in RANGES.items():
            value = result.get(key, low)
            if not low <= np.min(value) <= np.max(value) <= high:
                raise InputError(f'{self.path}: {key} is {value}, and this '
                                 f'program reads {low} to {high}')
        return result


def kind_of(path, files, archives):
    """Return what a file is: how it begins, a regular expression, by `files`;
    how the name of a member ends by `archives`; else None.
    """
    with open(path, 'rb') as file:
        start = file.read(1 << 10)
    names = []
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    found = [kind for end, kind in archives.items()
             if any(name.endswith(end) for name in names)]
    return next(iter(found), None) or next(
        (kind for pattern, kind in files.items() if re.match(
            pattern, start, re.DOTALL | re.IGNORECASE)), None)


def _shapes(arrays):
    return {name: array.shape for name, array in arrays.items()}


def leave_unset(array):
    """An initializer that does nothing: a file gives the weights."""


def named_arrays(link):
    """Return name -> array of all that an npz of this link must hold."""
    from chainer import serializers
    serializer = serializers.DictionarySerializer()
    serializer.save(link)
    return serializer.target
