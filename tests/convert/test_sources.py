"""What tf2npz.py takes: graphs, archives, folders, checkpoints."""
import gzip
import io
import tarfile
import zipfile

import pytest

from convert import sources
from convert.conversion import check
from convert.sources import open_source, opened
from models.pretrained import URLS
from models.utils.errors import InputError


def tar_gz(path, *members, level=1):
    """Write (name or TarInfo, data) as an archive."""
    with tarfile.open(path, 'w:gz', compresslevel=level) as archive:
        for member, data in members:
            info = (member if isinstance(member, tarfile.TarInfo)
                    else tarfile.TarInfo(member))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_archive_and_folder(skeleton, tmp_path):
    (tmp_path / 'one').mkdir()
    (tmp_path / 'one' / 'graph.pb').write_bytes(skeleton)
    archive = tar_gz(tmp_path / 'z.tar.gz', ('../../up/model.ckpt.index', b''),
                     ('/etc/evil/graph.pb', skeleton), ('readme', b'text'),
                     ('._graph.pb', b'from macOS'))
    (tmp_path / 'one' / '._graph.pb').write_bytes(b'from macOS')
    plain = open_source(tmp_path / 'one' / 'graph.pb')
    for path in archive, tmp_path / 'one':
        found = open_source(path)
        assert found.sha256 == plain.sha256
        assert found.file_name == 'graph.pb'
        assert found.nodes == plain.nodes
    assert not (tmp_path.parent / 'up').exists()
    (tmp_path / 'one' / 'z.tgz').write_bytes(archive.read_bytes())
    with pytest.raises(InputError, match=r'holds 2 sources.*graph.pb.*z.tgz'):
        open_source(tmp_path / 'one')


def test_a_damaged_archive(tmp_path, skeleton):
    """A changed byte of a weight, which unpacks."""
    path = tar_gz(tmp_path / 'a.tar.gz', ('graph.pb', skeleton), level=0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r'not a whole archive .CRC check f'):
        open_source(path)


def link_member(kind):
    info = tarfile.TarInfo('graph.pb')
    info.type, info.linkname = kind, '/etc/hostname'
    return info


