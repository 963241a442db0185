"""What --gpu runs, through CuPy and through Chainer, on a stand-in for CuPy."""
import math
import os
import pathlib
import subprocess
import sys
import warnings
from types import SimpleNamespace

import chainer
import numpy as np
import pytest
from chainer.backends import cuda
from conftest import ROOT
from fixture_gpu import DeviceArray, StandInDevice, emulate, outside
from fixture_images import patches, write_image, write_tree

from evaluation.labelled_images import LabelledImages
from evaluation.run import State, evaluate
from media.images import read_image
from media.segmentation import Segmenter
from models import DeepLabV3plusXception65, chainer_compat, gpu
from models.classes import label_names
from models.utils.errors import InputError


@pytest.fixture
def device(monkeypatch):
    """Make Chainer and the project take the stand-in for a GPU."""
    yield from emulate(monkeypatch)


def test_the_stand_in_is_strict(device):
    array = outside(np.ones(3, np.float32))
    with pytest.raises(TypeError):
        array + np.ones(3)
    with pytest.raises(TypeError):
        np.concatenate([array, array])
    with pytest.raises(TypeError):
        chainer.functions.concat((array, np.ones(3, np.float32)), axis=0)
    assert isinstance((array + 1)[:2], DeviceArray)
    assert isinstance(chainer.functions.relu(array).array, DeviceArray)


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['to_openvino', 'to_chainer'])
@pytest.mark.parametrize('options', [
    {}, {'scales': (0.5, 1.0), 'flip': True}])
def test_predict(device, palette_graphs, tmp_path, options, backend):
    _, npz = palette_graphs('cityscapes')
    image = read_image(write_image(tmp_path / 'a.png'))
    model = DeepLabV3plusXception65(
        pretrained_model=npz, min_input_size=65, **options)
    expected = model.predict([image])[0]
    getattr(model, backend)()
    label, = model.to_device(StandInDevice()).predict([image])
    assert type(label) is np.ndarray
    assert label.dtype == np.int32
    assert (label == expected).mean() > 0.999


@pytest.mark.slow
def test_large_images_are_tiled(device, palette_graphs, tmp_path):
    _, npz = palette_graphs('cityscapes')
    image = read_image(write_image(tmp_path / 'a.png', size=(321, 449)))
    model = DeepLabV3plusXception65(
        pretrained_model=npz, min_input_size=65, output_stride=16)
    expected, = model.predict([image])
    model.to_device(StandInDevice())
    assert model.free_memory() == 9e9
    segmenter = Segmenter(model, label_names('cityscapes'), None)
    _, record, _ = segmenter.segment(image)
    assert record['tiles'] == 1
    device.cuda.runtime.memGetInfo = lambda: (0, 8e9)
    freed = []
    device.pool.free_bytes = lambda: model.memory_needed(265, 265)
    device.pool.free_all_blocks = lambda: freed.append(1)
    label, record, notes = segmenter.segment(image)
    assert record['tiles'] == len(freed) >= 4
    assert 'overlapping tiles' in notes[0]
    assert (label == expected).mean() > 0.99


def test_memory_counts_classes_scales_and_size(device, monkeypatch):
    """On Chainer; of the other way, tests/models/test_cupy_engine.py."""
    link = DeepLabV3plusXception65(19, min_input_size=513).to_chainer()
    link.to_device(StandInDevice())
    monkeypatch.setattr(cuda, 'cudnn_enabled', True)
    assert 0.5e9 < link.memory_needed(513, 513) < 0.8e9
    one = link.memory_needed(1025, 2049)
    assert 3.1e9 < one < 4e9
    # No array of 2^31 numbers: 32 for a pixel, or one for each class.
    assert link.memory_needed(8000, 8380) < math.inf
    assert link.memory_needed(8000, 8400) == math.inf
    with pytest.raises(InputError, match='the image is too large for a GPU'):
        link.predict([np.zeros((3, 8000, 8400), np.uint8)])
    link.n_class = 150
    assert link.memory_needed(4000, 3570) < math.inf
    assert link.memory_needed(4000, 3580) == math.inf
    link.n_class = 19
    link.scales, link.flip = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True
    assert link.memory_needed(1025, 2049) > 1.75 ** 2 * one


@pytest.mark.slow
def test_evaluation(device, palette_graphs, tmp_path):
    _, npz = palette_graphs('voc')
    images = LabelledImages('voc', write_tree(
        'voc', tmp_path / 'data', patches('voc', 2), 30), 'val')
    link = DeepLabV3plusXception65(pretrained_model=npz, min_input_size=65)
    matrices = []
    for model in link, link.copy('copy').to_device(StandInDevice()):
        state = State(21)
        evaluate(images, model, state, lambda: None, show=False)
        matrices.append(state.matrix)
    assert np.abs(matrices[0] - matrices[1]).sum() <= 1e-3 * matrices[0].sum()


class CUDARuntimeError(Exception):
    """CuPy's, with the number of an error of CUDA."""

    def __init__(self, status=0):
        super().__init__(f'error {status}')
        self.status = status


def card(monkeypatch, capability='80', cudnn=8907, counting=None, opening=None):
    """Let CuPy find two cards of a compute capability; or errors of CUDA at
    counting them or at opening one.
    """
    def fails_with(status, value=None):
        if status is not None:
            raise CUDARuntimeError(status)
        return value

    runtime = SimpleNamespace(
        getDeviceCount=lambda: fails_with(counting, 2),
        setDevice=lambda number: None, free=lambda at: fails_with(opening),
        CUDARuntimeError=CUDARuntimeError)
    monkeypatch.setattr(cuda, 'available', True)
    monkeypatch.setattr(cuda, 'cudnn_enabled', True)
    monkeypatch.setattr(cuda, 'cupy', SimpleNamespace(cuda=SimpleNamespace(
        runtime=runtime, cudnn=SimpleNamespace(getVersion=lambda: cudnn),
        Device=lambda *number: SimpleNamespace(compute_capability=capability))))


