"""What --gpu runs, through CuPy and through Chainer, on a stand-in for CuPy."""
import _ctypes
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import chainer
import numpy as np
import pytest
from chainer.backends import cuda
from conftest import ROOT, linux_only
from fixture_gpu import StandIn, emulate
from fixture_images import write_image

from command_line.model_options import load_model
from media.images import read_image
from media.segmentation import Segmenter
from models import DeepLabV3plusXception65, gpu
from models.chainer_engine import ChainerEngine
from models.cupy_engine import CuPyEngine
from models.utils.errors import InputError

TF32 = 'NVIDIA_TF32_OVERRIDE'


@pytest.fixture
def device(monkeypatch):
    """Make Chainer and the project take the stand-in for a GPU."""
    yield from emulate(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['to_openvino', 'to_chainer'])
@pytest.mark.parametrize('options', [
    {}, {'scales': (0.5, 1.0), 'flip': True}])
def test_predict(device, palette_graphs, tmp_path, options, backend):
    """Nothing but the image and the labels passes between device and CPU."""
    _, npz = palette_graphs('cityscapes')
    image = read_image(write_image(tmp_path / 'a.png'))
    model = DeepLabV3plusXception65(
        pretrained_model=npz, min_input_size=65, **options)
    expected, = model.predict([image])
    getattr(model, backend)()
    label, = model.to_device(StandIn()).predict([image])
    assert type(label) is np.ndarray
    assert label.dtype == np.int32
    assert (label == expected).mean() > 0.999


def test_a_script_takes_its_gpu(device, palette_graphs, monkeypatch):
    _, npz = palette_graphs('cityscapes')
    used = []
    monkeypatch.setattr(gpu, 'check_gpu', used.append)
    monkeypatch.setattr(cuda, 'get_device_from_id', lambda number:
                        SimpleNamespace(use=lambda: used.append(number)))
    monkeypatch.setattr(chainer.DeviceResident, 'to_gpu', lambda model, number:
                        model.to_device(StandIn(number)))
    processes = SimpleNamespace(size=1, rank=0, local_rank=0)
    model = load_model(npz, processes, gpu=0)
    assert used == [0, 0]
    assert type(model.compile()) is CuPyEngine
    model = load_model(npz, processes, gpu=0, backend='chainer')
    assert type(model.compile()) is ChainerEngine


@pytest.mark.slow
def test_large_images_are_tiled(device, palette_graphs, tmp_path):
    """What CuPy keeps counts as free."""
    _, npz = palette_graphs('cityscapes')
    image = read_image(write_image(tmp_path / 'a.png', size=(321, 449)))
    model = DeepLabV3plusXception65(
        pretrained_model=npz, min_input_size=65, output_stride=16)
    expected, = model.predict([image])
    model.to_device(StandIn())
    segmenter = Segmenter(model)
    _, record, _ = segmenter.segment(image)
    assert record['tiles'] == 1
    cuda.cupy.cuda.runtime.memGetInfo = lambda: (0, 8e9)
    device.pool.free_bytes = lambda: model.memory_needed(265, 265)
    label, record, _ = segmenter.segment(image)
    assert record['tiles'] >= 4
    assert (label == expected).mean() > 0.99


def test_memory_counts_classes_scales_and_size(device, monkeypatch):
    """On Chainer, as a real card has used (benchmarks/gpu.py); on CuPy it is
    exact (tests/models/test_cupy_engine.py).
    """
    link = DeepLabV3plusXception65(19, min_input_size=513).to_chainer()
    link.to_device(StandIn())
    assert 7.3e9 < link.memory_needed(1025, 2049) < 8.5e9
    monkeypatch.setattr(cuda, 'cudnn_enabled', True)
    assert 0.5e9 < link.memory_needed(513, 513) < 0.8e9
    one = link.memory_needed(1025, 2049)
    assert 3.1e9 < one < 4e9
    link.n_class = 150
    assert link.memory_needed(1025, 2049) > one + 3 * 4 * 131 * 1025 * 2049 - 1
    link.n_class = 19
    link.scales, link.flip = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True
    assert link.memory_needed(1025, 2049) > 1.75 ** 2 * one


def card(monkeypatch, capability='80', counting=None, opening=None,
         compiling=None):
    """Let CuPy find two cards of a compute capability; or errors of CUDA at
    counting them, at opening one, or at loading its compiler.
    """
    def fails_with(status, value=None):
        if status is not None:
            raise RuntimeError(f'error {status}')
        return value

    runtime = SimpleNamespace(
        getDeviceCount=lambda: fails_with(counting, 2),
        setDevice=lambda number: None, free=lambda at: fails_with(opening))
    monkeypatch.setattr(cuda, 'available', True)
    monkeypatch.setattr(cuda, 'cupy', SimpleNamespace(cuda=SimpleNamespace(
        runtime=runtime,
        nvrtc=SimpleNamespace(getVersion=lambda: fails_with(compiling)),
        Device=lambda: SimpleNamespace(compute_capability=capability))))


