"""Kills, full disks, strange locales: nothing lost, nothing half-written.

    FAULTS=100 python -m pytest tests/test_faults.py     (`make faults`)
"""
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from conftest import ROOT, linux_only, start_script
from fixture_images import patches, write_image, write_tree
from PIL import Image

from models.weights import WeightsFile

KILLS = int(os.environ.get('FAULTS', '5'))


@pytest.fixture
def files(palette_graphs, tmp_path):
    """Inputs for each script, and a folder to work in."""
    write_tree('voc', tmp_path / 'data', patches('voc', 6), 30)
    for seed in range(6):
        write_image(tmp_path / f'in/{seed}.png', seed)
    (tmp_path / 'work').mkdir()
    pb, npz = palette_graphs('voc')
    return {'pb': pb, 'npz': npz, 'root': tmp_path, 'work': tmp_path / 'work'}


def commands(files):
    model = ['--pretrained-model', files['npz'], '--input-size', 65]
    return {
        'tf2npz': ['tf2npz.py', 'voc', files['pb'], 'a.npz', '--force'],
        'npz2onnx': ['npz2onnx.py', files['npz'], 'a.onnx', '--force'],
        'demo': ['demo.py', files['root'] / 'in', '--output', 'out',
                 '--indexed', '--json', 'a.json', '--force', *model],
        'eval': ['eval_voc.py', '--data-dir', files['root'] / 'data',
                 '--output', 'report', '--save-interval', 0,
                 '--save-predictions', *model],
    }


def start(files, command, **options):
    return start_script(*command, cwd=files['work'], **options)


def run(files, command, **options):
    """Return the exit code and what the command says on stderr."""
    process = start(files, command, **options)
    _, text = process.communicate(timeout=120)
    return process.returncode, text


def limited(limit):
    return 'sh', '-c', f'{limit}; exec "$@"', 'sh'


def check_whole(folder):
    """Whatever has its final name can be read to its end."""
    for path in folder.rglob('*'):
        if path.name.startswith('.') or path.is_dir():
            continue
        if path.suffix == '.npz' and path.parent == folder:
            WeightsFile(path)
        elif path.suffix == '.npz':
            assert {'matrix', 'images'} <= set(np.load(path))
        elif path.suffix == '.png':
            Image.open(path).load()
        elif path.suffix == '.onnx':
            onnx.checker.check_model(path)
        elif path.suffix == '.html':
            assert path.read_text().endswith('</html>\n')
        else:
            assert path.read_text().endswith('\n'), path


@pytest.mark.slow
def test_kills(files):
    chance = random.Random(0)
    todo = commands(files)
    for _ in range(KILLS):
        process = start(files, todo[chance.choice(list(todo))])
        time.sleep(chance.uniform(0, 4))
        process.kill()
        process.communicate()
        check_whole(files['work'])
    for command in todo.values():
        code, text = run(files, command)
        assert code == 0, text
    check_whole(files['work'])
    assert not list(files['work'].rglob('.*.tmp'))  # killed ones' are removed
    assert (files['work'] / 'a.npz').read_bytes() == files['npz'].read_bytes()
    check_same_matrix(files)


def check_same_matrix(files):
    """An evaluation that was stopped ended as one that was not."""
    whole = files['root'] / 'whole'
    run(files, [*commands(files)['eval'], '--output', whole])
    name = 'confusion_matrix.csv'
    assert ((files['work'] / 'report' / name).read_bytes()
            == (whole / name).read_bytes())


@pytest.mark.slow
def test_the_clock_is_set_back(files):
    process = start(files, commands(files)['eval'])
    while not (state := files['work'] / 'report/state.npz').exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = len(json.loads(str(np.load(state)['images'])))
    early = ('import runpy, sys, time; now = time.time; '
             'time.time = lambda: now() - 1e9; sys.argv = sys.argv[1:]; '
             'runpy.run_path(sys.argv[0], run_name="__main__")')
    for name, command in commands(files).items():
        process = subprocess.run(
            [sys.executable, '-c', early, ROOT / command[0],
             *map(str, command[1:])], cwd=files['work'], timeout=120,
            capture_output=True, text=True, check=False,
            env={**os.environ, 'PYTHONPATH': str(ROOT)})
        assert process.returncode == 0, process.stderr
        if name == 'eval':
            assert f'resuming after {done} of 6' in process.stdout
    check_whole(files['work'])
    check_same_matrix(files)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'written'), [
    ('tf2npz', ['a.npz']), ('npz2onnx', ['a.onnx']),
    ('demo', ['a.json', *(f'out/{i}.png' for i in range(6))])])
