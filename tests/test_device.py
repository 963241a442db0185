"""What --gpu runs, on a stand-in for a GPU's arrays.

The stand-in is as strict as CuPy: its arrays do not become NumPy's unless
they are asked to (`get`), and do not work together with NumPy's. Chainer's own
functions are taken as they are: what goes into one must lie on the device, and
what comes out of it does.
"""
import importlib.util
import json
import pathlib
import sys
import types

import chainer
import numpy as np
import pytest
from conftest import ROOT
from fixture_images import patches, write_image, write_tree

import demo
from command_line import evaluation as evaluation_script
from command_line import model_options
from media.images import read_image
from models import DeepLabV3plusXception65, chainer_compat, label_map
from models.utils.errors import InputError


class DeviceArray(np.ndarray):

    """An array that refuses to work with NumPy's."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        _check(*inputs, *out)
        if out:
            kwargs['out'] = tuple(map(_inside, out))
        return _outside(getattr(ufunc, method)(*map(_inside, inputs),
                                               **kwargs))

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f'numpy.{function.__name__} of a device array')

    def __array__(self, *args, **kwargs):
        raise TypeError('a device array does not become one of NumPy by '
                        'itself')

    def __getitem__(self, index):
        return _outside(_inside(self)[index])

    def argmax(self, *args, **kwargs):
        return _outside(_inside(self).argmax(*args, **kwargs))


def _check(*arrays):
    for array in arrays:
        if isinstance(array, np.ndarray) and not isinstance(
                array, DeviceArray) and array.ndim:
            raise TypeError("NumPy's array together with a device's")


def _inside(array):
    return array.view(np.ndarray) if isinstance(array, DeviceArray) else array


def _outside(array):
    return array.view(DeviceArray) if isinstance(array, np.ndarray) else array


class StandInModule:

    """What stands for `cupy`."""

    float32, int32 = np.float32, np.int32

    @staticmethod
    def asarray(array):
        return _outside(array)


class StandInDevice(chainer.backend.CpuDevice):

    xp = StandInModule


@pytest.fixture
def device(monkeypatch):
    """Make Chainer and the project take DeviceArray for a GPU's."""
    original = chainer.FunctionNode.apply

    def apply(self, inputs):
        arrays = [getattr(each, 'array', each) for each in inputs]
        on_device = [isinstance(array, DeviceArray) for array in arrays]
        if not any(on_device):
            return original(self, inputs)
        if not all(on_device):
            raise TypeError(f'{type(self).__name__} of a NumPy array')
        outputs = original(self, tuple(map(_inside, arrays)))
        for output in outputs:
            output.array = _outside(output.array)
        return outputs

    def get_array_module(*arrays):
        return StandInModule if isinstance(arrays[0], DeviceArray) else np

    def to_gpu(link, number):
        assert number == 0
        for child in link.links():
            child._device = StandInDevice()
            for param in child.params(include_uninit=False):
                param.array = _outside(_inside(param.array))
            for name in child._persistent:
                setattr(child, name, _outside(getattr(child, name)))
        return link

    class Used:
        def use(self):
            pass

    monkeypatch.setattr(chainer.FunctionNode, 'apply', apply)
    monkeypatch.setattr(label_map, 'get_array_module', get_array_module)
    monkeypatch.setattr(label_map, 'to_cpu', _inside)
    monkeypatch.setattr(DeepLabV3plusXception65, 'to_gpu', to_gpu)
    monkeypatch.setattr(model_options, 'check_gpu', lambda gpu: None)
    monkeypatch.setattr(chainer.cuda, 'get_device_from_id', lambda i: Used())


def test_the_stand_in_is_strict(device):
    array = _outside(np.ones(3, np.float32))
    with pytest.raises(TypeError):
        array + np.ones(3)
    with pytest.raises(TypeError):
        np.concatenate([array, array])
    with pytest.raises(TypeError):
        chainer.functions.concat((array, np.ones(3, np.float32)), axis=0)
    assert isinstance((array + 1)[:2], DeviceArray)
    assert isinstance(chainer.functions.relu(array).array, DeviceArray)


