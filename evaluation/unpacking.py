"""Unpack an archive of which no member is trusted."""
import pathlib
import shutil
import sys
import tarfile
import typing
import zipfile
import zlib

from convert.sources import TarMember
from models.utils.download import check_space
from models.utils.errors import InputError

MAX_MEMBERS = 200_000  # (44,000 in ADE20K's)
MAX_BYTES = 32 << 30  # unpacked (11 GB in Cityscapes')
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError,
          NotImplementedError, RuntimeError, OverflowError, ValueError,
          FileExistsError, NotADirectoryError, IsADirectoryError)


class Member(typing.NamedTuple):
    """A file or folder in an archive."""

    name: str
    is_folder: bool
    is_file: bool  # a link or device is neither
    size: int  # bytes
    open: typing.Callable


def unpack(archive, folder):
    """Unpack a .tar or .zip into a folder that does not exist yet.

    Every member is looked at before one is written: no path may lead out of
    the folder, none may be a link, device or second of its name, and count and
    sizes are bounded. Owners, permissions and times are not taken over.

    Raises:
        InputError: the archive is damaged, or a member is refused.
        OSError: the folder cannot be written.
    """
    is_zip = zipfile.is_zipfile(archive)
    folder.mkdir()
    try:
        with (zipfile.ZipFile(archive) if is_zip else
              tarfile.open(archive, 'r:', tarinfo=TarMember)) as opened:
            members = _checked(archive, (_zip_members if is_zip else
                                         _tar_members)(opened))
            check_space(folder, sum(member.size for member in members))
            for member in _progress(members):
                _write(member, folder)
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{archive} cannot be unpacked ({error}): download '
                         'it again') from None


def _zip_members(opened):
    for info in opened.infolist():
        kind = info.external_attr >> 28  # of Unix; 0 where none is stored
        yield Member(info.filename, info.is_dir(),
                     not info.is_dir() and kind in (0, 8), info.file_size,
                     lambda info=info: opened.open(info))


def _tar_members(opened):
    for info in opened:
        yield Member(info.name, info.isdir(),
                     info.isreg() and not info.issparse(), info.size,
                     lambda info=info: opened.extractfile(info))
    # tarfile takes a damaged header for the end.
    opened.fileobj.seek(opened.offset)
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f'damaged at byte {opened.offset}')


def _checked(archive, members):
    """Return the members as a list; raise InputError for one to be refused."""
    result, names, total = [], set(), 0
    for member in members:
        path = pathlib.PurePosixPath(member.name)
        if path.is_absolute() or '..' in path.parts or '\\' in member.name:
            raise InputError(f'{archive} holds {member.name}, which leads out '
                             'of its folder: nothing is unpacked')
        if not member.is_folder and not member.is_file:
            raise InputError(f'{archive} holds {member.name}, which is neither '
                             'file nor folder: nothing is unpacked')
        if member.is_file and path in names:
            raise InputError(f'{archive} holds {member.name} twice: nothing is '
                             'unpacked')
        total += member.size
        if len(result) == MAX_MEMBERS or total > MAX_BYTES:
            raise InputError(
                f'{archive} holds more than {MAX_MEMBERS} files or '
                f'{MAX_BYTES} bytes: nothing is unpacked')
        names.add(path)
        result.append(member)
    return result


def _write(member, folder):
    path = folder / member.name
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as source, open(path, 'xb') as target:
        shutil.copyfileobj(source, target, 1 << 20)
        if target.tell() != member.size:
            raise EOFError(f'{member.name} ends early')


def _progress(members):
    from tqdm import tqdm
    return tqdm(members, unit=' files', dynamic_ncols=True,
                disable=not sys.stderr.isatty())
