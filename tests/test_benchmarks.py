"""That the longer benchmarks run: no time is judged here."""
import importlib

import pytest
from conftest import ROOT


def gpu_figures(in_tf32=(), **changes):
    in_tf32 = dict(in_tf32)
    row = {'configuration': '513x513, output stride 8, scales 1',
           'backend': 'CuPyEngine', 'goal': 0.012, 'seconds': 0.1234,
           'frozen_seconds': 0.1, 'chainer_seconds': 0.2,
           'equal_labels': 0.99995, 'equal_in_float32': 1., 'peak_bytes': 4e8,
           'pool_bytes': 5e8, 'counted_bytes': 6e8,
           'parts': {'all': (168, 0.0103), 'product': (79, 0.0099)}}
    return {'float32': [{**row, **changes}],
            'TF32': [{**row, 'equal_labels': 0.97, **in_tf32}]}


@pytest.mark.parametrize(('changes', 'words'), [
    ({}, 'All is as it should be: '),
    ({'equal_labels': 0.9998}, 'NOT as it should be: 513x513, output stride 8, '
     'scales 1: only 99.980% of the labels.'),
    ({'backend': 'function'}, 'scales 1: function instead of CuPyEngine.'),
    ({'in_tf32': {'equal_in_float32': 0.97}}, 'scales 1: only 97.000% of the '
     'labels in float32 beside TF32.'),
    ({'peak_bytes': 7e8}, 'scales 1: 0.70 GB in use, and 0.60 GB were counte'),
])
def test_verdict_on_a_gpu(monkeypatch, changes, words):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    gpu = importlib.import_module('gpu')
    assert words in gpu.verdict(gpu_figures(**changes))
    found = gpu_figures(**changes)
    assert '| float32 | 123.4 | 100.0 | 12.0 | 200.0 | ' in gpu.table(found)
    assert '| float32 | 10.30 (168) | 9.90 (79) |' in gpu.table_of_parts(found)
    assert len(list(gpu.configurations())) == 6


def test_no_gpu(fails):
    fails('--gpu 0 needs CuPy', 'benchmarks/gpu.py')


@pytest.mark.slow
def test_speed(run_script):
    result = run_script(
        'benchmarks/speed.py', '--sizes', '129x129', '--output-strides', 16,
        '--rounds', 1, '--without', 'chainer', 'chainercv',
        'tensorflow', 'pytorch')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    rows = {line.split('|')[1].strip(): line for line in lines if '|' in line}
    assert '| 100.000% |' in rows['this project, OpenVINO']
    assert '| 100.000% |' in rows['ONNX Runtime, exported file']
    assert 'matrix products alone (floor)' in rows
