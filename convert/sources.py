"""Open a source of weights: graph, archive, checkpoint, or folder of these.

It may be downloaded first; so may a pretrained model.
"""
import contextlib
import gzip
import os
import pathlib
import re
import tarfile
import zipfile
import zlib

from models.pretrained import (
    URLS,
    cached_path,
    check_npz,
    obtain,
    pretrained_path,
    record_sha256,
)
from models.utils.errors import (
    DownloadError,
    InputError,
    shortened,
    without_secrets,
)
from models.utils.files import atomic_path, locked

MAX_GRAPH_BYTES = 1 << 29  # (166 MB)
MAX_ARCHIVE_BYTES = 4 << 30  # unpacked (0.7 GB)
MAX_MEMBERS = 10_000  # (5)
MAX_HEADER_BYTES = 1 << 20  # of a long name in an archive
GRAPHS = ('.pb', '.tar.gz', '.tgz', '.tar')
TO_EXPORT = ('export a frozen graph (.pb), or give the checkpoint it was made '
             'from')
# Files that people mistake for a frozen graph, with what to do. The first that
# applies is named: a zip archive by a name in it; any file by its first bytes
# from an offset on, or by its ending; other archives by their first bytes.
ZIPPED = {
    '.npy': ('an npz, which has been converted already', 'give it to demo.py '
             'or an eval script as --pretrained-model'),
    'MAR-INF/MANIFEST.json': ('a TorchServe archive', TO_EXPORT),
    'data.pkl': ('a PyTorch model', TO_EXPORT),
    'config.json': ('a Keras model', TO_EXPORT),
}
STARTS = {
    (0, b'\x89HDF'): ('an HDF5 file, as of Keras', TO_EXPORT),
    (0, b'\x93NUMPY'): ('a NumPy array', TO_EXPORT),
    (0, b'\x80'): ('a Python pickle, as of PyTorch', TO_EXPORT),
    (4, b'TFL3'): ('a TensorFlow Lite model', TO_EXPORT),
    (8, b'{"'): ('a file of safetensors', TO_EXPORT),
    (0, b'node {'): ('a graph as text, without weights', TO_EXPORT),
    (0, b'version https://git-lfs'): ('a pointer of Git LFS', 'fetch the file '
                                      'with `git lfs pull`'),
    (4, bytes(4)): ('a log or records of training', 'give a model.ckpt'),
}
ENDINGS = {
    '.pth': ZIPPED['data.pkl'], '.pt': ZIPPED['data.pkl'],
    '.keras': ZIPPED['config.json'], '.mar': ZIPPED['MAR-INF/MANIFEST.json'],
    '.onnx': ('an ONNX model', TO_EXPORT),
    '.mlmodel': ('a Core ML model', TO_EXPORT),
    '.meta': ("a checkpoint's structure alone", 'give its weights as well, '
              'model.ckpt.index and model.ckpt.data-...'),
}
ARCHIVES = {b'PK': 'zip', b'7z\xbc\xaf': '7z', b'Rar!': 'rar', b'BZh': 'bzip2',
            b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
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
        `sha256`, `weights` (name -> shape), `ignored` (names) and
        `weight(name)`.

    Raises:
        InputError: it is none of these, damaged, or several.
        OSError: it cannot be read.
    """
    path = _file_of(pathlib.Path(path))
    prefix = re.sub(r'\.(index|meta|data-[^/]*)$', '', str(path))
    if os.path.isfile(f'{prefix}.index') and not os.path.isfile(prefix):
        from convert.checkpoint import Checkpoint
        return Checkpoint(prefix, output_stride, min_input_size)
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
        found = path.parent / 'variables' / 'variables.index'
        said = 'is a SavedModel'
    elif path.name == 'checkpoint' and path.is_file() and (
            named := LATEST.match(_start(path))):
        name = pathlib.Path(named[1].decode(errors='replace')).name
        found = path.with_name(f'{name}.index')  # the folder may be moved
        said = f'names the checkpoint {name}'
    else:
        return path
    if not found.is_file():
        raise InputError(f'{path} {said}, whose weights are in {found}, which '
                         'is missing: give another source')
    return found


def _in_folder(folder):
    """Return the one source in a folder or one level below.

    Graphs and archives win over checkpoints, which the zoo's archives hold as
    well; of several checkpoints, the file 'checkpoint' names the latest.
    """
    paths = [path for path in sorted([*folder.glob('*'), *folder.glob('*/*')])
             if path.is_file()]
    graphs = [path for path in paths if _is_named(path.name, GRAPHS)]
    found = graphs or [path for path in paths if _is_named(path.name, '.index')]
    if not found:
        raise InputError(f'{folder} holds no frozen graph (.pb), no .tar.gz '
                         'and no checkpoint (.index)')
    if len(found) > 1 and not graphs and (folder / 'checkpoint').is_file():
        return folder / 'checkpoint'
    return _only(folder, found)


def _is_named(name, endings):
    """Match a file's name; macOS adds files like ._graph.pb."""
    return name.endswith(endings) and not name.startswith('.')


def _only(where, found):
    if len(found) > 1:
        raise InputError(f'{where} holds {len(found)} sources, name one of '
                         f'them: {shortened(found)}')
    return found[0]


def _start(path):
    with open(path, 'rb') as file:
        return file.read(1 << 12)


def _graph_data(path):
    """Return a graph's bytes, and the name of its file."""
    if path.exists() and not path.is_file():
        raise InputError(f'{path} is no regular file: a graph is read from one')
    start = _start(path)
    if not start:
        raise InputError(f'{path} is empty: a frozen TensorFlow graph (.pb) is '
                         'needed')
    with open(path, 'rb') as file:
        if start.startswith(b'\x1f\x8b'):
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _from_archive(path, unpacked)
        if start[257:262] == b'ustar':
            return _from_archive(path, file)
        _refuse_other_formats(path, start)
        return _read_graph(path, file, path.stat().st_size), path.name


def _refuse_other_formats(path, start):
    """Raise InputError for a file that is known to be no frozen graph."""
    names = _names_in_zip(path) if start.startswith(b'PK') else []
    found = [
        *(known for ending, known in ZIPPED.items()
          if any(name.endswith(ending) for name in names)),
        *(known for (at, first), known in STARTS.items()
          if start[at:].startswith(first)),
        *(known for ending, known in ENDINGS.items()
          if path.suffix.lower() == ending),
        *((f'a {kind} archive', 'unpack it first')
          for first, kind in ARCHIVES.items() if start.startswith(first))]
    if found:
        kind, advice = found[0]
        raise InputError(f'{path} is {kind}, not a frozen TensorFlow graph: '
                         f'{advice}')


def _names_in_zip(path):
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


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
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f'{path} is not a whole archive ({error}): download '
                         'it again') from None
    if not found:
        raise InputError(f'{path} holds no frozen graph (.pb); a checkpoint '
                         'must be unpacked first')
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
    from models.deeplab_v3_plus import check_weights
    with contextlib.suppress(DownloadError):
        return pretrained_path(pretrained_model, check_weights)
    _convert_archive(pretrained_model, check_weights)
    return cached_path(pretrained_model)


