"""That the longer benchmarks run: no time is judged here."""

import pytest


@pytest.mark.slow
def test_speed(run_script):
    result = run_script(
        'benchmarks/speed.py', '--sizes', '129x129', '--output-strides', 16,
        '--rounds', 1, '--frames', 2, '--without', 'chainer', 'chainercv',
        'tensorflow', 'pytorch')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    rows = {line.split('|')[1].strip(): line for line in lines if '|' in line}
    assert '| 100.000% |' in rows['this project, OpenVINO']
    assert '| 100.000% |' in rows['ONNX Runtime, exported file']
    assert 'matrix products alone (floor)' in rows
    assert any(line.startswith('last step: ') for line in lines)
