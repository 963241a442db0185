"""Every command of the README, as it stands there, with stand-in weights."""
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT
from fixture_pictures import patches, write_picture, write_tree

from models.pretrained import PRETRAINED_MODELS

README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'^```(\w*)\n(.*?)^```', README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def prepared(palette_graphs, random_graphs, tmp_path):
    """A folder with what the README names, and a cache of the models."""
    cache = tmp_path / 'cache/pfnet/chainercv/models'
    cache.mkdir(parents=True)
    for task, model in PRETRAINED_MODELS.items():
        pb, npz = palette_graphs(task)
        os.link(npz, cache / model['npz'].split('/')[-1])
        with tarfile.open(tmp_path / model['tarball'].split('/')[-1], 'w:gz',
                          compresslevel=1) as archive:
            archive.add(pb, f'{task}/frozen_inference_graph.pb')
        write_tree(task, tmp_path / 'DIR', patches(task, 2), 20)
    # Labels of the stand-in are equal to TensorFlow's but for many exact ties.
    shutil.copy(random_graphs('voc')[0],
                tmp_path / 'frozen_inference_graph.pb')
    write_picture(tmp_path / 'image.jpg')
    write_picture(tmp_path / 'photos/one.jpg', 1)
    (tmp_path / 'names.txt').write_text('\n'.join(
        f'class {i}' for i in range(21)))
    return tmp_path


def run(folder, *command):
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        timeout=300, env={**os.environ, 'PYTHONPATH': str(ROOT),
                          'CHAINER_DATASET_ROOT': str(folder / 'cache')})


@pytest.mark.slow
def test_commands(prepared):
    commands = [line for _, block in BLOCKS for line in block.splitlines()
                if line.startswith('.venv/bin/')]
    assert len(commands) >= 12
    for line in commands:
        words = [str(Path(sys.executable).parent / word.removeprefix(
            '.venv/bin/')) if word.startswith('.venv/bin/') else
            str(ROOT / word) if (ROOT / word).is_file() else word
            for word in shlex.split(line, comments=True)]
        result = run(prepared, *words)
        assert result.returncode == 0, f'{line}\n{result.stderr}'
    for name in ('image_segmentation.png', 'results/one_overlay.png',
                 'all.html', 'voc.png', 'own.npz', 'cityscapes.onnx',
                 'report_voc/report.html', 'report_of_two/result.json'):
        assert (prepared / name).exists(), name


@pytest.mark.slow
def test_python(prepared, palette_graphs):
    os.link(palette_graphs('cityscapes')[1], prepared / 'cityscapes.npz')
    block, = [block for kind, block in BLOCKS if kind == 'python']
    result = run(prepared, sys.executable, '-c',
                 block + 'print(label.shape, label.dtype)')
    assert result.stdout.split('\n')[0] == '(72, 96) int32', result.stderr


def test_files_are_there():
    table = README[README.index('| File |'):README.index('To work on it')]
    named = set(re.findall(r'`([\w/*]+\.py)`', table))
    for name in named:
        assert list(ROOT.glob(name)), name
    listed = {path.name for name in named for path in ROOT.glob(name)}
    missing = {path.name for folder in (ROOT, ROOT / 'models')
               for path in folder.glob('*.py')} - listed
    assert missing <= {'__init__.py', 'errors.py'}
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'`make (?:PYTHON=\S+ )?([\w-]+)`', README):
        assert f'\n{target}:' in makefile, target
