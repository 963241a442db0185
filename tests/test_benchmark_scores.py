"""`make scores`: models from a host on loopback, and data, to the table."""
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL
from fixture_images import packed, patches, write_tree

from evaluation.dataset_files import ARCHIVES
from models.pretrained import URLS
from models.utils.download import MIRROR


def run(folder, *command, **variables):
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        timeout=300, env={**os.environ, **variables,
                          'CHAINER_DATASET_ROOT': str(folder / 'kept')})


@pytest.fixture
def mirror(host, palette_graphs, tmp_path):
    """A host that has the three models, and another ADE20K than the official
    one; VOC2012 is where ChainerCV keeps it.
    """
    for dataset, urls in URLS.items():
        host.files[urls['npz'].rpartition('/')[2]] = palette_graphs(
            dataset, SMALL)[1].read_bytes()
        write_tree(dataset, tmp_path / dataset, patches(dataset, 2), 20)
    host.files[ARCHIVES['ade20k'].url.rpartition('/')[2]] = packed(
        tmp_path / 'ade20k', '.zip')
    shutil.copytree(tmp_path / 'voc', kept(tmp_path, 'voc'))
    return host


def kept(folder, dataset):
    return folder / 'kept/pfnet/chainercv' / dataset


def rows(page):
    """Return the measured figure and the verdict by dataset."""
    cells = [[cell.strip() for cell in line.split('|')[1:-1]]
             for line in page.splitlines() if line.startswith('| ')]
    return {row[1]: tuple(row[4:]) for row in cells[1:]}


@pytest.mark.slow
def test_scores(mirror, tmp_path):
    """By two processes while ADE20K and Cityscapes are missing; then all."""
    # The host is the proxy as well, so that nothing else is asked.
    variables = {MIRROR: mirror.url, 'http_proxy': mirror.url,
                 'https_proxy': mirror.url, 'no_proxy': '127.0.0.1'}
    mpiexec = Path(sys.executable).parent / 'mpiexec'
    options = '--input-size', '65', '--output-stride', '8'
    result = run(tmp_path, mpiexec, '-n', '2', sys.executable,
                 ROOT / 'benchmarks/scores.py', *options, '--output', 'two',
                 **variables)
    assert result.returncode != 0
    for words in (
            'ade20k is left out: ADEChallengeData2016.zip cannot be ',
            'cityscapes is left out: cityscapes needs a login: unpack leftIm',
            'error: not all was measured: ade20k, cityscapes'):
        assert result.stderr.count(words) == 1
    assert 'ADEChallengeData2016.zip is not the official' in result.stderr
    first = rows((tmp_path / 'two/scores.md').read_text())
    measured, verdict = first['VOC2012 val']
    assert 30 < float(measured.rstrip(' %')) < 90
    assert verdict.startswith('published 82.36 %, difference -')
    assert first['ADE20K val'][0] == first['Cityscapes val fine'][0] == ''

    for dataset in 'ade20k', 'cityscapes':
        shutil.copytree(tmp_path / dataset, kept(tmp_path, dataset),
                        dirs_exist_ok=True)
    (tmp_path / 'benchmarks').symlink_to(ROOT / 'benchmarks')
    result = run(tmp_path, 'make', '-f', ROOT / 'Makefile', '-o', 'installed',
                 'scores', 'INSTALLED=installed',
                 f'PY={shlex.quote(sys.executable)}',
                 f'OPTIONS={" ".join(options)}', **variables)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / 'scores/scores.md').read_text()
    assert page in result.stdout
    second = rows(page)
    assert second['VOC2012 val'] == first['VOC2012 val']
    assert all('%' in measured for measured, _ in second.values())
