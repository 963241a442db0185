"""The longer benchmarks run; times are not checked."""
import importlib

import pytest
from conftest import ROOT


@pytest.mark.parametrize(('changes', 'words'), [
    ({}, 'All is as it should be: '),
    ({'equal_labels': 0.9998}, 'NOT as it should be: voc, output stride 8, '
     'float32: CuPyEngine, 99.980% of the labels in float32, 0.40 of 0.60 GB.'),
    ({'backend': 'ChainerEngine'}, 'TF32: ChainerEngine, 99.995% of the'),
    ({'equal_in_float32': 0.97}, 'TF32: CuPyEngine, 97.000% of the labels in'),
    ({'peak': 0.7}, '0.70 of 0.60 GB; '),
])
def test_verdict_on_a_gpu(monkeypatch, changes, words):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    good = {'configuration': 'voc, output stride 8',
            'backend': 'CuPyEngine', 'equal_labels': 0.99995,
            'equal_in_float32': 0.99995, 'peak': 0.4, 'counted': 0.6}
    assert words in importlib.import_module('gpu').verdict({
        'float32': [{**good, **changes}],
        'TF32': [{**good, **changes, 'equal_labels': 0.97}]})


def test_no_gpu(fails):
    fails('--gpu 0 needs CuPy', 'benchmarks/gpu.py')


@pytest.mark.slow
def test_speed(run_script):
    result = run_script(
        'benchmarks/speed.py', '--sizes', '129x129', '--output-strides', 16,
        '--rounds', 1, '--without', 'chainer', 'chainercv', 'tensorflow')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    rows = {line.split('|')[1].strip(): line for line in lines if '|' in line}
    assert '| 100.000% |' in rows['this project, OpenVINO']
    assert '| 100.000% |' in rows['ONNX Runtime, exported file']
    assert 'matrix products alone (floor)' in rows
