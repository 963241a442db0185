"""Weights in an npz file: written whole, checked before a value is used.

The file is a plain `numpy.savez` archive of the link's parameters under
ChainerCV's names ('aspp/proj/conv/W', ...), readable by
`chainer.serializers.load_npz`. Arrays under 'metadata/' say what the weights
are for (see `METADATA_FORMS`); `load_npz` passes over them, and a file without
them is welcome.
"""
import math
import pathlib
import tokenize
import zipfile
import zlib

import numpy as np

from .utils.errors import InputError, names_that_differ

FORMAT_VERSION = 1
METADATA = 'metadata/'
METADATA_FORMS = {  # type, and sides (None: any but 0)
    'format_version': (np.integer, ()),
    'task': (np.str_, ()),
    'n_class': (np.integer, ()),
    'output_stride': (np.integer, ()),
    'min_input_size': (np.integer, (2,)),  # height, width in pixels
    'source_file': (np.str_, ()),
    'source_sha256': (np.str_, ()),
    'class_names': (np.str_, (None,)),  # of a user's own classes
    'class_colors': (np.uint8, (None, 3)),  # RGB
}
_METADATA_LIMIT = 1 << 20  # bytes in one metadata array
# What zipfile, zlib and NumPy raise on damaged files, as found by fuzzing.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError,
           NotImplementedError, RuntimeError, OverflowError, SyntaxError,
           tokenize.TokenError, OSError)


def write_npz(path, arrays, metadata):
    """Write weights and what they are for.

    Args:
        path (str or pathlib.Path): the npz file. That it appears whole is up
            to `models.files.atomic_path`.
        arrays (iterable of (str, numpy.ndarray)): names and values. They are
            taken one at a time, so that a generator needs little memory.
        metadata (dict): see `METADATA_FORMS`; stored under 'metadata/'
            together with 'format_version'.

    Raises:
        InputError: metadata are larger than `read_npz` takes.
        OSError: the file cannot be written.

    """
    metadata = {'format_version': FORMAT_VERSION, **metadata}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, value in metadata.items():
            array = np.asarray(value)
            if array.nbytes > _METADATA_LIMIT:
                raise InputError(f'{name} takes {array.nbytes} bytes, and at '
                                 f'most {_METADATA_LIMIT} are kept in an npz')
            _write_array(archive, METADATA + name, array)
        for name, array in arrays:
            _write_array(archive, name, array)


