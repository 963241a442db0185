"""Datasets that are fetched, unpacked, and found in folders."""
import hashlib

import numpy as np
import pytest
from fixture_images import packed, patches, write_tree

from evaluation.dataset_files import ARCHIVES, dataset_folder
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
    for dataset in 'voc', 'ade20k':
        host.truth[dataset] = patches(dataset, 2)
        tree = write_tree(dataset, tmp_path / dataset, host.truth[dataset])
        data = packed(tree, ARCHIVES[dataset].url[-4:])
        host.files[name_of(dataset)] = data
        changed(monkeypatch, dataset, sha1=hashlib.sha1(data).hexdigest())
    return host


def name_of(dataset):
    return ARCHIVES[dataset].url.rpartition('/')[2]


def changed(monkeypatch, dataset, **fields):
    monkeypatch.setitem(ARCHIVES, dataset,
                        ARCHIVES[dataset]._replace(**fields))


@pytest.mark.parametrize('dataset', ['voc', 'ade20k'])
@pytest.mark.parametrize('plan', [['whole'], ['cut', 'whole'],
                                  ['corrupt', 'whole'], ['wrong length',
                                                         'whole']])
def test_fetched_and_unpacked(mirror, kept, capsys, dataset, plan):
    mirror.plans[name_of(dataset)] = list(plan)
    folder = dataset_folder(dataset, 'val')
    assert folder == kept / dataset
    assert {path.name for path in folder.iterdir()
            if not path.name.startswith('.')} == {
                ARCHIVES[dataset].folder.split('/')[0]}
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
    official = '4e443f8a2eca6b1dac8a6c57641b67dd40621a49'
    changed(monkeypatch, 'voc', url=f'{mirror.url}/{name_of("voc")}',
            sha1=official)
    with pytest.raises(InputError, match='is not the official archive'):
        dataset_folder('voc', 'val')
    assert not (kept / 'voc/VOCdevkit').exists()
    assert f'not {official}' in capsys.readouterr().err


def test_a_dead_host_says_so(mirror, kept, monkeypatch):
    changed(monkeypatch, 'voc', url=f'{mirror.url}/gone/VOC.tar')
    with pytest.raises(InputError) as caught:
        dataset_folder('voc', 'val')
    assert str(caught.value) == (
        f'VOC.tar cannot be downloaded ({mirror.url}/gone/VOC.tar: HTTP 404 '
        f'Not Found): unpack it into {kept}/voc, or give --data-dir')


def test_cityscapes_is_unpacked_by_hand(kept):
    root = kept / 'cityscapes'
    with pytest.raises(InputError, match='cityscapes needs a login: unpack '
                       'leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.'
                       rf'zip from .* into {root}, or give --data-dir'):
        dataset_folder('cityscapes', 'val')
    write_tree('cityscapes', root, patches('cityscapes', 1))
    assert dataset_folder('cityscapes', 'val') == root


def test_too_large_for_the_disk(mirror, kept):
    """The archive is kept, and unpacked once there is room."""
    free = iter([1 << 40, 0])  # before it is downloaded, and unpacked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('shutil.disk_usage', lambda folder: type(
            'Usage', (), {'free': next(free)}))
        patch.setitem(ARCHIVES, 'voc', ARCHIVES['voc']._replace(
            url=f'{mirror.url}/{name_of("voc")}'))
        patch.delenv(download.MIRROR)
        with pytest.raises(InputError, match='MB are needed, and 0 MB are f'):
            dataset_folder('voc', 'val')
        assert not (kept / 'voc/VOCdevkit').exists()
        patch.undo()
    assert (dataset_folder('voc', 'val') / 'VOCdevkit/VOC2012').is_dir()
