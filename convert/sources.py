"""Open a source of weights: graph, archive, checkpoint, or folder of these.

It may be downloaded first; so may a pretrained model.
"""
import contextlib
import gzip
import os
import pathlib
import re
import tarfile
import zlib

from models.pretrained import URLS, cached_path, obtain, pretrained_path
from models.utils.errors import (
    DownloadError,
    InputError,
    shortened,
    without_secrets,
)
from models.utils.files import atomic_path, locked
from models.weights import (
    OTHER_ARCHIVES,
    OTHER_FILES,
    TENSORFLOW,
    kind_of,
)

MAX_GRAPH_BYTES = 1 << 29  # (166 MB)
MAX_ARCHIVE_BYTES = 4 << 30  # unpacked (0.7 GB)
MAX_MEMBERS = 10_000  # (5)
MAX_HEADER_BYTES = 1 << 20  # of a long name in an archive
GRAPHS = ('.pb', '.tar.gz', '.tgz', '.tar')
# Files that people mistake for a frozen graph: how they begin; of zip archives,
# how the name of a member ends.
OTHERS, MEMBERS = ({key: kind for key, kind in known.items()
                    if kind != TENSORFLOW} for known in (
    {**OTHER_FILES, rb'node \{': 'a graph as text, without weights',
     rb'.{4}\0{4}': 'a log or records of training',
     rb'PK|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd':
         'an archive of another kind (unpack it)'},
    {'.npy': 'an npz, which has been converted already', **OTHER_ARCHIVES}))
# What archives raise for damage, as found by fuzzing.
DAMAGE = (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, ValueError,
          OverflowError)
LATEST = re.compile(rb'\s*model_checkpoint_path:\s*"([^"\n]+)"')
ZOO = 'zoo'  # stands for the official archive of a dataset


def open_source(path, output_stride=None, min_input_size=None):
    """Open a source of weights.

    Args:
        path (str or pathlib.Path): a frozen graph (.pb); a .tar.gz, .tgz or
            .tar with one in it; a checkpoint (model.ckpt, one of its files,
            or the file 'checkpoint' that names it); a SavedModel with one; or
            a folder with one of these.
        output_stride (int): of a checkpoint, which does not hold it.
        min_input_size ((int, int)): likewise, height and width in pixels.

    Returns:
        FrozenGraph or Checkpoint: both have `is_graph`, `path`, `file_name`,
        `files`, `sha256`, `names`, `ignored` and `weight(...)`.

    Raises:
        InputError: it is none of these, damaged, or several.
        OSError: it cannot be read.
    """
    path = _file_of(pathlib.Path(path))
    prefix = re.sub(r'\.(index|meta|data-[^/]*)$', '', str(path))
    is_part = prefix != str(path)
    if os.path.isfile(f'{prefix}.index') and (is_part or not path.is_file()):
        from convert.checkpoint import Checkpoint
        return Checkpoint(prefix, output_stride, min_input_size)
    if is_part:
        raise InputError(f'{prefix}.index is missing, and the other files of a '
                         'checkpoint or SavedModel are useless without it')
    for value, option in ((output_stride, '--output-stride'),
                          (min_input_size, '--input-size')):
        if value is not None:
            raise InputError(f'{path} is no checkpoint: leave {option} out, '
                             'the graph holds it')
    from convert.frozen_graph import FrozenGraph
    return FrozenGraph(*_graph_data(path), str(path))


def _file_of(path):
    """Return the file that a folder, SavedModel or 'checkpoint' stands for."""
    if path.is_dir():
        path = _in_folder(path)
    if path.name == 'saved_model.pb':
        return path.parent / 'variables' / 'variables.index'
    if path.name == 'checkpoint' and path.is_file():
        with open(path, 'rb') as file:
            named = LATEST.match(file.read(1 << 12))
        if named:  # the folder may have been moved since
            name = pathlib.Path(named[1].decode(errors='replace')).name
            return path.with_name(f'{name}.index')
    return path


def _in_folder(folder):
    """Return the one source in a folder or one level below.

    Graphs and archives win over checkpoints, which the zoo's archives hold as
    well; of several checkpoints, the file 'checkpoint' names the latest.
    """
    paths = [path for path in sorted([*folder.glob('*'), *folder.glob('*/*')])
             if path.is_file()]
    graphs, checkpoints = ([path for path in paths if _is_named(
        path.name, endings)] for endings in (GRAPHS, '.index'))
    if len(checkpoints) > 1 and not graphs and (
            folder / 'checkpoint').is_file():
        return folder / 'checkpoint'
    return _only(folder, graphs or checkpoints)


def _is_named(name, endings):
    """Match a file's name; macOS adds files like ._graph.pb."""
    return name.endswith(endings) and not name.startswith('.')


