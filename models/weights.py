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
import struct
import tokenize
import zipfile
import zlib

import numpy as np

from .classes import dataset_of
from .constants import (
    DATASETS,
    MAX_INPUT_SIDE,
    MIN_INPUT_SIZE,
    OUTPUT_STRIDE,
    OUTPUT_STRIDES,
)
from .resize_range import ResizeRange
from .utils.errors import InputError, describe_differences, shortened

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
    'resize_range': (np.integer, (4,)),  # see resize_range.ResizeRange
    # Kernel and bias of outputs that are no classes, but have a part in the
    # softmax that the source averages.
    'background_outputs': (np.floating, (None, 257)),
    'source_file': (np.str_, ()),
    'source_sha256': (np.str_, ()),
    'class_names': (np.str_, (None,)),  # of a user's own classes
    'class_colors': (np.uint8, (None, 3)),  # RGB
}
METADATA_LIMIT = 1 << 20  # bytes in one metadata array
MAX_BYTES = 1 << 30  # of all arrays (165 MB)
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
# What zipfile, zlib and NumPy raise for damaged files, as found by fuzzing.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError,
          NotImplementedError, RuntimeError, OverflowError, SyntaxError,
          tokenize.TokenError, OSError, struct.error, MemoryError,
          *([zipfile.lzma.LZMAError] if zipfile.lzma else []))


def write_npz(path, arrays, metadata):
    """Write weights and what they are for.

    Args:
        path (str or pathlib.Path): the npz file, see `atomic_path`.
        arrays (iterable of (str, numpy.ndarray)): names and values, taken one
            at a time.
        metadata (dict): see `METADATA_FORMS`; 'format_version' is added.
    """
    version = max([FORMAT_VERSION, *map(SINCE.get, metadata.keys() & SINCE)])
    known = {METADATA + name: np.asarray(value) for name, value in {
        'format_version': version, **metadata}.items()}
    for name, array in known.items():
        if array.nbytes > METADATA_LIMIT:
            raise InputError(f'{name} takes {array.nbytes} bytes, and an npz '
                             f'holds at most {METADATA_LIMIT}')
    with zipfile.ZipFile(path, 'w') as archive:
        for name, value in itertools.chain(known.items(), arrays):
            # ZipInfo's fixed date makes equal weights equal files.
            with archive.open(zipfile.ZipInfo(f'{name}.npy'), 'w',
                              force_zip64=True) as file:
                array = np.asarray(value, order='C')
                np.lib.format.write_array_header_1_0(
                    file, np.lib.format.header_data_from_array_1_0(array))
                file.write(array.reshape(-1).view(np.uint8))