@pytest.mark.parametrize('kind', [
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_archive_of_links_and_devices(tmp_path, kind):
    path = tar_gz(tmp_path / 'a.tar.gz', (link_member(kind), b''))
    with pytest.raises(InputError, match='holds no frozen graph'):
        open_source(path)


def test_archive_of_several(skeleton, tmp_path):
    path = tar_gz(tmp_path / 'a.tar.gz', ('a.pb', skeleton),
                  ('b/c.pb', b'other'))
    with pytest.raises(InputError, match=r'2 sources.*: a.pb, c.pb'):
        open_source(path)


def test_archive_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'MAX_ARCHIVE_BYTES', 10 << 20)
    path = tar_gz(tmp_path / 'a.tar.gz', ('readme', bytes(20 << 20)))
    with pytest.raises(InputError, match='unpacks to more than'):
        open_source(path)
    path = tar_gz(tmp_path / 'b.tar.gz',
                  *((f'file{i}', b'') for i in range(5)))
    monkeypatch.setattr(sources, 'MAX_MEMBERS', 4)
    with pytest.raises(InputError, match=r'more than .* or 4 files'):
        open_source(path)
    info = tarfile.TarInfo('x')
    info.type = tarfile.XHDTYPE  # a header as large as it likes
    path = tar_gz(tmp_path / 'c.tar.gz', (info, bytes(5 << 20)))
    with pytest.raises(InputError, match='a header of 5242880 bytes'):
        open_source(path)
    claim = tarfile.TarInfo('graph.pb')
    claim.size = 1 << 40
    with gzip.open(tmp_path / 'd.tar.gz', 'wb') as file:
        file.write(claim.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(InputError, match='unpacks to more than'):
        open_source(tmp_path / 'd.tar.gz')


def test_folder_of_nothing(tmp_path):
    with pytest.raises(InputError, match='holds no frozen graph'):
        open_source(tmp_path)


def test_options_of_a_checkpoint_only(fails, tmp_path, skeleton):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    fails('is no checkpoint', 'tf2npz.py', 'voc', tmp_path / 'g.pb', 'a.npz',
          '--output-stride', 8)


@pytest.mark.parametrize(('name', 'content', 'words'), [
    ('a.tflite', b'\x1c\0\0\0TFL3rest', 'a TFLite model: give a frozen Tensor'),
    ('a.onnx', b'\x08\x08\x12\x04', 'is an ONNX model'),
    ('a.h5', b'\x89HDF\r\n', 'is an HDF5 file'),
    ('a.pth', b'\x80\x02', 'is a pickle, as PyTorch'),
    ('graph.pbtxt', b'node {\n  name: "a"\n}', 'is a graph as text'),
    ('model.ckpt-3.meta', b'\n\x08', r'model.ckpt-3.index is missing'),
    ('a.safetensors', b'\x08\0\0\0\0\0\0\0{"a": 1}', 'is a safetensors file'),
    ('a.pb', b'version https://git-lfs.github.com/spec/v1\n', 'of Git LFS'),
    ('a.pb', b'7z\xbc\xaf\x27\x1c', r'is an archive .* \(unpack it\): give'),
    ('cut.zip', b'PK\x03\x04', r'is an archive .* \(unpack it\): give'),
    ('events.out.tfevents.1', b'\x18\0\0\0\0\0\0\0crc.brain.Event', 'is a log'),
])
def test_names_other_formats(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        open_source(tmp_path / name)


@pytest.mark.parametrize(('member', 'words'), [
    ('conv/W.npy', 'is an npz, which has been converted already'),
    ('archive/data.pkl', 'is a PyTorch checkpoint'),
    ('model.weights.h5', 'is a Keras model'),
    ('model/graph.pb', r'is an archive .* \(unpack it\)'),
])
def test_names_other_zips(tmp_path, member, words):
    with zipfile.ZipFile(tmp_path / 'a', 'w') as archive:
        archive.writestr(member, b'')
    with pytest.raises(InputError, match=words):
        open_source(tmp_path / 'a')


def test_the_file_that_names_a_checkpoint(tmp_path, monkeypatch):
    """In a folder that was moved since; and a folder of several."""
    opened = []
    monkeypatch.setattr('convert.checkpoint.Checkpoint',
                        lambda prefix, *options: opened.append(prefix))
    listing = tmp_path / 'checkpoint'
    listing.write_text('model_checkpoint_path: "/elsewhere/model.ckpt-7"\n')
    with pytest.raises(InputError, match=r'ckpt-7\.index is missing'):
        open_source(listing)
    for step in 3, 7:
        (tmp_path / f'model.ckpt-{step}.index').touch()
    for source in listing, tmp_path, tmp_path / 'model.ckpt-7.meta':
        open_source(source)
    assert opened == 3 * [f'{tmp_path}/model.ckpt-7']


def test_saved_model(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr('convert.checkpoint.Checkpoint',
                        lambda prefix, *options: opened.append(prefix))
    (tmp_path / 'saved_model.pb').write_bytes(b'\x08\x01')
    with pytest.raises(InputError, match=r'variables\.index is missing'):
        open_source(tmp_path / 'saved_model.pb')
    (tmp_path / 'variables').mkdir()
    (tmp_path / 'variables/variables.index').touch()
    for source in tmp_path, tmp_path / 'saved_model.pb':
        open_source(source)
    assert opened == 2 * [f'{tmp_path}/variables/variables']


@pytest.fixture
def zoo(host, skeleton, tmp_path, monkeypatch):
    """A host that has an archive of VOC2012's model."""
    host.files['voc.tar.gz'] = tar_gz(
        tmp_path / 'voc.tar.gz', ('model/frozen_inference_graph.pb', skeleton)
    ).read_bytes()
    host.files['g.pb'] = skeleton
    monkeypatch.setitem(URLS, 'voc', {
        **URLS['voc'], 'archive': f'{host.url}/voc.tar.gz'})
    monkeypatch.setattr('chainer.dataset.download._dataset_root',
                        str(tmp_path / 'kept'))
    return host


@pytest.mark.parametrize(('name', 'file_name'), [
    ('zoo', 'frozen_inference_graph.pb'), ('g.pb', 'g.pb')])
def test_a_source_that_is_downloaded(zoo, tmp_path, name, file_name):
    source = 'zoo' if name == 'zoo' else f'{zoo.url}/{name}'
    asked = 'voc.tar.gz' if name == 'zoo' else name
    zoo.plans[asked] = ['cut', 'whole']
    with opened(source, 'voc') as found:
        assert found.file_name == file_name
        assert found.path == f'{zoo.url}/{asked}'
        assert check(found, 'voc').min_input_size == [513, 513]
    assert len(zoo.requests) == 2
    assert [path for path in (tmp_path / 'kept').rglob('*')
            if path.is_file() and path.suffix != '.lock'] == []


@pytest.mark.parametrize(('source', 'dataset', 'words'), [
    ('gone.pb', 'voc', 'gone.pb cannot be downloaded .*HTTP 404.*: download '
     'it in another way'),
    ('zoo', 'custom', 'the zoo has models of voc, cityscapes, ade20k alone: ')])
def test_a_source_that_cannot_be_downloaded(zoo, source, dataset, words):
    address = source if source == 'zoo' else f'{zoo.url}/{source}'
    with pytest.raises(InputError, match=words), opened(address, dataset):
        pass