@pytest.mark.parametrize(('options', 'number', 'words'), [
    ({'counting': 35}, 0, 'GPU 0 needs a newer driver: .* 525.60 and later'),
    ({'counting': 100}, 0, 'finds no NVIDIA GPU'),
    ({'counting': 999}, 0, r'GPU 0 cannot be used \(error 999\)'),
    ({'opening': 46}, 1, 'GPU 1 is held by another process alone'),
    ({'opening': 2}, 1, 'GPU 1 is out of memory: other processes'),
    ({'capability': '37'}, 1, 'has compute capability 3.7, and CUDA 12 needs '
                              '5.0'),
    ({}, 2, 'there is no GPU 2: they are numbered 0 to 1'),
])
def test_a_gpu_that_cannot_be_used(monkeypatch, options, number, words):
    card(monkeypatch, **options)
    with pytest.raises(InputError, match=words):
        gpu.check_gpu(number)


def test_a_gpu_that_can_be_used(monkeypatch):
    card(monkeypatch)
    gpu.check_gpu(1)


def test_a_gpu_without_cupy(monkeypatch):
    monkeypatch.setattr(cuda, '_resolution_error', ImportError(
        'libcublas.so.12: cannot open shared object file'), raising=False)
    with pytest.raises(InputError, match=r'cannot load it \(libcublas.so.12: '):
        gpu.check_gpu(0)


@pytest.mark.parametrize(('capability', 'cudnn', 'use_cudnn', 'size', 'kept'), [
    ('86', 8907, 'auto', 8 << 20, 512 << 20),
    ('86', 8907, 'auto', 1 << 30, 1 << 30),  # a user's own
    ('120', 90100, 'auto', 8 << 20, 512 << 20),
    ('120', 8907, 'never', 8 << 20, 512 << 20),
])
def test_settings_of_cards(monkeypatch, capability, cudnn, use_cudnn, size,
                           kept):
    card(monkeypatch, capability, cudnn)
    sizes = [size]
    monkeypatch.setattr(cuda, 'get_max_workspace_size', lambda: sizes[-1])
    monkeypatch.setattr(cuda, 'set_max_workspace_size', sizes.append)
    monkeypatch.setattr(chainer.global_config, 'use_cudnn', 'auto')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        gpu.set_up()
    assert (chainer.config.use_cudnn, sizes[-1]) == (use_cudnn, kept)
    assert [str(each.message)[:30] for each in said] == (
        ['cuDNN 8 has no code for this G'] if use_cudnn == 'never' else [])


@pytest.mark.parametrize(('setting', 'capability', 'used'), [
    (None, '90', False), ('1', '90', True), ('1', '75', False)])
def test_tf32_is_off_unless_the_environment_allows_it(monkeypatch, setting,
                                                      capability, used):
    environment = {name: value for name, value in os.environ.items()
                   if name != 'NVIDIA_TF32_OVERRIDE'}
    if setting is not None:
        environment['NVIDIA_TF32_OVERRIDE'] = setting
    found = subprocess.run(
        [sys.executable, '-c', 'import models, os; print(os.environ['
         '"NVIDIA_TF32_OVERRIDE"])'], cwd=ROOT, env=environment, text=True,
        capture_output=True, check=True).stdout.strip()
    assert found == (setting or '0')
    monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', found)
    card(monkeypatch, capability)
    assert gpu.uses_tf32() is used


def test_tf32_restarts_the_command(tmp_path):
    """Once, with the same arguments."""
    (tmp_path / 'script.py').write_text(f"""
import argparse, os, sys
sys.path.insert(0, {str(ROOT)!r})
from command_line.model_options import add_model_options, check_model_options
print('started', os.environ.get('NVIDIA_TF32_OVERRIDE'), flush=True)
parser = argparse.ArgumentParser()
add_model_options(parser, 'voc')
args = parser.parse_args()
check_model_options(parser, args)
print(args.gpu, args.pretrained_model)
""")
    environment = {name: value for name, value in os.environ.items()
                   if name != 'NVIDIA_TF32_OVERRIDE'}
    lines = subprocess.run(
        [sys.executable, tmp_path / 'script.py', '--gpu', '1', '--tf32',
         '--pretrained-model', 'a b'], env=environment, text=True,
        capture_output=True, check=True).stdout.splitlines()
    assert lines == ['started 0', 'started 1', '1 a b']


def test_cuda_libraries_that_pip_installed(monkeypatch, tmp_path):
    loaded = []

    def load(path):
        if not pathlib.Path(path).is_file():
            raise OSError(path)
        loaded.append(str(pathlib.Path(path).relative_to(tmp_path)))

    names = ('nvidia/cublas/lib/libcublasLt.so.12',
             'nvidia/cublas/lib/libcublas.so.12')
    for name in (*names, 'nvidia/cublas/lib/libcublas.so.13'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    specs = {'cupy': None, 'nvidia': SimpleNamespace(
        submodule_search_locations=[tmp_path / 'nvidia'])}
    monkeypatch.setattr(chainer_compat.importlib.util, 'find_spec', specs.get)
    monkeypatch.setattr(chainer_compat.ctypes, 'CDLL', load)
    chainer_compat._load_cuda_libraries()
    assert not loaded  # who has no CuPy wants none
    specs['cupy'] = 'is there'
    chainer_compat._load_cuda_libraries()
    assert set(loaded) == set(names)
