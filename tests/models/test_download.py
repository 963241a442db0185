"""Downloads from a host on loopback that misbehaves in every way."""
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import types

import numpy as np
import pytest
from conftest import ROOT

from convert.conversion import check as check_conversion
from convert.conversion import write
from convert.sources import fetch, opened
from media.inputs import find_inputs
from models import DeepLabV3plusXception65, pretrained
from models.utils import download
from models.utils.errors import InputError
from models.weights import WeightsFile

DATA = np.random.default_rng(0).bytes(300_000)


def check(path):
    if path.read_bytes() != DATA:
        raise InputError('it is damaged')
    return path


@pytest.mark.parametrize(('plan', 'n_requests'), [
    (['whole'], 1), (['slow'], 1), (['too long'], 1), (['redirect'], 2),
    (['cut', 'whole'], 2), (['cut', 'cut', 'cut', 'cut', 'cut', 'whole'], 6),
    (['cut', 'no range'], 2), (['503', 'whole'], 2), (['429', 'whole'], 2),
    (['hang', 'whole'], 2), (['wrong length', 'whole'], 2),
    (['corrupt', 'whole'], 2), (['cut', 'other part', 'whole'], 3),
    (['cut', 'total unknown', 'whole'], 3), (['chunked', 'whole'], 2),
    (['520', 'whole'], 2),
])
def test_arrives(host, tmp_path, plan, n_requests):
    host.files = {'a': DATA, 'a_moved': DATA}
    host.plans['a'] = list(plan)
    part = download.download(f'{host.url}/a', tmp_path, check)
    assert part.read_bytes() == DATA
    assert len(host.requests) == n_requests
    if plan == ['cut', 'whole']:
        assert host.requests[1] == ('a', 'bytes=150000-')
    if 'total unknown' in plan:
        assert host.requests[2] == ('a', 'bytes=225000-')


@pytest.mark.parametrize(('plan', 'words'), [
    (['404'], 'HTTP 404'), (['403'], 'HTTP 403'), (['500'], 'HTTP 500'),
    (['hang'], 'timed out'), (['corrupt'], 'file is corrupt: it is damaged'),
    (['endless'], 'it has more than 1000000 bytes'),
    (['wrong length', '500'], 'HTTP 500'),
])
def test_does_not_arrive(host, tmp_path, monkeypatch, plan, words):
    monkeypatch.setattr(download, 'MAX_BYTES', 1_000_000)
    host.files['a'] = DATA
    host.plans['a'] = list(plan)
    with pytest.raises(InputError, match=words):
        download.download(f'{host.url}/a', tmp_path, check)
    assert len(host.requests) <= len(plan) + download.RETRIES
    if plan == ['endless']:
        assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_tried_again(tmp_path):
    with pytest.raises(InputError, match='Is a directory'):
        download.download(tmp_path.as_uri(), tmp_path, None)


def test_an_unknown_host_is_final(tmp_path, monkeypatch, capsys):
    def resolve(*args, **kwargs):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    with pytest.raises(InputError, match='Name or service not known'):
        download.download('http://host.invalid/a', tmp_path, None)
    assert 'trying again' not in capsys.readouterr().err


@pytest.mark.parametrize('plan', ['cut', 'wrong length', 'chunked'])
def test_what_breaks_off_is_not_read(host, plan):
    host.files['a'], host.plans['a'] = DATA, [plan]
    with pytest.raises(InputError, match='broken off'):
        download.read_url(f'{host.url}/a', 1 << 20)


def test_a_loop_is_final(host, tmp_path):
    host.plans = {'a' + i * '_moved': ['redirect'] for i in range(40)}
    with pytest.raises(InputError, match='Exceeded 30 redirects'):
        download.download(f'{host.url}/a', tmp_path, None)
    assert len(host.requests) == 31


def test_a_closed_port_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, 'BACKOFF', 0.01)
    with pytest.raises(InputError, match=r'Connection refused$'):
        download.download('http://127.0.0.1:9/a', tmp_path, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:-1] == ['Connection refused: trying again'] * 4


def test_says_the_size_before(host, tmp_path, capsys):
    host.files['a'], host.plans['a'] = DATA, ['cut', 'whole']
    download.download(f'{host.url}/a', tmp_path, check)
    assert capsys.readouterr().err.splitlines()[1:] == [
        '0.0 of 0.3 MB are here', 'broken off: trying again',
        '0.1 of 0.3 MB are here']


def test_too_large_for_the_disk(host, tmp_path, monkeypatch):
    host.files['a'] = DATA
    monkeypatch.setattr('shutil.disk_usage', lambda folder:
                        types.SimpleNamespace(free=200_000))
    with pytest.raises(InputError, match='0 MB are needed, and 0 MB are fr'):
        download.download(f'{host.url}/a', tmp_path, check)


