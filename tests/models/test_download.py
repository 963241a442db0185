"""Downloads from a host on loopback that misbehaves in every way."""
import contextlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from conftest import ROOT

from convert.official import fetch
from models import DeepLabV3plusXception65, pretrained
from models.utils import download
from models.utils.errors import InputError

DATA = np.random.default_rng(0).bytes(300_000)


class Host:

    """Serves `files`; `plans` says how each request of one is answered."""

    def __init__(self):
        self.files, self.plans, self.requests = {}, {}, []
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.0'

            def do_GET(self):
                with contextlib.suppress(ConnectionError):  # it has left
                    host.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        self.thread = threading.Thread(target=self.server.serve_forever,
                                       daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        name = request.path.strip('/')
        asked = request.headers.get('Range')
        self.requests.append((name, asked))
        plan = self.plans.get(name, [])
        how = plan.pop(0) if len(plan) > 1 else (plan or ['whole'])[0]
        data = self.files.get(name)
        if how == 'hang':
            time.sleep(2)
            return
        if how == 'chunked':
            self.head(request, 200, Transfer_Encoding='chunked')
            request.wfile.write(b'3e8\r\n' + data[:1000] + b'\r\n')
        elif how == 'redirect':
            self.head(request, 302, Location=f'/{name}_moved')
        elif data is None or how.isdigit():
            self.head(request, int(how) if how.isdigit() else 404)
        else:
            self.send(request, data, how, asked)

    def send(self, request, data, how, asked):
        start = int(asked[6:-1]) if asked and how != 'no range' else 0
        if start and start >= len(data):
            self.head(request, 416, Content_Range=f'bytes */{len(data)}')
            return
        sent = data[start:]
        headers = {'Content_Length': len(sent)}
        if start:
            headers['Content_Range'] = (
                f'bytes {start}-{len(data) - 1}/{len(data)}')
        if how == 'wrong length':
            headers['Content_Length'] = len(sent) + 1000
        elif how == 'too long':
            sent += b'more'
        elif how == 'endless':
            headers, sent = {}, sent * 20
        elif how == 'corrupt':
            sent = bytes(len(sent))
        elif how == 'total unknown' and start:
            headers['Content_Range'] = f'bytes {start}-{len(data) - 1}/*'
            sent = sent[:len(sent) // 2]
        elif how == 'other part':
            headers['Content_Range'] = f'bytes 7-{len(data) - 1}/{len(data)}'
        self.head(request, 206 if start else 200, **headers)
        if how == 'cut':
            sent = sent[:len(sent) // 2]
        for i in range(0, len(sent), 10_000):
            request.wfile.write(sent[i:i + 10_000])
            if how == 'slow':
                request.wfile.flush()
                time.sleep(0.05)

    def head(self, request, status, **headers):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace('_', '-'), str(value))
        request.end_headers()


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT', 0.5)
    monkeypatch.setattr(download, 'BACKOFF', 0.01)
    host = Host()
    yield host
    host.stop()


def check(path):
    if path.read_bytes() != DATA:
        raise InputError('it is damaged')


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
    (['endless'], 'more than it announced'),
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
    with pytest.raises(IsADirectoryError):
        download.download(tmp_path.as_uri(), tmp_path, None)


def test_an_unknown_host_is_final(tmp_path, monkeypatch, capsys):
    def resolve(*args, **kwargs):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    with pytest.raises(InputError, match='Name or service not known'):
        download.download('http://host.invalid/a', tmp_path, None)
    assert 'trying again' not in capsys.readouterr().err


def test_a_closed_port_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, 'BACKOFF', 0.01)
    with pytest.raises(InputError, match=r'^Connection refused$'):
        download.download('http://127.0.0.1:9/a', tmp_path, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ['Connection refused: trying again'] * 4


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
def models_host(host, palette_graphs, monkeypatch, tmp_path):
    """The host has 'voc' as an npz and as the official archive."""
    pb, npz = palette_graphs('voc')
    archive = tmp_path / 'voc.tar.gz'
    with tarfile.open(archive, 'w:gz', compresslevel=1) as file:
        file.add(pb, 'model/frozen_inference_graph.pb')
    host.files = {'voc.npz': npz.read_bytes(),
                  'voc.tar.gz': archive.read_bytes()}
    monkeypatch.setitem(pretrained.URLS, 'voc', {
        'npz': f'{host.url}/voc.npz', 'archive': f'{host.url}/voc.tar.gz'})
    monkeypatch.setenv('CHAINER_DATASET_ROOT', str(tmp_path / 'cache'))
    monkeypatch.setattr('chainer.dataset.download._dataset_root',
                        str(tmp_path / 'cache'))
    return host


@pytest.mark.slow
def test_npz_is_kept_and_watched(models_host):
    path = fetch('voc')
    assert path.read_bytes() == models_host.files['voc.npz']
    assert fetch('voc') == path
    assert models_host.requests == [('voc.npz', None)]
    with open(path, 'r+b') as file:
        file.seek(1000)
        file.write(b'changed')
    with pytest.raises(InputError, match='has changed since'):
        fetch('voc')
    with pytest.raises(InputError, match='has changed since'):
        DeepLabV3plusXception65(pretrained_model='voc')


@pytest.mark.slow
def test_archive_stands_in(models_host):
    models_host.files['voc.npz'] = b'<html>moved</html>'
    with pytest.raises(InputError, match=r'python tf2npz\.py voc voc\.tar'):
        DeepLabV3plusXception65(pretrained_model='voc')
    path = fetch('voc')
    assert DeepLabV3plusXception65(pretrained_model=path).n_class == 21
    names = {entry.name for entry in path.parent.iterdir()}
    assert names == {path.name, f'{path.name}.sha256', f'.{path.name}.lock'}


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
    assert capsys.readouterr().err.startswith('HTTP 503')


def test_says_what_was_tried(models_host, monkeypatch, capsys):
    models_host.files.clear()
    monkeypatch.setenv(pretrained.MIRROR, 'file:///nowhere/')
    with pytest.raises(InputError) as caught:
        fetch('voc')
    assert str(caught.value) == (
        'the voc model cannot be downloaded (HTTP 404 Not Found): run `python '
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
              'from convert.official import fetch; print(fetch("voc"))')
    children = [subprocess.Popen(
        [sys.executable, '-c', script], stdout=subprocess.PIPE, text=True,
        env={**os.environ, pretrained.MIRROR: models_host.url})
        for _ in range(2)]
    paths = {child.communicate(timeout=120)[0] for child in children}
    assert len(paths) == 1
    assert file_name in paths.pop()
    assert models_host.requests == [(file_name, None)]