def _write_array(archive, name, array):
    # ZipInfo's fixed date makes equal weights equal files.
    with archive.open(zipfile.ZipInfo(name + '.npy'), 'w',
                      force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def read_npz(path):
    """Read what an npz file says of itself, and the shapes it holds.

    Args:
        path (str or pathlib.Path): the npz file.

    Returns:
        (dict, dict): metadata, name of `METADATA_FORMS` to int, str or list
        (empty for a file that was not written by `write_npz`); and the
        shapes, name to tuple.

    Raises:
        InputError: the file is not a whole npz, holds pickled objects, or
            its metadata have another form.
        OSError: the file cannot be opened.

    """
    metadata, shapes = {}, {}

    def is_metadata(name, shape, dtype):
        if not name.startswith(METADATA):
            shapes[name] = shape
            return False
        form = METADATA_FORMS.get(name.removeprefix(METADATA))
        if form is not None and not _has_form(shape, dtype, *form):
            raise InputError(f'{path}: {name} is {dtype} of shape {shape}, '
                             'not what it is in a file of this program')
        return form is not None

    for name, array in _read_arrays(path, is_metadata):
        metadata[name.removeprefix(METADATA)] = array.tolist()
    version = metadata.get('format_version', FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise InputError(f'{path} has format version {version}, and this '
                         f'program reads {FORMAT_VERSION}: convert it again')
    if len(metadata.get('class_names', [])) != len(
            metadata.get('class_colors', [])):
        raise InputError(f'{path} does not have a colour for each of its '
                         'class names: convert it again')
    return metadata, shapes


def _has_form(shape, dtype, kind, sides):
    return (np.issubdtype(dtype, kind) and len(shape) == len(sides)
            and all(side == wanted or (wanted is None and side > 0)
                    for side, wanted in zip(shape, sides, strict=True))
            and math.prod(shape) * dtype.itemsize <= _METADATA_LIMIT)


def load_weights(path, link):
    """Load an npz file into a link once every name and shape fits.

    Args:
        path (str or pathlib.Path): the npz file.
        link (chainer.Link): changed only when the whole file is in order.

    Raises:
        InputError: the file is damaged, holds pickled objects, its names,
            shapes or types are not the link's, or a value is not finite.
        OSError: the file cannot be opened.

    """
    from chainer import serializers
    expected = named_arrays(link)
    _, found = read_npz(path)
    _check_shapes(path, expected, found)

    def is_weight(name, shape, dtype):
        kinds = 'iu' if name.endswith('/N') else 'fiu'  # N: a count of batches
        if name in expected and dtype.kind not in kinds:
            raise InputError(f'{path}: {name} holds {dtype}, not '
                             + ('integers' if kinds == 'iu' else 'numbers'))
        return name in expected

    arrays = {}
    for name, array in _read_arrays(path, is_weight):
        if not np.isfinite(array).all():
            raise InputError(f'{path}: {name} holds a value that is not '
                             'finite')
        arrays[name] = array
    serializers.NpzDeserializer(arrays).load(link)


def leave_unset(array):
    """An initializer that does nothing: the weights come from elsewhere."""


def named_arrays(link):
    """Return name to array for all that an npz of this link must hold."""
    from chainer import serializers
    serializer = serializers.DictionarySerializer()
    serializer.save(link)
    return serializer.target


def _check_shapes(path, expected, found):
    differences = names_that_differ(
        [(name, expected[name].shape)
         for name in sorted(expected.keys() - found.keys())],
        [(name, found[name])
         for name in sorted(found.keys() - expected.keys())],
        expected,
        [f'{name} has shape {found[name]} where the link has '
         f'{expected[name].shape}'
         for name in sorted(expected.keys() & found.keys())
         if found[name] != expected[name].shape])
    if differences:
        raise InputError(f'{path} does not hold the weights of this '
                         f'DeepLabV3+ Xception65: {differences}')


def _read_arrays(path, wanted):
    """Yield (name, array) of the members that wanted(name, shape, dtype).

    Every header is read and every object array refused, wanted or not; the
    data of an unwanted member is never touched.
    """
    path = pathlib.Path(path)
    if path.stat().st_size == 0:
        raise InputError(f'{path} is empty: an npz file is needed')
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix('.npy')
                with archive.open(member) as file:
                    shape, fortran_order, dtype = _read_header(file)
                    if dtype.hasobject:
                        raise InputError(
                            f'{path}: {name} holds pickled Python objects, '
                            'which can run code and are never loaded')
                    if wanted(name, shape, dtype):
                        yield name, _read_data(
                            file, shape, fortran_order, dtype)
    except InputError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.filename:
            raise  # it cannot be opened
        advice = ('convert it with tf2npz.py' if path.name.endswith(
            ('.pb', '.tar.gz', '.tgz', '.index')) else
            'download or convert it again')
        raise InputError(f'{path} is not a whole npz file ({error}): {advice}'
                         ) from None


def _read_header(file):
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # the others may have headers of gigabytes
        raise ValueError(f'npy version {version} is not read')
    return np.lib.format.read_array_header_1_0(file)


def _read_data(file, shape, fortran_order, dtype):
    size = math.prod(shape) * dtype.itemsize
    data = file.read(size)
    if len(data) != size:
        raise EOFError(f'{len(data)} bytes of {size}')
    if file.read(1):
        raise ValueError('more bytes than the shape needs')  # also checks CRC
    order = 'F' if fortran_order else 'C'
    return np.frombuffer(data, dtype).reshape(shape, order=order)
