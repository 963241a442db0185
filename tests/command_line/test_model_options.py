"""Options that several scripts share."""

import pytest

from command_line.model_options import image_scales, image_size


@pytest.mark.parametrize(('text', 'size'), [
    ('513', (513, 513)), ('513x1025', (513, 1025)), ('513 1025', (513, 1025))])
def test_image_size(text, size):
    assert image_size(text) == size


@pytest.mark.parametrize('text', ['0.5,1', '0.5 1', ' .5, 1.0'])
def test_image_scales(text):
    assert image_scales(text) == (0.5, 1.0)


def test_a_number_after_a_size_is_an_input(run_script):
    (run_script.folder / '2024').mkdir()
    result = run_script('demo.py', '--scales', '0.5,1', '2025', '--input-size',
                        '65x65', '2024')
    assert result.stderr.splitlines()[:2] == [
        'error: 2025: No such file or directory (a size or scales are one '
        'word, as 513x1025 or 0.75,1.0)',
        'error: 2024: no image or video was found']


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--threads', 0], '--threads is 0, and must be positive'),
    (['--threads', 2, '--gpu', 0], 'are for a CPU, not for --gpu'),
    (['--tf32'], '--tf32 is for --gpu'),
    (['--precision', 'bfloat16', '--gpu', 0], 'is for OpenVINO on a CPU'),
    (['--backend', 'fast'], 'invalid choice'),
])
def test_refuses_backends(run_script, arguments, words):
    result = run_script('demo.py', *arguments, 'a.png')
    assert result.returncode == 2
    assert words in result.stderr


def test_refuses_input_sizes(run_script):
    for size in '0', '1x2x3', '513,', 'large', '99999':
        result = run_script('demo.py', '--input-size', size, 'a.png')
        assert result.returncode == 2
        assert 'a size is one or two numbers up to 16384' in result.stderr
