"""Files that appear whole or not at all; locks; digests."""
import contextlib
import fcntl
import glob
import hashlib
import os
import pathlib
import secrets
import sys

from .errors import InputError


@contextlib.contextmanager
def atomic_path(path):
    """Give the path of a temporary file that becomes `path` on success.

    The temporary file is in the same folder, so that `os.replace` is atomic.
    When the body raises, it is removed and `path` is left as it was.

    Args:
        path (str or pathlib.Path): the final name.

    Yields:
        pathlib.Path: the name to write to.

    Raises:
        OSError: the folder does not exist or cannot be written.
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
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _open_temporary(path):
    """Make a locked file beside `path`; remove those of killed processes."""
    for left in path.parent.glob(f'.{glob.escape(path.name)}.*.tmp'):
        with contextlib.suppress(OSError), open(left, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    while True:
        temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
        file = open(temporary, 'xb')  # noqa: SIM115  (it is returned)
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():
            return file, temporary
        file.close()  # another process removed it before it was locked


def part_path(path):
    """Return the name of a result that is not whole."""
    return path.with_name(f'{path.stem}.part{path.suffix}')


def check_not_source(target, source):
    """Raise InputError where a file would be written over its own source."""
    if os.path.exists(target) and os.path.exists(source) and (
            os.path.samefile(target, source)):
        raise InputError(f'input and output are the same file, {target}: name '
                         'another file to write')


@contextlib.contextmanager
def locked(path, wait=True):
    """Let one process at a time work on a file, which need not exist.

    The lock is a file beside it; it ends with its process. Wait for another
    process, or, if `wait` is false, raise InputError.
    """
    import filelock
    lock = filelock.FileLock(path.with_name(f'.{path.name}.lock'))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not wait:
            raise InputError(f'another process works on {path}: wait until it '
                             'ends, or name another folder') from None
        print(f'waiting for another process that works on {path.name}',
              file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sha256(*paths):
    """Return the SHA-256 of files, one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