def _convert_archive(name, check_weights):
    """Download the official archive of a model and convert its graph."""
    from convert.conversion import check, write
    path = cached_path(name)

    def convert(part):
        conversion = check(open_source(part), name)
        with atomic_path(path) as temporary:
            write(conversion, temporary)
            check_npz(name, temporary, check_weights)
            record_sha256(temporary, path)

    obtain(name, 'archive', convert, lambda part, path: part.unlink())


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
        raise InputError(f'the zoo has models of {", ".join(URLS)}, and none '
                         f'of {dataset}')
    from models.utils.download import download_and_use, file_name_of
    url = URLS[dataset]['archive'] if source == ZOO else source
    shown, name = without_secrets(url), file_name_of(url)
    folder, found = cached_path(next(iter(URLS))).parent, {}
    with locked(folder / (name or 'download')):
        try:
            download_and_use(
                url, folder, lambda part: found.update(
                    part=part, source=open_source(part, *options)),
                lambda part: None, mirrored=source == ZOO)
        except DownloadError as error:
            raise InputError(f'{shown} cannot be downloaded ({error}): '
                             'download it in another way and give the file'
                             ) from None
        result, part = found['source'], found['part']
        result.path = shown
        if result.file_name == part.name:
            result.file_name = name
        yield result
        part.unlink()