class WeightsFile:
    """What an npz file says of its weights; the weights on demand.

    Args:
        path (str or pathlib.Path): the npz file. By default there is none, and
            the attributes are those of a link without a pretrained model.

    Attributes:
        path (pathlib.Path): the same.
        metadata (dict): a name of `METADATA_FORMS` -> int, str or list; empty
            for a file that was not written by `write_npz`.
        n_class (int): number of classes; None without a file.
        output_stride (int): of the exported graph, else the default.
        min_input_size (pair of int): height and width in pixels to which
            smaller images are padded: the file's own, else that of the
            dataset with as many classes, else the default.
        scales (tuple of float), flip (bool): what the source averages over.
        resize_range (ResizeRange): to which it resizes images; or None.
        background_outputs (numpy.ndarray, (K, 257), float32): see
            `METADATA_FORMS`; mostly None.

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
                shape = _array(npz, self._prefix + LOGITS).shape
                if len(shape) != 4:
                    raise self._other_network()
                self.n_class = shape[0]
                self.metadata = self._read_metadata(npz)
                self._check_metadata(self.n_class)
        known = self.metadata
        dataset = dataset_of(self.n_class, known.get('task'))
        self.min_input_size = known.get(
            'min_input_size',
            DATASETS[dataset]['min_input_size'] if dataset else MIN_INPUT_SIZE)
        self.output_stride = known.get('output_stride', OUTPUT_STRIDE)
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
            return OUTPUT_STRIDES[output_stride]['aspp']
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
        with self._opened() as npz:
            arrays = {name.removeprefix(self._prefix): _array(npz, name)
                      for name in npz.files if name.startswith(self._prefix)
                      and not name.startswith(METADATA)}
        differences = describe_differences(
            {name: array.shape for name, array in arrays.items()},
            {name: array.shape for name, array in named_arrays(link).items()})
        if differences:
            raise InputError(f'{self.path} does not hold the weights of this '
                             f'DeepLabV3+ Xception65: {differences}')
        for name, array in arrays.items():
            self._check_values(name, array)
        for path, param in link.namedparams():  # without a copy
            param.array = arrays.pop(path[1:]).astype(param.dtype, copy=False)
        serializers.NpzDeserializer(arrays, strict=False).load(link)

    @contextlib.contextmanager
    def _opened(self):
        """Open the file, of limited size; say in one line how it is damaged."""
        if self.path.stat().st_size == 0:
            raise InputError(f'{self.path} is empty: an npz file is needed')
        try:
            self._check_kind()
            with np.load(self.path, allow_pickle=False) as npz:
                _check_sizes(npz)
                yield npz
        except InputError:
            raise
        except DAMAGE as error:
            if isinstance(error, OSError) and error.filename:
                raise  # it cannot be opened
            if 'Object arrays' in str(error):
                error = ('it holds pickled Python objects, which can run code '
                         'and are never loaded')
            raise InputError(f'{self.path} is not a whole npz file ({error}): '
                             'convert it with tf2npz.py, or download it again'
                             ) from None

    def _check_kind(self):
        """Raise InputError for what is known to be another kind of file."""
        with open(self.path, 'rb') as file:
            start = file.read(1 << 10)
        kinds = [kind for pattern, kind in OTHER_FILES.items() if re.match(
            pattern, start, re.DOTALL | re.IGNORECASE)]
        if zipfile.is_zipfile(self.path):
            with zipfile.ZipFile(self.path) as archive:
                kinds = [kind for end, kind in OTHER_ARCHIVES.items() if any(
                    name.endswith(end) for name in archive.namelist())]
        elif not kinds:
            raise ValueError('it is no zip archive, or cut off')
        if kinds:
            raise InputError(f'an npz is needed, and {self.path} is {kinds[0]}')

    def _find_prefix(self, npz):
        """Return what is before the names of the link's arrays: of a link that
        wraps it, or in a snapshot of a Trainer; often ''.
        """
        found = [name.removesuffix(LOGITS) for name in npz.files
                 if f'/{name}'.endswith(f'/{LOGITS}')]
        if '' in found:
            return ''
        if len(found) > 1:
            raise InputError(f'{self.path} holds several networks, below '
                             f'{shortened(found)}: save one alone')
        if not found:
            raise self._other_network()
        return found[0]

    def _other_network(self):
        return InputError(f'{self.path} does not hold a DeepLabV3+ Xception65: '
                          f'it has no {LOGITS} with four axes')

    def _read_metadata(self, npz):
        """Return the known metadata; others are of a later version."""
        result = {}
        for key, (kind, sides) in METADATA_FORMS.items():
            name = METADATA + key
            if name not in npz.files:
                continue
            array = _array(npz, name)
            if not (np.issubdtype(array.dtype, kind) and 0 not in array.shape
                    and len(array.shape) == len(sides) and all(
                        wanted in {None, side} for side, wanted in zip(
                            array.shape, sides, strict=True))):
                raise InputError(
                    f'{self.path}: {name} is {array.dtype} of shape '
                    f'{array.shape}, which this program never writes')
            result[key] = array.tolist()
        return result

    def _check_metadata(self, n_class):
        known = self.metadata
        version = known.get('format_version', FORMAT_VERSION)
        resize_range = known.get('resize_range', [1, 0, 0, 0])
        shortest, *others, rounds_up = resize_range
        for problem, is_valid in (
                (f'format version {version}, and this program reads '
                 f'{FORMAT_VERSION} to {LATEST_VERSION}',
                 FORMAT_VERSION <= version <= LATEST_VERSION),
                (f'{n_class} classes, and says {known.get("n_class")}',
                 known.get('n_class', n_class) == n_class),
                ('background outputs that are not finite',
                 np.abs(known.get('background_outputs', 0)).max()
                 < np.finfo(np.float32).max),
                ('not a colour for each of its class names',
                 len(known.get('class_names', []))
                 == len(known.get('class_colors', []))),
                (f'the resize range {resize_range}, which is invalid',
                 0 < shortest <= MAX_INPUT_SIDE and rounds_up in {0, 1} and all(
                     0 <= number <= MAX_INPUT_SIDE for number in others))):
            if not is_valid:
                raise InputError(f'{self.path} has {problem}: convert it again')

    def _check_values(self, name, array):
        kinds = 'iu' if name.endswith('/N') else 'fiu'  # N: a count of batches
        if array.dtype.kind not in kinds:
            raise InputError(f'{self.path}: {name} holds {array.dtype}, not '
                             + ('integers' if kinds == 'iu' else 'numbers'))
        if not np.isfinite(array).all():
            raise InputError(f'{self.path}: {name} holds a value that is not '
                             'finite')


def _check_sizes(npz):
    members = npz.zip.infolist()
    if len(set(npz.files)) < len(members):
        raise ValueError('two arrays have one name')
    if sum(each.file_size for each in members) > MAX_BYTES or any(
            each.file_size > 2 * METADATA_LIMIT for each in members
            if each.filename.startswith(METADATA)):
        raise ValueError(f'it unpacks to more than {MAX_BYTES} bytes, or '
                         f'{METADATA_LIMIT} of metadata')


def _array(npz, name):
    array = npz[name]
    if not isinstance(array, np.ndarray):  # NumPy's answer to other files
        raise ValueError(f'{name} is no array')
    return array


def leave_unset(array):
    """An initializer that does nothing: a file gives the weights."""


def named_arrays(link):
    """Return name -> array of all that an npz of this link must hold."""
    from chainer import serializers
    serializer = serializers.DictionarySerializer()
    serializer.save(link)
    return serializer.target
