"""Datasets that are fetched, and archives that are not to be trusted."""
import contextlib
import hashlib
import io
import os
import stat
import tarfile
import zipfile

import numpy as np
import pytest
from fixture_images import packed, patches, write_tree

from evaluation import dataset_files
from evaluation.dataset_files import (
    ADE20K,
    CITYSCAPES,
    VOC,
    dataset_folder,
    unpack,
)
from evaluation.labelled_images import LabelledImages
from models.utils import download
from models.utils.errors import InputError


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where ChainerCV keeps its datasets; nothing comes from elsewhere."""
    root = tmp_path / 'kept'
    monkeypatch.setattr('chainer.dataset.download._dataset_root', str(root))
    return root / 'pfnet/chainercv'


@pytest.fixture
def mirror(host, kept, tmp_path, monkeypatch):
    """A host that has VOC2012 and ADE20K, of two images each."""
    monkeypatch.setenv(download.MIRROR, host.url)
    host.truth = {}
    for dataset, archive in ('voc', VOC), ('ade20k', ADE20K):
        host.truth[dataset] = patches(dataset, 2)
        tree = write_tree(dataset, tmp_path / dataset, host.truth[dataset])
        host.files[archive.name] = packed(tree, archive.name[-4:])
        made_official(monkeypatch, dataset, host.files[archive.name])
    return host


def made_official(monkeypatch, dataset, data):
    """Let the digest that is known of a dataset's archive be that of data."""
    name = dataset.upper()
    archive = getattr(dataset_files, name)
    monkeypatch.setattr(dataset_files, name, archive._replace(
        sha1=hashlib.sha1(data).hexdigest()))


@pytest.mark.parametrize(('dataset', 'archive'), [('voc', VOC),
                                                  ('ade20k', ADE20K)])
@pytest.mark.parametrize('plan', [['whole'], ['cut', 'whole'],
                                  ['corrupt', 'whole'], ['wrong length',
                                                         'whole']])
def test_fetched_and_unpacked(mirror, kept, capsys, dataset, archive, plan):
    mirror.plans[archive.name] = list(plan)
    folder = dataset_folder(dataset, 'val')
    assert folder == kept / dataset
    assert {path.name for path in folder.iterdir()
            if not path.name.startswith('.')} == {archive.folder.split('/')[0]}
    images = LabelledImages(dataset, folder, 'val')
    for (_, label), expected in zip(images, mirror.truth[dataset],
                                    strict=True):
        np.testing.assert_array_equal(label, expected)
    assert 'official' not in capsys.readouterr().err
    n_requests = len(mirror.requests)
    assert dataset_folder(dataset, 'val') == folder
    assert len(mirror.requests) == n_requests  # never a second time


@pytest.mark.parametrize('dataset', ['cityscapes', 'ade20k', 'folders'])
def test_hidden_files_are_no_part_of_it(tmp_path, dataset):
    """As macOS, a NAS and Jupyter leave them beside the files."""
    kind = 'cityscapes' if dataset == 'folders' else dataset
    root = write_tree(kind, tmp_path / '.data', patches(kind, 2))
    folders = [root / 'leftImg8bit', root / 'gtFine']
    names = [path for path in root.rglob('*') if path.is_file()]
    for path in names:
        for name in f'._{path.name}', f'@eaDir/{path.name}', (
                f'.ipynb_checkpoints/{path.name}'):
            (path.parent / name).parent.mkdir(exist_ok=True)
            (path.parent / name).write_bytes(b'no image')
    if dataset == 'folders':
        for i, path in enumerate(sorted(names)):
            path.rename(path.with_name(f'{i % 2}.png'))
    images = (LabelledImages(kind, folders=folders) if dataset == 'folders' else
              LabelledImages(dataset, root))
    assert len(images) == 2
    assert len([images[i] for i in range(2)]) == 2


def test_another_archive_is_refused(mirror, kept, monkeypatch, capsys):
    """VOC2012 comes over http."""
    monkeypatch.setattr(dataset_files, 'VOC', VOC._replace(
        url=f'{mirror.url}/{VOC.name}'))
    with pytest.raises(InputError, match='is not the official archive'):
        dataset_folder('voc', 'val')
    assert not (kept / 'voc/VOCdevkit').exists()
    assert f'not {VOC.sha1}' in capsys.readouterr().err


def test_a_dead_host_says_so(mirror, kept, monkeypatch):
    monkeypatch.setattr(dataset_files, 'VOC', VOC._replace(
        url=f'{mirror.url}/gone/VOC.tar'))
    with pytest.raises(InputError) as caught:
        dataset_folder('voc', 'val')
    assert str(caught.value) == (
        f'VOC.tar cannot be downloaded ({mirror.url}/gone/VOC.tar: HTTP 404 '
        f'Not Found): put it into {kept}/voc, or give --data-dir')


