"""The demo, from the command line."""
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import ROOT, start_script
from PIL import Image, ImageGrab

from media import images
from models import DeepLabV3plusXception65
from models.weights import named_arrays, write_npz


@pytest.mark.slow
def test_writes_an_image(palette_graphs, run_script):
    _, npz = palette_graphs('cityscapes')
    Image.open(ROOT / 'assets/street.png').crop((200, 200, 420, 350)).save(
        run_script.folder / 'a street.png')
    result = run_script('demo.py', '--pretrained-model', npz, '--input-size',
                        65, 'a street.png')
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == 'a street_segmentation.png'
    picture = np.asarray(Image.open(
        run_script.folder / 'a street_segmentation.png').convert('RGB'))
    assert min(picture.shape[:2]) > 400
    for color in (0, 0, 142), (128, 64, 128):  # car, road
        assert (picture[:, picture.shape[1] // 2:] == color).all(-1).any()


def save_png(path, **options):
    Image.effect_noise((20, 10), 90).convert('RGB').save(path, **options)


def test_refuses_bad_input(fails, palette_graphs, tmp_path):
    pb, npz = palette_graphs('voc')
    model = '--pretrained-model', npz
    save_png(tmp_path / 'image.png')
    good = tmp_path / 'image.png'
    (tmp_path / 'text.png').write_text('no picture')
    (tmp_path / 'cut.png').write_bytes(good.read_bytes()[:-120])
    fails('cannot be read as an image', 'demo.py', *model,
          tmp_path / 'text.png')
    fails('cannot be read as an image', 'demo.py', *model,
          tmp_path / 'cut.png')
    fails('No such file', 'demo.py', *model, tmp_path / 'no.png')
    fails('no.npz is no file', 'demo.py', '--pretrained-model', 'no.npz', good)
    fails('convert it with tf2npz.py', 'demo.py', '--pretrained-model', pb,
          good)
    fails('ade20k has 150 classes, and the model 21', 'demo.py',
          *model, '--dataset', 'ade20k', good)
    fails('--gpu 99', 'demo.py', *model, '--gpu', 99, good)
    fails('must end in one of', 'demo.py', *model, '--output', 'x.xyz', good)


@pytest.fixture
def display():
    """Return the name of a virtual display, where Xvfb and Tk are there."""
    if not shutil.which('Xvfb') or not importlib.util.find_spec('_tkinter'):
        pytest.skip('needs Xvfb and Tk')
    with subprocess.Popen(
            ['Xvfb', '-displayfd', '1', '-noreset', '-screen', '0',
             '1920x1080x24'],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        yield f':{server.stdout.readline().decode().strip()}'
        server.kill()


@pytest.mark.slow
def test_opens_a_window(palette_graphs, display, tmp_path):
    _, npz = palette_graphs('cityscapes')
    street = ROOT / 'assets/street.png'
    process = start_script(
        'demo.py', '--pretrained-model', npz, '--input-size', 65, street,
        street, cwd=tmp_path, env={**os.environ, 'DISPLAY': display})
    deadline = time.monotonic() + 60
    seen = np.zeros((1, 1, 3), np.uint8)
    while not (seen == (0, 0, 142)).all(-1).any():  # a car
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
        seen = np.asarray(ImageGrab.grab(xdisplay=display))
    assert (seen[:, 1440:] == 0).all()  # it fits a screen
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 130
    assert 'error: interrupted: 0 of 1 done' in text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_without_openvino(palette_graphs, run_script, tmp_path):
    _, npz = palette_graphs('voc')
    save_png(tmp_path / 'image.png')
    (tmp_path / 'openvino.py').write_text('raise RuntimeError("no home")')
    arguments = ('demo.py', '--pretrained-model', npz, '--input-size', 65,
                 tmp_path / 'image.png')
    result = run_script(*arguments, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0
    assert result.stderr.startswith(
        'warning: OpenVINO cannot be used (no home): install '
        'requirements.txt: predict runs on Chainer instead, several times as '
        'slow\n')
    assert (run_script.folder / 'image_segmentation.png').exists()
    result = run_script(*arguments, '--backend', 'openvino', '--force',
                        PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert result.stderr.startswith('error: OpenVINO cannot be used')
    assert result.stderr.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['openvino', 'chainer', 'auto'])
def test_backend_and_threads(palette_graphs, run_script, tmp_path, backend):
    _, npz = palette_graphs('voc')
    save_png(tmp_path / 'image.png')
    result = run_script('demo.py', '--pretrained-model', npz, '--input-size',
                        65, '--backend', backend, '--threads', 1,
                        tmp_path / 'image.png')
    assert result.returncode == 0
    assert result.stderr.startswith('loading ')
    assert result.stderr.count('\n') == 1


@pytest.mark.slow
def test_refuses_an_unwritable_output(run_script, palette_graphs, tmp_path):
    _, npz = palette_graphs('voc')
    save_png(tmp_path / 'image.png')
    result = run_script(
        'demo.py', '--pretrained-model', npz, '--input-size', 65, '--output',
        tmp_path / 'image.png' / 'out.png', tmp_path / 'image.png')
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert 'image.png is a file, not a folder\n' in result.stderr


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


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'LA', 'CMYK', '1', 'I;16'])
def test_reads_modes_as_rgb(tmp_path, mode):
    path = tmp_path / ('a.tif' if mode == 'CMYK' else 'a.png')
    if mode == 'I;16':
        Image.fromarray(np.full((10, 20), 204 << 8, np.uint16)).save(path)
    else:
        Image.new('RGB', (20, 10), (204, 204, 204)).convert(mode).save(path)
    image = images.read_image(path)
    assert image.shape == (3, 10, 20)
    assert image.dtype == np.float32
    if mode != '1':
        np.testing.assert_array_equal(image, 204)


def test_applies_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    save_png(tmp_path / 'a.png', exif=exif)
    assert images.read_image(tmp_path / 'a.png').shape == (3, 20, 10)


@pytest.mark.parametrize('kind', images.FORMATS)
def test_reads_formats(tmp_path, kind):
    Image.new('RGB', (20, 10), (204, 204, 204)).save(tmp_path / 'a', kind)
    np.testing.assert_allclose(
        images.read_image(tmp_path / 'a'), np.full((3, 10, 20), 204), atol=2)


def test_postscript_is_no_image(tmp_path):
    """Pillow would have Ghostscript run it."""
    Image.new('RGB', (20, 10)).save(tmp_path / 'a.png', 'EPS')
    with pytest.raises(images.InputError, match='unknown format'):
        images.read_image(tmp_path / 'a.png')


def test_dataset_takes_its_model(run_script, tmp_path):
    """What is asked for is seen by what would be downloaded."""
    save_png(tmp_path / 'image.png')
    variables = {'DEEPLAB_MIRROR': 'file:///nowhere', 'CHAINER_DATASET_ROOT':
                 str(tmp_path / 'cache'), 'http_proxy': 'http://127.0.0.1:9',
                 'https_proxy': 'nowhere://'}
    result = run_script('demo.py', '--dataset', 'voc', tmp_path / 'image.png',
                        **variables)
    assert result.returncode == 1
    assert 'deeplabv3plus_xception65_voc_converted' in result.stderr
    assert 'cityscapes' not in result.stderr
    result = run_script('demo.py', '--dataset', 'voc', '--pretrained-model',
                        'ade20k', tmp_path / 'image.png', **variables)
    assert result.returncode == 2
    assert ('--dataset voc has other classes than the ade20k model: leave one '
            'out') in result.stderr
    assert 'downloading' not in result.stderr


@pytest.mark.slow
def test_classes_without_names_are_numbered(run_script, tmp_path):
    save_png(tmp_path / 'image.png')
    model = DeepLabV3plusXception65(n_class=5)
    write_npz(tmp_path / 'a.npz', named_arrays(model).items(), {})
    result = run_script('demo.py', '--pretrained-model', tmp_path / 'a.npz',
                        '--input-size', 65, '--json', 'a.json',
                        tmp_path / 'image.png')
    assert result.returncode == 0, result.stderr
    assert 'does not name its 5 classes: they are numbered here' in (
        result.stderr)
    record, = json.loads((run_script.folder / 'a.json').read_text())
    assert set(record['shares']) <= {f'class {i}' for i in range(5)}
