"""Files that appear whole or not at all; locks; digests."""
import contextlib
import fcntl
import glob
import hashlib
import os
import pathlib
import sys
import tempfile

from .errors import InputError


@contextlib.contextmanager
def atomic_path(path):
    """Give the path of a temporary file that becomes `path` on success.

    The temporary file lies in the same folder, so that `os.replace` is
    atomic. When the body raises, it is removed and `path` is left as it was.

    Args:
        path (str or pathlib.Path): the final name.

    Yields:
        pathlib.Path: the name to write to.

    Raises:
        OSError: the folder does not exist or cannot be written; `filename`
            of the error is the folder or the final name.

    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(21, 'is a folder, not a file', str(path))
    try:
        file, temporary = _open_temporary(path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    with file:
        try:
            yield temporary
            os.chmod(temporary, _default_mode())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _open_temporary(path):
    """Make a locked file beside another; remove what a killed process left."""
    prefix, suffix = f'.{path.name}.', '.tmp'
    for left in path.parent.glob(f'{glob.escape(prefix)}*{suffix}'):
        with contextlib.suppress(OSError), open(left, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    while True:
        handle, name = tempfile.mkstemp(suffix, prefix, path.parent)
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return open(handle, 'wb'), pathlib.Path(name)
        os.close(handle)  # before it was locked, it looked like left behind


def check_not_source(target, source):
    """Raise InputError where a file is to be written over its own source."""
    if os.path.exists(target) and os.path.exists(source) and (
            os.path.samefile(target, source)):
        raise InputError(f'{target} is what is read as well: name another '
                         'file to write')


def _default_mode():
    """The permissions a plain `open` would give (mkstemp gives 0o600)."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def locked(path, wait=True):
    """Let one process at a time work on a file.

    The lock is a file beside it, and ends with the process that has it.

    Args:
        path (pathlib.Path): the file, there or not.
        wait (bool): for the other process to end; if false, raise.

    Raises:
        InputError: another process works on it.

    """
    with open(path.with_name(f'.{path.name}.lock'), 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise InputError(f'another process works on {path}: wait for '
                                 'its end, or name another folder') from None
            print(f'waiting for another process that works on {path.name}',
                  file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(*paths):
    """Return the digest of a file, or of several in turn, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