def test_an_archive_put_there_by_hand(mirror, kept, monkeypatch):
    for name in CITYSCAPES:
        with pytest.raises(InputError, match='cityscapes needs a login: put '
                           rf'.*{name.name}.* into {kept}/cityscapes, or'):
            dataset_folder('cityscapes', 'val')
    truth = patches('cityscapes', 1)
    tree = write_tree('cityscapes', kept / 'tree', truth)
    for archive in CITYSCAPES:
        both = packed(tree, '.zip')
        (kept / 'cityscapes' / archive.name).write_bytes(both)
    folder = dataset_folder('cityscapes', 'val')
    np.testing.assert_array_equal(
        LabelledImages('cityscapes', folder, 'val')[0][1], truth[0])
    (kept / 'voc').mkdir()
    (kept / 'voc' / VOC.name).write_bytes(b'half a file')
    with pytest.raises(InputError, match=f'{VOC.name} is not the official arc'):
        dataset_folder('voc', 'val')
    made_official(monkeypatch, 'voc', b'half a file')
    with pytest.raises(InputError, match=f'{VOC.name} cannot be unpacked'):
        dataset_folder('voc', 'val')
    assert mirror.requests == []
    assert [path.name for path in (kept / 'voc').iterdir()
            if path.suffix != '.lock'] == [VOC.name]


def tar_of(path, *members):
    """Write members: a name, with the type of a link or device, or 0."""
    with tarfile.open(path, 'w') as archive:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind or tarfile.REGTYPE
            info.linkname = '/etc/passwd'
            info.size = 0 if kind else 4
            archive.addfile(info, io.BytesIO(b'data'))
    return path


def zip_of(path, *members):
    """Write members: a name, with the kind of a Unix file, or 0."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name, kind in members:
            info = zipfile.ZipInfo(name)
            info.filename = name  # also with a backslash
            info.external_attr = kind << 16
            archive.writestr(info, b'data')
    return path


@pytest.mark.parametrize('write', [tar_of, zip_of])
@pytest.mark.parametrize('name', ['/evil', '../evil', 'a/../../evil',
                                  '..\\evil', '/tmp/../evil'])
def test_no_member_leads_out(tmp_path, write, name):
    """It is refused, or lands in the folder."""
    path = write(tmp_path / 'archive', ('a', 0), (name, 0))
    with contextlib.suppress(InputError):
        unpack(path, tmp_path / 'out')
    assert all(tmp_path / 'out' in found.parents
               for found in tmp_path.rglob('*evil*'))
    assert not os.path.exists('/evil')


@pytest.mark.parametrize('write', [tar_of, zip_of])
def test_a_file_in_the_place_of_a_folder(tmp_path, write):
    path = write(tmp_path / 'archive', ('a', 0), ('a/b', 0))
    with pytest.raises(InputError, match='cannot be unpacked'):
        unpack(path, tmp_path / 'out')


@pytest.mark.parametrize(('write', 'kind'), [
    *((tar_of, kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE,
                                  tarfile.CHRTYPE, tarfile.FIFOTYPE)),
    *((zip_of, kind) for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO)),
])
def test_no_links_and_devices(tmp_path, write, kind):
    """A zip's become files; those in a tar are refused."""
    path = write(tmp_path / 'archive', ('a', 0), ('b', kind))
    if write is tar_of:
        with pytest.raises(InputError, match='cannot be unpacked'):
            unpack(path, tmp_path / 'out')
    else:
        unpack(path, tmp_path / 'out')
    assert all(stat.S_ISREG(found.lstat().st_mode)
               for found in (tmp_path / 'out').iterdir())


@pytest.mark.parametrize('limit', ['MAX_MEMBERS', 'MAX_BYTES'])
@pytest.mark.parametrize('write', [tar_of, zip_of])
def test_refuses_bombs(tmp_path, monkeypatch, write, limit):
    monkeypatch.setattr(dataset_files, limit, 7 if limit == 'MAX_BYTES' else 1)
    path = write(tmp_path / 'archive', ('a', 0), ('b', 0))
    with pytest.raises(InputError, match='holds more than'):
        unpack(path, tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_a_member_larger_than_it_says(tmp_path):
    """A zip's index is not believed while a member is unpacked."""
    path = tmp_path / 'archive'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a', bytes(1 << 20))
    data = path.read_bytes()
    path.write_bytes(data.replace((1 << 20).to_bytes(4, 'little'),
                                  (1 << 10).to_bytes(4, 'little')))
    with pytest.raises(InputError, match='cannot be unpacked'):
        unpack(path, tmp_path / 'out')
    assert (tmp_path / 'out/a').stat().st_size <= 1 << 10


@pytest.mark.parametrize('write', [tar_of, zip_of])
@pytest.mark.parametrize('share', [0.2, 0.5, 0.9])
def test_refuses_a_part(tmp_path, write, share):
    path = write(tmp_path / 'archive', *((f'{i}', 0) for i in range(40)))
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data.rstrip(b'\0')) * share)])
    with pytest.raises(InputError, match='cannot be unpacked'):
        unpack(path, tmp_path / 'out')


def test_refuses_a_damaged_header(tmp_path):
    """The standard library takes one for the end of the archive."""
    path = tar_of(tmp_path / 'archive', ('a', 0), ('b', 0), ('c', 0))
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 1  # the checksum of b's header
    path.write_bytes(data)
    with pytest.raises(InputError, match='damaged at byte 1024'):
        unpack(path, tmp_path / 'out')


def test_too_large_for_the_disk(tmp_path):
    path = tmp_path / 'archive'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a', b'')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('shutil.disk_usage', lambda folder: type(
            'Usage', (), {'free': -1}))
        with pytest.raises(OSError, match='0 MB are needed'):
            unpack(path, tmp_path / 'out')
