"""Files that appear whole or not at all; locks; digests."""
import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile
import zlib

from .errors import InputError

NAME_BYTES = 255  # of a file's name, at most
TEMPORARY = re.compile(r'\.deeplab-[0-9a-f]{8}-(\d+)-\w+\.tmp')  # process


@contextlib.contextmanager
def atomic_path(path, replace=True, part=None):
    """Give the path of a temporary file that becomes `path` on success.

    It is in a folder beside `path`, so that it takes its name at once, and its
    content is on the disk by then. When the body raises, it is removed and
    `path` is left as it was. A link is followed, and stays; the mode of a file
    that is replaced is kept.

    Args:
        path (str or pathlib.Path): the final name.
        replace (bool): whether a file of that name may be there by then.
        part (pathlib.Path): what is written gets this name if it may not.

    Yields:
        pathlib.Path: the name to write to.

    Raises:
        OSError: the folder does not exist or cannot be written, or `path` is
            no regular file or write-protected.
    """
    final, mode = _replaceable(path)
    try:
        with _temporary_folder(final) as folder:
            temporary = folder / '.file'  # hidden from those who look deeper
            temporary.touch()
            yield temporary
            with open(temporary, 'rb') as written:
                os.fsync(written.fileno())
            if mode is not None:
                os.chmod(temporary, mode)
            if not replace and os.path.lexists(final):
                if part is not None:
                    os.replace(temporary, part)
                raise FileExistsError(17, 'has appeared meanwhile, and is left '
                                      'as it is', str(final))
            os.replace(temporary, final)
    except OSError as error:  # name the file, not its temporary one
        if error.filename is None or TEMPORARY.search(str(error.filename)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def atomic_folder(path):
    """Give an empty temporary folder beside `path`, for the caller to rename;
    if it is still there at the end, it is removed.
    """
    final = pathlib.Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(final) as folder:
        temporary = folder / '.folder'
        temporary.mkdir()
        yield temporary


@contextlib.contextmanager
def _temporary_folder(path):
    """Give a folder; remove those of killed processes of this machine."""
    import psutil
    # A short name: that of `path` may be as long as a name can be.
    # Containers with the host's name number their processes anew.
    numbers = pathlib.Path('/proc/self/ns/pid')
    start = zlib.crc32(os.fsencode(
        f'{os.uname().nodename}/{numbers.exists() and numbers.stat().st_ino}/'
        f'{path.name}'))
    for left in path.parent.glob(f'.deeplab-{start:08x}-*.tmp'):
        if (found := TEMPORARY.fullmatch(left.name)) and (
                not psutil.pid_exists(int(found[1]))):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
            '.tmp', f'.deeplab-{start:08x}-{os.getpid()}-', path.parent,
            ignore_cleanup_errors=True) as temporary:
        yield pathlib.Path(temporary)


def check_target(path, force, inputs=()):
    """Raise InputError where a file is one of the `inputs`, or exists and
    `force` is false; OSError as `atomic_path`.
    """
    final, mode = _replaceable(path)
    if mode is None:
        return
    if any(os.path.exists(each) and os.path.samefile(final, each)
           for each in inputs):
        raise InputError(f'input and output are the same file, {path}: name '
                         'another file to write')
    if not force:
        raise InputError(f'{path} exists: give --force to overwrite it')


def _replaceable(path):
    """Return the path behind all links, and the mode of what is there."""
    final = pathlib.Path(os.path.realpath(path))
    try:
        mode = os.stat(final).st_mode
    except FileNotFoundError:
        return final, None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, 'is a folder, not a file', str(path))
    if not stat.S_ISREG(mode):
        raise OSError(22, 'is no regular file: name another', str(path))
    if not mode & 0o222 or not os.access(final, os.W_OK):
        raise PermissionError(13, 'is write-protected', str(path))
    return final, stat.S_IMODE(mode)


def part_path(path):
    """Return the name of a result that is not whole, beside where it is."""
    if path.is_symlink():
        path = pathlib.Path(os.path.realpath(path))
    ending = f'.part{path.suffix}'
    stem = os.fsencode(path.stem)[:NAME_BYTES - len(os.fsencode(ending))]
    return path.with_name(os.fsdecode(stem) + ending)


@contextlib.contextmanager
def locked(path, wait=True):
    """Let one process at a time work on a file, which need not exist: wait for
    another, or raise InputError. The lock, a file beside it, ends with its
    process.
    """
    import filelock
    lock = filelock.FileLock(path.with_name(f'.{path.name[:60]}.lock'))
    try:
        acquired = lock.acquire(timeout=0)
    except filelock.Timeout:
        if not wait:
            raise InputError(f'another process works on {path}: wait until it '
                             'ends, or name another folder') from None
        print(f'waiting for another process that works on {path.name}',
              file=sys.stderr, flush=True)
        acquired = lock.acquire()
    except (NotImplementedError, OSError):
        print(f'warning: there are no locks where {path} is: run one process '
              'at a time', file=sys.stderr)
        acquired = contextlib.nullcontext()
    with acquired:
        yield


def sha256(*paths):
    """Return the SHA-256 of files, one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
