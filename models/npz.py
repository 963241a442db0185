"""Arrays in an npz file, read with limits: headers at once, values on demand.

The file may be damaged or hostile: nothing is unpickled, and every value is
checked against its CRC. `numpy.load` takes twice as long and as much memory.
"""
import contextlib
import math
import pathlib
import struct
import tokenize
import typing
import zipfile
import zlib

import numpy as np

from .utils.errors import InputError

# What zipfile, zlib and NumPy raise for damaged files, as found by fuzzing.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError,
          NotImplementedError, RuntimeError, OverflowError, SyntaxError,
          tokenize.TokenError, OSError, struct.error)
LOCAL_HEADER = struct.Struct('<4s22xHH')  # mark, bytes of name, of extra field


class Header(typing.NamedTuple):
    """What an npy file says of its array."""

    member: zipfile.ZipInfo
    shape: tuple
    fortran_order: bool
    dtype: np.dtype
    size: int  # bytes of the header itself

    @property
    def n_values(self):
        return math.prod(self.shape)


class NpzFile:
    """An npz file.

    Args:
        path (str or pathlib.Path): the file.

    Attributes:
        headers (dict): name -> `Header` of every array.

    Raises:
        InputError: the file is damaged, or holds pickled objects.
        OSError: it cannot be opened.
    """

    def __init__(self, path):
        self.path, self.headers = pathlib.Path(path), {}
        with self._opened() as archive, open(self.path, 'rb') as file:
            for member in archive.infolist():
                if _is_stored(member):
                    _seek(file, member)
                    self._read_header(file, member)
                else:
                    with archive.open(member) as compressed:
                        self._read_header(compressed, member)

    def read(self, names):
        """Return name -> array of some arrays; raise InputError for damage."""
        with self._opened() as archive, open(self.path, 'rb') as file:
            return {name: self._read(archive, file, self.headers[name])
                    for name in names}

    @contextlib.contextmanager
    def _opened(self):
        """Open the zip archive; say in one line how it is damaged."""
        if self.path.stat().st_size == 0:
            raise InputError(f'{self.path} is empty: an npz file is needed')
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except InputError:
            raise
        except DAMAGE as error:
            if isinstance(error, OSError) and error.filename:
                raise  # it cannot be opened
            advice = ('convert it with tf2npz.py' if self.path.name.endswith(
                ('.pb', '.tar.gz', '.tgz', '.index')) else
                'download or convert it again')
            raise InputError(f'{self.path} is not a whole npz file ({error}): '
                             f'{advice}') from None

    def _read_header(self, file, member):
        name, start = member.filename.removesuffix('.npy'), file.tell()
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # others may have headers of gigabytes
            raise ValueError(f'npy version {version} is not supported')
        header = Header(member, *np.lib.format.read_array_header_1_0(file),
                        file.tell() - start)
        if header.dtype.hasobject:
            raise InputError(
                f'{self.path}: {name} holds pickled Python objects, which can '
                'run code and are never loaded')
        if name in self.headers:
            raise ValueError(f'two arrays are named {name}')
        self.headers[name] = header

    def _read(self, archive, file, header):
        member, n_bytes = header.member, header.n_values * header.dtype.itemsize
        if member.file_size != header.size + n_bytes:
            raise ValueError(f'{member.file_size} bytes of '
                             f'{header.size + n_bytes}')
        array = np.empty(header.n_values, header.dtype)
        if _is_stored(member):
            _read_stored(file, header, array.view(np.uint8))
        else:
            with archive.open(member) as compressed:
                compressed.read(header.size)
                array = np.frombuffer(
                    compressed.read(), header.dtype).copy()  # checks the CRC
        return array.reshape(header.shape,
                             order='F' if header.fortran_order else 'C')


def _is_stored(member):
    """Return whether a member is neither compressed nor encrypted."""
    return member.compress_type == zipfile.ZIP_STORED and not (
        member.flag_bits & 1)


def _seek(file, member):
    """Go to the data of a member of a zip file."""
    file.seek(member.header_offset)
    mark, name_size, extra_size = LOCAL_HEADER.unpack(
        file.read(LOCAL_HEADER.size))
    if mark != zipfile.stringFileHeader:
        raise zipfile.BadZipFile(f'{member.filename!r} is not where the '
                                 "archive's list has it")
    file.seek(name_size + extra_size, 1)


def _read_stored(file, header, array):
    """Read an uncompressed array in place, and check its CRC."""
    _seek(file, header.member)
    crc = zlib.crc32(file.read(header.size))
    if file.readinto(array) != array.size:
        raise EOFError('it is cut off')
    if zlib.crc32(array, crc) != header.member.CRC:
        raise zipfile.BadZipFile(
            f'Bad CRC-32 for file {header.member.filename!r}')