def test_only_addresses_that_make_sense(tmp_path):
    for url in '/etc/hostname', 'ftp://127.0.0.1/a':
        with pytest.raises(InputError, match='http://'):
            download.download(url, tmp_path, check)
    (tmp_path / 'file').write_bytes(DATA)
    part = download.download((tmp_path / 'file').as_uri(), tmp_path, check)
    assert part.read_bytes() == DATA


def test_goes_on_after_a_kill(host, tmp_path):
    host.files['a'] = DATA
    host.plans['a'] = ['slow', 'whole']
    script = (f'import pathlib, sys; sys.path.insert(0, {str(ROOT)!r});'
              'from models.utils.download import download;'
              f'download("{host.url}/a", pathlib.Path({str(tmp_path)!r}), id)')
    process = subprocess.Popen([sys.executable, '-c', script])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(
            path.stat().st_size for path in tmp_path.iterdir()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    part = download.download(f'{host.url}/a', tmp_path, check)
    assert part.read_bytes() == DATA
    assert host.requests[1][1] is not None  # asked for the rest only


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """The folder below which all that is downloaded is kept."""
    monkeypatch.setenv('CHAINER_DATASET_ROOT', str(tmp_path / 'cache'))
    monkeypatch.setattr('chainer.dataset.download._dataset_root',
                        str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def models_host(host, palette_graphs, monkeypatch, cached, tmp_path):
    """The host has 'voc' as an npz and as the official archive."""
    pb, npz = palette_graphs('voc')
    archive = tmp_path / 'voc.tar.gz'
    with tarfile.open(archive, 'w:gz', compresslevel=1) as file:
        file.add(pb, 'model/frozen_inference_graph.pb')
    host.files = {'voc.npz': npz.read_bytes(),
                  'voc.tar.gz': archive.read_bytes()}
    monkeypatch.setitem(pretrained.URLS, 'voc', {
        'npz': f'{host.url}/voc.npz', 'archive': f'{host.url}/voc.tar.gz'})
    return host


@pytest.mark.slow
def test_npz_is_kept(models_host):
    path = fetch('voc')
    assert path.read_bytes() == models_host.files['voc.npz']
    assert fetch('voc') == path
    assert models_host.requests == [('voc.npz', None)]
    with open(path, 'r+b') as file:
        file.seek(1000)
        file.write(b'changed')
    with pytest.raises(InputError, match='is not a whole npz file'):
        DeepLabV3plusXception65(pretrained_model='voc')


@pytest.mark.slow
def test_archive_stands_in(models_host):
    models_host.files['voc.npz'] = b'<html>moved</html>'
    with pytest.raises(InputError, match=r'python tf2npz\.py voc zoo'):
        DeepLabV3plusXception65(pretrained_model='voc')
    path = fetch('voc')
    assert DeepLabV3plusXception65(pretrained_model=path).n_class == 21
    names = {entry.name for entry in path.parent.iterdir()}
    assert names == {path.name, f'.{path.name}.lock', '.voc.tar.gz.lock'}


@pytest.mark.slow
@pytest.mark.parametrize('plan', [['503', 'whole'], ['cut', 'whole']])
def test_the_archive_is_tried_again(models_host, plan):
    del models_host.files['voc.npz']
    models_host.plans['voc.tar.gz'] = plan
    assert fetch('voc').exists()
    assert [name for name, _ in models_host.requests] == [
        'voc.npz', 'voc.tar.gz', 'voc.tar.gz']


@pytest.mark.parametrize('handled', [ValueError('mine'), InputError('mine')])
def test_retries_while_another_error_is_handled(host, tmp_path, handled,
                                                capsys):
    host.files['a'] = DATA
    host.plans['a'] = ['503', 'whole']
    try:
        raise handled
    except ValueError:
        part = download.download(f'{host.url}/a', tmp_path, check)
    assert part.read_bytes() == DATA
    assert 'HTTP 503' in capsys.readouterr().err


def test_says_what_was_tried(models_host, monkeypatch, capsys):
    models_host.files.clear()
    monkeypatch.setenv(download.MIRROR, 'file:///nowhere/')
    with pytest.raises(InputError) as caught:
        fetch('voc')
    assert str(caught.value) == (
        'the voc model cannot be downloaded ('
        f'{models_host.url}/voc.tar.gz: HTTP 404 Not Found): run `python '
        'tf2npz.py voc voc.tar.gz voc.npz` and give voc.npz')
    tried = capsys.readouterr().err
    for words in ('file:///nowhere/voc.npz: ', '/voc.npz: HTTP 404',
                  'file:///nowhere/voc.tar.gz: ', '/voc.tar.gz: HTTP 404'):
        assert words in tried


@pytest.mark.slow
def test_two_at_once_download_once(models_host, tmp_path):
    # The children know the official names, and take the mirror's files.
    file_name = 'deeplabv3plus_xception65_voc_converted_2019_02_15.npz'
    models_host.files[file_name] = models_host.files['voc.npz']
    script = (f'import sys; sys.path.insert(0, {str(ROOT)!r}); import models;'
              'from convert.sources import fetch; print(fetch("voc"))')
    children = [subprocess.Popen(
        [sys.executable, '-c', script], stdout=subprocess.PIPE, text=True,
        env={**os.environ, download.MIRROR: models_host.url})
        for _ in range(2)]
    paths = {child.communicate(timeout=120)[0] for child in children}
    assert len(paths) == 1
    assert file_name in paths.pop()
    assert models_host.requests == [(file_name, None)]


@pytest.mark.slow
def test_an_archive_for_two_at_once(models_host, palette_graphs, tmp_path):
    """tf2npz.py and a script that wants the model never write one file."""
    archive = 'deeplabv3_pascal_train_aug_2018_01_04.tar.gz'
    models_host.files[archive] = models_host.files['voc.tar.gz']
    models_host.plans[archive] = ['slow', 'slow', 'slow']
    fetching = (f'import sys; sys.path.insert(0, {str(ROOT)!r}); import models;'
                'from convert.sources import fetch; print(fetch("voc"))')
    children = [subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE,
        env={**os.environ, download.MIRROR: models_host.url})
        for command in (['-c', fetching], [
            ROOT / 'tf2npz.py', 'voc', 'zoo', tmp_path / 'own.npz'])]
    said = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert not any('again' in each for each in said), said


QUERY = '?X-Amz-Signature=' + 'secret' * 50


@pytest.mark.parametrize('mirror', ['', 'mirror/'])
def test_an_address_of_ones_own(host, cached, monkeypatch, capsys, mirror,
                                palette_graphs):
    """It is fetched from there, and what gives access is kept secret."""
    pb, _ = palette_graphs('voc')
    host.files[f'graph.pb{QUERY}'] = pb.read_bytes()
    if mirror:  # which has other graphs of this name
        monkeypatch.setenv(download.MIRROR, f'{host.url}/{mirror}')
        host.files[f'{mirror}graph.pb'] = b'another'
    url = host.url.replace('://', '://me:secret@') + '/graph.pb'
    with opened(url + QUERY, 'voc') as source:
        conversion = check_conversion(source, 'voc')
        write(conversion, cached / 'own.npz')
    assert [name for name, _ in host.requests] == [f'graph.pb{QUERY}']
    with pytest.raises(InputError) as caught, opened(
            f'{url[:-3]}{QUERY}', 'voc'):
        pass
    said = capsys.readouterr().err + str(caught.value)
    assert f'downloading {host.url}/graph.pb to ' in said
    assert f'{host.url}/graph cannot be downloaded' in said
    metadata = WeightsFile(cached / 'own.npz').metadata
    assert metadata['source_file'] == 'graph.pb'
    names = [str(path) for path in cached.rglob('*')]
    for text in said, source.path, str(metadata), str(names):
        assert 'secret' not in text


SECRETIVE = [
    'http://me:secret@host.invalid/a?secret', 'http://me:sec ret@/a?secret',
    'http://me:secret@host:port/a?secret#secret', 'http://me:sec/ret@host/a',
    'http://me:sec?ret@host/a', 'http://me:12/secret@host/a',
    'http://me:/secret@host/a', 'http://secret:12?x@host/a',
    'http://secret:12#x@host/a',
    "http://host.invalid/a?n='x'&sig=secret", 'http://host.invalid/a;s=secret',
    'http://me:secret@host\u2100.com/a', 'http://me:secret\\@host/a',
    'http://[x/a?secret', 'nothing://a:secret@b/?secret']


@pytest.mark.parametrize('url', SECRETIVE)
def test_an_address_is_shown_without_secrets(tmp_path, capsys, monkeypatch,
                                             url):
    monkeypatch.setattr(download, 'BACKOFF', 0)
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    with pytest.raises(InputError) as caught:
        download.download(url, tmp_path, None, mirrored=False)
    said = capsys.readouterr().err + str(caught.value)
    assert 'secret' not in said
    assert 'ret@' not in said


@pytest.mark.parametrize('url', SECRETIVE)
def test_scripts_show_addresses_without_secrets(tmp_path, url):
    found, problems, _ = find_inputs([url])
    for said in problems + [each.name for each in found]:
        assert 'secret' not in said
    with pytest.raises(InputError) as caught:
        DeepLabV3plusXception65(pretrained_model=url)
    assert 'secret' not in str(caught.value)


def test_a_mirror_with_a_key(host, tmp_path, monkeypatch, capsys):
    host.files['folder/a?key=secret'] = DATA
    monkeypatch.setenv(download.MIRROR, f'{host.url}/folder/?key=secret')
    path = download.download('http://host.invalid/x/a', tmp_path, check)
    assert path.read_bytes() == DATA
    assert 'secret' not in capsys.readouterr().err
