"""Every block of the README, as it stands there, with stand-in weights."""
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL
from fixture_images import patches, write_image, write_tree
from PIL import Image

from models.pretrained import URLS

README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'^```(\w*)\n(.*?)^```', README, re.DOTALL | re.MULTILINE)
BUILT = '.git', '.venv*', '.*_cache', 'build', 'report_*', '*.npz', '*.pb'


@pytest.fixture
def checkout(palette_graphs, random_graphs, tmp_path):
    """A checkout, set up, with what the README names and a cache of models."""
    folder = tmp_path / 'a checkout'
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*BUILT))
    # A folder of links, so that nothing can clear what they lead to.
    (folder / '.venv').mkdir()
    for path in Path(sys.prefix).iterdir():
        (folder / '.venv' / path.name).symlink_to(path)
    (folder / 'installed').touch()  # later than requirements.txt
    cache = tmp_path / 'cache/pfnet/chainercv/models'
    cache.mkdir(parents=True)
    for task, urls in URLS.items():
        pb, npz = palette_graphs(task, SMALL)
        os.link(npz, cache / urls['npz'].split('/')[-1])
        with tarfile.open(folder / urls['archive'].split('/')[-1], 'w:gz',
                          compresslevel=1) as archive:
            archive.add(pb, f'{task}/frozen_inference_graph.pb')
        write_tree(task, folder / 'DIR' if task == 'cityscapes' else
                   cache.parent / task, patches(task, 2), 20)
    # Labels of the stand-in are equal to TensorFlow's but for many exact ties.
    shutil.copy(random_graphs('voc', crop=SMALL)[0],
                folder / 'frozen_inference_graph.pb')
    write_image(folder / 'image.jpg')
    write_image(folder / 'photos/one.jpg', 1)
    (folder / 'names.txt').write_text('\n'.join(
        f'class {i}' for i in range(21)))
    return folder


def run(folder, *command):
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        timeout=300, env={
            **os.environ, 'MAKEFLAGS': 'INSTALLED=installed VENV=.venv',
            'CHAINER_DATASET_ROOT': str(folder.parent / 'cache')})


@pytest.mark.slow
def test_commands(checkout):
    commands = [line for _, block in BLOCKS for line in block.splitlines()
                if line.startswith(('.venv/bin/', 'make '))]
    assert len(commands) >= 13
    if sys.version_info >= (3, 14):  # there is no TensorFlow
        commands = [line.replace(' --verify', '') for line in commands]
    for line in commands:
        result = run(checkout, 'sh', '-c', line)
        assert result.returncode == 0, f'{line}\n{result.stderr}'
    for name in ('image_segmentation.png', 'results/one_overlay.png',
                 'all.html', 'voc.png', 'own.npz', 'cityscapes.onnx',
                 'report_voc/report.html', 'report_of_two/result.json'):
        assert (checkout / name).exists(), name
    check_same_picture(checkout / 'build/street_segmentation.png',
                       ROOT / 'assets/demo.png')


def check_same_picture(path, shown):
    """What `make demo` draws is the README's picture, but for some pixels
    where a processor rounds otherwise.
    """
    a, b = (np.asarray(Image.open(each), np.float32) for each in (path, shown))
    assert a.shape == b.shape
    assert np.abs(a - b).mean() < 1  # of 255


@pytest.mark.slow
def test_python(checkout):
    os.link(next((checkout.parent / 'cache').rglob('*cityscapes*.npz')),
            checkout / 'cityscapes.npz')
    block, = [block for kind, block in BLOCKS if kind == 'python']
    result = run(checkout, '.venv/bin/python', '-c',
                 block + 'print(label.shape, label.dtype)')
    assert result.stdout.split('\n')[0] == '(72, 96) int32', result.stderr


def test_files_are_there():
    """The table of files is complete, and make has what the pages name."""
    page = (ROOT / 'CONTRIBUTING.md').read_text()
    table = page[page.index('| File |'):page.index('## Tests')]
    named = set(re.findall(r'`([\w/]+\.py)`', table))
    folders = ('.', 'command_line', 'evaluation', 'media', 'convert', 'models',
               'models/utils')
    there = {path.relative_to(ROOT).as_posix() for folder in folders
             for path in (ROOT / folder).glob('*.py')}
    assert named == {name for name in there if '__init__' not in name}
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'`make (?:PYTHON=\S+ )?([\w-]+)`', README + page):
        assert f'\n{target}:' in makefile, target


def make(tmp_path, target):
    """Run make with a Python that is too old, or too new, for all."""
    python = tmp_path / 'bin/python'
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.9\n'
                      'exit 1\n')
    python.chmod(0o755)
    return subprocess.run(
        ['make', '-C', ROOT, f'PYTHON={python}', f'VENV={tmp_path}', target],
        capture_output=True, text=True, check=False, timeout=60)


def test_make_refuses_other_pythons(tmp_path):
    result = make(tmp_path, 'setup')
    assert result.returncode != 0
    line = result.stderr.splitlines()[0]
    assert line.startswith('Python 3.11.4 to 3.14 is needed, on Linux')
    assert 'is Python 3.10.9 on ' in line
    assert os.listdir(tmp_path) == ['bin']


def test_make_refuses_cupy_where_it_has_no_wheel(tmp_path, monkeypatch):
    (tmp_path / 'installed-by-python').touch()
    (tmp_path / 'uname').write_text('#!/bin/sh\necho Darwin\n')
    (tmp_path / 'uname').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    result = make(tmp_path, 'setup-gpu')
    assert result.returncode != 0
    assert result.stderr.startswith(
        'CuPy has wheels for Linux, and none for Darwin')