def test_two_at_once(files, name, written):
    """Both write the same files, and leave them whole."""
    processes = [start(files, commands(files)[name]) for _ in range(2)]
    for process in processes:
        _, text = process.communicate(timeout=120)
        assert process.returncode == 0, text
    check_whole(files['work'])
    assert sorted(str(path.relative_to(files['work'])) for path in files[
        'work'].rglob('*') if path.is_file()) == written


@pytest.mark.slow
def test_two_evaluations_in_one_folder(files):
    report = files['work'] / 'report'
    report.mkdir()
    with open(report / '.state.npz.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a first one would
        code, text = run(files, commands(files)['eval'])
    assert code == 1
    assert text.startswith('error: another process works on report/state.npz')
    assert text.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize('name', ['tf2npz', 'npz2onnx', 'eval'])
def test_a_full_disk(files, name):
    code, text = run(files, commands(files)[name],
                     before=limited('ulimit -f 4'))
    check_one_error(code, text)
    check_whole(files['work'])
    assert not (files['work'] / 'a.npz').exists()
    assert not (files['work'] / 'a.onnx').exists()


def check_one_error(code, text):
    assert code == 1, text
    errors = [line for line in text.splitlines() if 'images, ' not in line]
    assert len(errors) == 1
    assert errors[0].startswith('error: ')


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('unshare'), reason='needs util-linux')
@pytest.mark.parametrize('name', ['tf2npz', 'npz2onnx', 'demo', 'eval'])
def test_a_full_tmpfs(files, name):
    """As above, on a disk of 8 KiB, where the system lets one mount it."""
    kept = files['root'] / 'kept'
    small = ('unshare', '--map-root-user', '--mount', 'sh', '-c',
             'mount -t tmpfs -o size=8k tmpfs . && cd "$PWD" || exit 77; '
             '"$@"; code=$?; cp -r . "$KEPT"; exit $code', 'sh')
    code, text = run(files, commands(files)[name], before=small,
                     env={**os.environ, 'KEPT': str(kept)})
    if code == 77 or text.startswith('unshare: '):
        pytest.skip(f'no file system can be mounted here: {text.strip()}')
    if name == 'demo':  # a line for each image, and at last the JSON
        text = [line for line in text.splitlines() if 'error: ' in line][-1]
        assert 'error: a.json: ' in text
    check_one_error(code, text)
    assert 'No space left on device' in text
    check_whole(kept)
    assert not list(kept.rglob('.*.tmp'))


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize(('limit', 'name'), [
    (250_000, 'tf2npz'), (700_000, 'demo'), (700_000, 'eval')])
def test_little_memory(files, limit, name):
    code, text = run(files, commands(files)[name],
                     before=limited(f'ulimit -v {limit}'))
    assert code == 1
    assert text.startswith('error: ')
    assert 'memory' in text
    assert text.count('\n') == 1
    check_whole(files['work'])


@pytest.mark.slow
def test_plain_locale(files):
    os.rename(files['root'] / 'in/0.png', files['root'] / 'in/ü ö.png')
    os.rename(os.fsencode(files['root'] / 'in/1.png'),
              os.fsencode(files['root'] / 'in') + b'/\xfc.png')
    code, text = run(
        files, [*commands(files)['demo'], '--html', 'a.html'],
        env={**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0',
             'PYTHONCOERCECLOCALE': '0'}, errors='surrogateescape')
    assert code == 0, text
    assert len(os.listdir(files['work'] / 'out')) == 6


def test_a_cache_that_cannot_be_written(files):
    (files['root'] / 'file').touch()
    code, text = run(files, ['demo.py', files['root'] / 'in'], env={
        **os.environ, 'CHAINER_DATASET_ROOT': str(files['root'] / 'file/x')})
    assert code == 1
    assert text.startswith('error: ')
    assert text.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize('threads', [1, 2])
def test_threads(files, threads):
    code, text = run(files, [*commands(files)['eval'], '--threads', threads])
    assert code == 0, text