@pytest.mark.slow
@pytest.mark.parametrize('options', [
    {}, {'scales': (0.5, 1.0), 'flip': True}])
def test_predict(device, palette_graphs, tmp_path, options):
    _, npz = palette_graphs('cityscapes')
    image = read_image(write_image(tmp_path / 'a.png'))
    model = DeepLabV3plusXception65(
        pretrained_model=npz, min_input_size=65, **options)
    expected = model.predict([image])[0]
    model.to_gpu(0)
    label, = model.predict([image])
    assert type(label) is np.ndarray
    assert label.dtype == np.int32
    assert (label == expected).mean() > 0.999


@pytest.mark.slow
def test_demo(device, palette_graphs, tmp_path, monkeypatch):
    _, npz = palette_graphs('cityscapes')
    write_image(tmp_path / 'in/a.png')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [
        'demo.py', 'in', '--gpu', '0', '--pretrained-model', str(npz),
        '--input-size', '65', '--output', 'out', '--indexed', '--overlay'])
    demo.main()
    assert (tmp_path / 'out/a_indexed.png').exists()


@pytest.mark.slow
def test_evaluation(device, palette_graphs, tmp_path, monkeypatch):
    _, npz = palette_graphs('voc')
    root = write_tree('voc', tmp_path / 'data', patches('voc', 2), 30)
    scores = []
    for options in (['--gpu', '0'], ['--backend', 'openvino']):
        monkeypatch.setattr(sys, 'argv', [
            'eval_voc.py', '--data-dir', str(root), '--pretrained-model',
            str(npz), '--input-size', '65', '--output',
            str(tmp_path / options[1]), *options])
        evaluation_script.main('voc', '')
        result = json.loads((tmp_path / options[1] / 'result.json').read_text())
        scores.append(result['miou'])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.slow
def test_benchmark(device, palette_graphs, monkeypatch, capsys):
    pool = types.SimpleNamespace(total_bytes=lambda: 2e9)
    monkeypatch.setitem(sys.modules, 'cupy', types.SimpleNamespace(
        get_default_memory_pool=lambda: pool))
    spec = importlib.util.spec_from_file_location(
        'gpu', ROOT / 'benchmarks/gpu.py')
    gpu = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    spec.loader.exec_module(gpu)
    gpu.measure(palette_graphs('cityscapes')[1], (65, 65), 16)
    words = capsys.readouterr().out.split()
    assert words[:5] == ['65x65,', 'output', 'stride', '16:', 'labels']
    assert float(words[5]) > 99
    assert words[-2:] == ['2.0', 'GB']


class CUDARuntimeError(Exception):
    pass


def no_driver():
    raise CUDARuntimeError('driver version is insufficient')


@pytest.mark.parametrize(('available', 'count', 'words'), [
    (False, None, r'Chainer cannot load it \(libcublas.so.12: .* file\)'),
    (True, no_driver, r'a GPU and its driver \(driver version is insuff'),
    (True, lambda: 2, 'there is no GPU 2: they are numbered 0 to 1'),
])
def test_a_gpu_that_is_not_there(monkeypatch, available, count, words):
    cuda = chainer.backends.cuda
    runtime = types.SimpleNamespace(
        getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    monkeypatch.setattr(cuda, 'available', available)
    monkeypatch.setattr(cuda, '_resolution_error', ImportError(
        'libcublas.so.12: cannot open shared object file'), raising=False)
    monkeypatch.setattr(cuda, 'cupy', types.SimpleNamespace(
        cuda=types.SimpleNamespace(runtime=runtime)))
    with pytest.raises(InputError, match=words):
        model_options.check_gpu(2)


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
    specs = {'cupy': None, 'nvidia': types.SimpleNamespace(
        submodule_search_locations=[tmp_path / 'nvidia'])}
    monkeypatch.setattr(chainer_compat.importlib.util, 'find_spec', specs.get)
    monkeypatch.setattr(chainer_compat.ctypes, 'CDLL', load)
    chainer_compat._load_cuda_libraries()
    assert not loaded  # who has no CuPy wants none
    specs['cupy'] = 'is there'
    chainer_compat._load_cuda_libraries()
    assert tuple(loaded) == names