def _only(where, found):
    if not found:
        raise InputError(f'{where} holds no frozen graph (.pb) and no unpacked '
                         'checkpoint (.index)')
    if len(found) > 1:
        raise InputError(f'{where} holds {len(found)} sources, name one of '
                         f'them: {shortened(found)}')
    return found[0]


def _graph_data(path):
    """Return a graph's bytes, and the name of its file."""
    if path.exists() and not path.is_file():
        raise InputError(f'{path} is no regular file: a graph is read from one')
    with open(path, 'rb') as file:
        start = file.read(1 << 12)
        file.seek(0)
        if start.startswith(b'\x1f\x8b'):
            return _from_archive(path, gzip.GzipFile(fileobj=file))
        if start[257:262] == b'ustar':
            return _from_archive(path, file)
        kind = kind_of(path, OTHERS, MEMBERS)
        if kind is not None:
            raise InputError(f'{path} is {kind}: give a frozen TensorFlow '
                             'graph (.pb), a .tar.gz with one, or a checkpoint')
        return _read_graph(path, file, path.stat().st_size), path.name


def _read_graph(path, file, size):
    if size > MAX_GRAPH_BYTES:
        raise InputError(f'{path}: the graph has {size} bytes, and at most '
                         f'{MAX_GRAPH_BYTES} are read')
    data = bytearray()
    while block := file.read(min(1 << 20, size - len(data))):
        data += block  # in blocks: tarfile would hold the whole twice
    if len(data) < size:
        raise InputError(f'{path} ends after {len(data)} of {size} bytes')
    return data


def _from_archive(path, file):
    """Read the one graph in a tar archive; nothing is written to disk."""
    found, data, unpacked = [], None, 0
    try:
        with tarfile.open(fileobj=file, mode='r|',
                          tarinfo=TarMember) as archive:
            for count, member in enumerate(archive):
                unpacked += member.size
                if count == MAX_MEMBERS or unpacked > MAX_ARCHIVE_BYTES:
                    raise InputError(
                        f'{path} unpacks to more than {MAX_ARCHIVE_BYTES} '
                        f'bytes or {MAX_MEMBERS} files')
                name = pathlib.PurePosixPath(member.name).name
                if (_is_named(name, '.pb') and member.isreg()
                        and not member.issparse()):
                    found.append(name)
                    data = data or _read_graph(
                        path, archive.extractfile(member), member.size)
        while file.read(1 << 20):
            pass  # to the end, where gzip compares a checksum
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f'{path} is not a whole archive ({error}): download '
                         'it again') from None
    return data, _only(path, found)


class TarMember(tarfile.TarInfo):
    """For `tarfile.open`: refuses a header too long for the memory."""

    def _proc_member(self, archive):
        if not self.isreg() and self.size > MAX_HEADER_BYTES:
            raise tarfile.HeaderError(f'a header of {self.size} bytes')
        return super()._proc_member(archive)


def fetch(pretrained_model) -> pathlib.Path:
    """Return the path of the npz of a pretrained model.

    It is a key of `models.pretrained.URLS`, downloaded at the first use, from
    the official archive where the npz is unavailable; or a path. Raise
    InputError where that fails.
    """
    with contextlib.suppress(DownloadError):
        return pretrained_path(pretrained_model)
    from convert.conversion import check, write
    path = cached_path(pretrained_model)

    def convert(part):
        conversion = check(open_source(part), pretrained_model)
        with atomic_path(path) as temporary:
            write(conversion, temporary)
        part.unlink()

    obtain(pretrained_model, 'archive', convert)
    return path


@contextlib.contextmanager
def opened(source, dataset, *options):
    """Open a source as `open_source` does, after downloading it if need be.

    Args:
        source (str): a path, an http(s) address, or `ZOO`.
        dataset (str): of the model of the zoo.

    Yields:
        the source. A downloaded file is removed at the end; where the body
        raises, it stays for the next attempt.

    Raises:
        InputError: it cannot be downloaded or opened.
    """
    if source != ZOO and not re.match(r'\w+://', source):
        yield open_source(source, *options)
        return
    if source == ZOO and dataset not in URLS:
        raise InputError(f'the zoo has models of {", ".join(URLS)} alone: give '
                         'one of these as the dataset, or another source')
    from models.utils.download import download, file_name_of
    url = URLS[dataset]['archive'] if source == ZOO else source
    shown, name = without_secrets(url), file_name_of(url)
    folder = cached_path(next(iter(URLS))).parent
    with locked(folder / (name or 'download')):
        try:
            part, result = download(
                url, folder, lambda part: (part, open_source(part, *options)),
                mirrored=source == ZOO)
        except DownloadError as error:
            raise InputError(f'{shown} cannot be downloaded ({error}): '
                             'download it in another way and give the file'
                             ) from None
        result.path = shown
        if result.file_name == part.name:
            result.file_name = name
        yield result
        part.unlink()