@pytest.mark.parametrize(('options', 'number', 'words'), [
    ({'counting': 35}, 0, r'GPU 0 cannot be used \(error 35\): leave --gpu'),
    ({'opening': 46}, 1, r'GPU 1 cannot be used \(error 46\): leave --gpu'),
    ({'compiling': 1}, 0, r'GPU 0 cannot be used \(error 1\): leave --gpu'),
    ({}, 2, 'there is no GPU 2: they are numbered 0 to 1'),
])
def test_a_gpu_that_cannot_be_used(monkeypatch, options, number, words):
    card(monkeypatch, **options)
    with pytest.raises(InputError, match=words):
        gpu.check_gpu(number)
    card(monkeypatch)
    gpu.check_gpu(1)


@pytest.mark.parametrize(('size', 'kept'), [
    (8 << 20, 512 << 20), (1 << 30, 1 << 30)])  # a user's own
def test_workspace_of_cudnn(device, monkeypatch, size, kept):
    sizes = [size]
    monkeypatch.setattr(cuda, 'get_max_workspace_size', lambda: sizes[-1])
    monkeypatch.setattr(cuda, 'set_max_workspace_size', sizes.append)
    DeepLabV3plusXception65(1).to_device(StandIn())
    assert sizes[-1] == kept


@pytest.mark.parametrize(('setting', 'capability', 'used', 'fast'), [
    ('0', '90', False, False), (None, '90', False, True),
    ('1', '90', True, True), ('1', '75', False, False),
    (None, '89', False, False), ('1', '89', True, False)])
def test_tf32_needs_a_card_and_leave(monkeypatch, setting, capability, used,
                                     fast):
    monkeypatch.delenv(TF32, raising=False)
    if setting is not None:
        monkeypatch.setenv(TF32, setting)
    card(monkeypatch, capability)
    assert gpu.uses_tf32() is used
    assert gpu.tf32_is_fast() is fast


FROM_PYTHON = 'from models import DeepLabV3plusXception65'
FROM_A_SCRIPT = """
import argparse, sys
from command_line.model_options import add_model_options, check_model_options
parser = argparse.ArgumentParser()
add_model_options(parser, 'voc')
check_model_options(parser, parser.parse_args())
import chainer
"""


@linux_only
@pytest.mark.parametrize(('code', 'options', 'setting', 'found'), [
    (FROM_PYTHON, [], None, 'None'), (FROM_PYTHON, ['cuDNN'], None, '0'),
    (FROM_PYTHON, ['cuDNN'], '1', '1'), (FROM_PYTHON, ['cuDNN'], '', '0'),
    (FROM_A_SCRIPT, ['--gpu', '1'], None, 'None'),
    (FROM_A_SCRIPT, ['--gpu', '1'], '1', '1'),
    (FROM_A_SCRIPT, ['--gpu', '1', '--tf32'], None, '1'),
    (FROM_A_SCRIPT, ['--gpu', '1', '--tf32'], '0', '1'),
])
def test_what_cupy_finds(tmp_path, code, options, setting, found):
    """Chainer imports CuPy: by then pip's libraries are loaded, it is settled
    whether they may compute in TF32, and nothing is said of cuDNN.
    """
    library = tmp_path / 'nvidia/cublas/lib/libcublas.so.12'
    library.parent.mkdir(parents=True)
    shutil.copy(_ctypes.__file__, library)  # any that can be loaded
    if 'cuDNN' in options:
        (tmp_path / 'cudnn.py').touch()
    (tmp_path / 'cupy.py').write_text("""
import os, warnings
warnings.warn('cuDNN is not enabled.')
print(os.environ.get('NVIDIA_TF32_OVERRIDE'), open('/proc/self/maps').read())
raise ImportError
""")
    environment = {name: value for name, value in os.environ.items()
                   if name != 'NVIDIA_TF32_OVERRIDE'}
    if setting is not None:
        environment['NVIDIA_TF32_OVERRIDE'] = setting
    result = subprocess.run(
        [sys.executable, '-c', code, *options], cwd=ROOT, text=True,
        env={**environment, 'PYTHONPATH': str(tmp_path)},
        capture_output=True, check=True)
    assert result.stdout.split()[0] == found
    assert str(library) in result.stdout
    assert 'cuDNN' not in result.stderr
