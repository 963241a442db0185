"""`predict` through CuPy, on a CPU, against Chainer.

The engine and its kernels are the real ones; fixture_gpu.py says what stands
for CuPy. How fast it is, only a GPU can tell.
"""
import copy
import itertools
import pickle
import warnings

import chainer
import numpy as np
import pytest
from chainer import functions as F
from chainer import links as L
from fixture_gpu import StandIn, compiled, emulate, outside
from fixture_weights import smooth_image

from models import DeepLabV3plusXception65, cupy_engine
from models.chainer_engine import ChainerEngine
from models.cupy_engine import CuPyEngine, Network, Plan
from models.openvino_engine import OpenVINOEngine
from models.utils.errors import BackendError, InputError
from models.xception import conv_bn


@pytest.fixture
def gpu(monkeypatch):
    yield from emulate(monkeypatch)


@pytest.fixture
def model(random_graphs):
    _, npz = random_graphs('voc', 8)
    return DeepLabV3plusXception65(pretrained_model=npz, min_input_size=1)


def image(height, width, seed=0):
    return smooth_image(height, width, seed).transpose(2, 0, 1).astype('f')


def chainers_logits(model, x):
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return model(x).array


def check_logits(gpu, model):
    """Compare an engine's logits of a small image with Chainer's."""
    x = model.prepare(image(65, 65))[np.newaxis]
    expected = chainers_logits(model, x)
    logits = model.to_device(StandIn()).compile()(gpu.asarray(x)).get()
    np.testing.assert_allclose(logits, expected, rtol=0,
                               atol=1e-4 * expected.std())


@pytest.mark.slow
@pytest.mark.parametrize(('output_stride', 'size', 'min_input_size'), [
    (8, (81, 97), 65),
    (8, (83, 70), 1),  # not 8 k + 1
    (8, (40, 90), 65),  # below the smallest size one way, above it the other
    (16, (81, 97), 1),
    (16, (75, 96), 1),
    (16, (1, 9), 1),
])
def test_agrees_with_chainer(gpu, random_graphs, output_stride, size,
                             min_input_size):
    _, npz = random_graphs('voc', 8)
    model = DeepLabV3plusXception65(
        pretrained_model=npz, output_stride=output_stride,
        min_input_size=min_input_size).to_chainer()
    x = model.prepare(image(*size))[np.newaxis]
    expected, wanted = chainers_logits(model, x), model.predict([image(*size)])
    model.to_openvino().to_device(StandIn())
    engine = model.compile()
    assert type(engine) is CuPyEngine
    logits = engine(gpu.asarray(x)).get()
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, rtol=0,
                               atol=1e-4 * expected.std())
    label, = model.predict([image(*size)])
    assert type(label) is np.ndarray
    assert label.dtype == np.int32
    assert label.shape == size
    assert (label == wanted[0]).mean() >= 0.9999


@pytest.mark.slow
def test_forms_of_an_image(gpu, model):
    expected, = model.predict([image(33, 49)])
    model.to_device(StandIn()).freeze()
    for dtype, order in itertools.product(
            (np.float32, np.uint8, np.float64), 'KC'):  # as read, or (3, H, W)
        label, = model.predict([image(33, 49).astype(dtype, order)])
        assert (label == expected).mean() >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize(('scales', 'flip'), [
    ((0.5, 1.0, 1.25), True), ((1.0,), True), ((0.75,), False)])
def test_agrees_at_scales_and_mirrored(gpu, model, scales, flip):
    model.scales, model.flip = scales, flip
    expected, = model.to_chainer().predict([image(50, 61)])
    model.to_openvino().to_device(StandIn())
    label, = model.predict([image(50, 61)])
    assert (label == expected).mean() >= 0.9999


@pytest.mark.slow
def test_an_output_that_is_no_class_has_a_part_in_softmax(gpu, model):
    model.scales = 0.5, 1.0
    model.background_outputs = np.zeros((1, 257), np.float32)
    model.background_outputs[:, -1] = 5  # the best everywhere
    expected, = model.to_chainer().predict([image(65, 65)])
    model.to_openvino().to_device(StandIn())
    assert type(model.compile()) is CuPyEngine
    assert (model.predict([image(65, 65)])[0] == expected).mean() >= 0.9999


@pytest.mark.slow
def test_agrees_with_rates_of_its_own(gpu, random_graphs):
    _, npz = random_graphs('voc', 8)
    model = DeepLabV3plusXception65(
        pretrained_model=npz, min_input_size=65, atrous_rates=(2, 5, 7))
    check_logits(gpu, model)


@pytest.mark.slow
def test_agrees_within_a_range_of_sizes(gpu, palette_graphs):
    """Of the resized image, and labels in the size of the given one."""
    from models.resizing import ResizeRange
    _, npz = palette_graphs('cityscapes')
    model = DeepLabV3plusXception65(pretrained_model=npz, min_input_size=65)
    model.resize_range = ResizeRange(60, 100, 8)
    expected, = model.predict([image(75, 150)])
    label, = model.to_device(StandIn()).predict([image(75, 150)])
    assert label.shape == (75, 150)
    assert (label == expected).mean() >= 0.9999


@pytest.mark.slow
def test_sizes_in_turn(gpu, model):
    """Larger ones take a new memory, smaller ones a part of it."""
    sizes = [(33, 33), (65, 49), (17, 26), (49, 65), (33, 33)]
    expected = [model.predict([image(*size)])[0] for size in sizes]
    model.to_device(StandIn())
    used = []
    for size, wanted in zip(sizes, expected, strict=True):
        label, = model.predict([image(*size)])
        assert (label == wanted).mean() >= 0.9999
        used.append(gpu.memory.used)
    assert used[0] < used[1] == used[2] == used[3] == used[4]


@pytest.mark.slow
@pytest.mark.parametrize(('scales', 'flip'), [
    ((1.0,), False), ((0.5, 1.25), True)])
def test_memory_is_known(gpu, model, scales, flip):
    model.scales, model.flip = scales, flip
    model.to_device(StandIn())
    for size in (33, 49), (65, 65), (33, 33):
        needed = model.memory_needed(*size)
        before = gpu.memory.peak = gpu.memory.used
        model.predict([image(*size)])
        taken = gpu.memory.peak - before
        assert needed - 20e3 <= taken <= needed + 20e3  # tables


@pytest.mark.slow
@pytest.mark.parametrize(('output_stride', 'in_parts', 'most'), [
    (8, False, 0.85e9), (16, False, 0.75e9), (8, True, 1.13e9)])
def test_memory_of_a_street(gpu, model, output_stride, in_parts, most):
    """Arrays share places, and never two at a time the same."""
    model = DeepLabV3plusXception65(
        1, output_stride=output_stride).to_device(StandIn())
    network = Network(model, None, in_parts)
    plan = Plan(network, (1025, 2049))
    assert 4 * plan.n_numbers < most
    lives = {}  # buffer -> first and last step
    for time, step in enumerate(network.steps):
        for tensor in step.x, step.y:
            first, _, _ = lives.get(tensor.buffer, (time, time, 0))
            doubled = 2 if tensor.parts else 1
            lives[tensor.buffer] = (first, time, tensor.buffer.channels
                                    * np.prod(plan.sizes[tensor]) * doubled)
    for (a, life), (b, other) in itertools.combinations(lives.items(), 2):
        if life[0] <= other[1] and other[0] <= life[1]:
            begins = plan.places[a], plan.places[b]
            assert (begins[0] + life[2] <= begins[1]
                    or begins[1] + other[2] <= begins[0])


def change_bias(model):
    bias = model.decoder.conv_logits.b.array.get()
    bias[3] += 1000
    model.decoder.conv_logits.b.array[:] = outside(bias)


def replace_classifier(model):
    model.decoder.conv_logits = L.Convolution2D(
        256, 21, 1, initialW=0, initial_bias=np.eye(21, dtype='f')[3])
    model.decoder.conv_logits.to_device(model.device)


def shift_by_batch_norm(model):
    bn = model.decoder.conv2.pw_bn
    bn.avg_mean[...] = 1e6  # ReLU makes all of it 0
    model.decoder.conv_logits.b.array[:] = outside(np.eye(21, dtype='f')[3])


def raise_epsilon(model):
    model.decoder.conv2.pw_bn.eps = 1e12
    model.decoder.conv2.pw_bn.beta.array[...] = -1
    model.decoder.conv_logits.b.array[:] = outside(np.eye(21, dtype='f')[3])


@pytest.mark.slow
@pytest.mark.parametrize('change', [change_bias, replace_classifier,
                                    shift_by_batch_norm, raise_epsilon])
def test_changed_weights_are_noticed(gpu, model, change):
    model.to_device(StandIn())
    before, = model.predict([image(65, 65)])
    assert not (before == 3).all()
    change(model)
    assert (model.predict([image(65, 65)])[0] == 3).all()


@pytest.mark.slow
def test_one_changed_bit_is_noticed(gpu, model):
    engine = model.to_device(StandIn()).compile()
    network = engine._network
    assert model.compile()._network is network
    weights = model.aspp.proj.conv.W.array.view(np.uint32)
    weights[100, 100, 0, 0] ^= 1
    assert model.compile()._network is not network


@pytest.mark.slow
def test_copies_and_pickles(gpu, model):
    model.to_device(StandIn())
    expected, = model.predict([image(65, 65)])
    for other in model.copy('copy'), copy.deepcopy(model):
        change_bias(other)
        assert (other.predict([image(65, 65)])[0] == 3).all()
    np.testing.assert_array_equal(model.predict([image(65, 65)])[0], expected)
    engine = pickle.loads(pickle.dumps(model.compile()))
    engine.update(model)
    np.testing.assert_array_equal(
        engine.label_map(model, image(65, 65)), expected)


@pytest.mark.slow
def test_there_and_back(gpu, model):
    """Two GPUs, the current one kept, and the CPU."""
    expected, = model.predict([image(65, 65)])
    for number in 1, 0:
        model.to_device(StandIn(number))
        used = []
        function = cupy_engine.launch

        def launch(*args, function=function, used=used):
            used.append(StandIn.current)
            return function(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cupy_engine, 'launch', launch)
            label, = model.predict([image(65, 65)])
        assert (label == expected).mean() >= 0.9999
        assert set(used) == {number}
        assert StandIn.current == 0
    model.to_cpu()
    np.testing.assert_array_equal(model.predict([image(65, 65)])[0], expected)


@pytest.mark.slow
def test_a_frozen_link_only_predicts(gpu, model):
    expected, = model.to_device(StandIn()).predict([image(65, 65)])
    used = gpu.memory.used
    model.freeze()
    assert gpu.memory.used < used - 160e6
    np.testing.assert_array_equal(model.predict([image(65, 65)])[0], expected)


@pytest.mark.slow
def test_agrees_with_parts_of_other_kinds(gpu, model):
    """A dense convolution after a ReLU that only it wants; one without bias."""
    block = model.feature_extractor.middleflow_block3
    block.separable1 = conv_bn(728, 728, 3, activ=F.identity, eps=1e-3,
                               initialW=chainer.initializers.Normal(0.01))
    model.aspp.conv1x1.bn.gamma.array[::2] = 0
    model.decoder.conv_logits = L.Convolution2D(256, 5, 3, pad=1, nobias=True)
    check_logits(gpu, model)


@pytest.mark.slow
def test_chainer_can_be_chosen(gpu, model):
    """Before a move and after it."""
    expected, = model.predict([image(65, 65)])
    for other in (model.copy().to_device(StandIn()).to_chainer(),
                  model.copy().to_chainer().to_device(StandIn())):
        assert type(other.compile()) is ChainerEngine
        label, = other.predict([image(65, 65)])
        assert (label == expected).mean() >= 0.9999


@pytest.mark.slow
def test_openvino_is_for_a_cpu(gpu, model):
    model.to_device(StandIn())
    with pytest.raises(BackendError, match='call to_cpu first'):
        model.to_openvino()
    assert type(model.compile()) is CuPyEngine
    model.to_cpu()
    assert type(model.compile()) is OpenVINOEngine


@pytest.mark.slow
def test_a_prepare_of_its_own_goes_to_chainer(gpu, random_graphs):
    """The engine prepares images itself."""
    class Darker(DeepLabV3plusXception65):
        def prepare(self, image):
            return super().prepare(image / 2)

    _, npz = random_graphs('voc', 8)
    model = Darker(pretrained_model=npz, min_input_size=1)
    expected, = model.predict([image(65, 65)])
    model.to_device(StandIn())
    with pytest.warns(match='Darker has a `prepare` of its own'):
        label, = model.predict([image(65, 65)])
    assert (label == expected).mean() >= 0.999


@pytest.mark.parametrize('dtype', [chainer.mixed16, np.float64])
def test_refuses_another_type(gpu, dtype):
    with chainer.using_config('dtype', dtype):
        model = DeepLabV3plusXception65(1).to_device(StandIn())
    with pytest.warns(match='of this shape or type'), pytest.raises(
            InputError, match='create the link while chainer'):
        model.predict([image(65, 65)])


@pytest.mark.parametrize('backend', [CuPyEngine, ChainerEngine])
def test_refuses_another_shape(gpu, backend):
    model = DeepLabV3plusXception65(1)
    if backend is ChainerEngine:
        model.to_chainer()
    with pytest.raises(InputError, match=r'an image is .* of shape \(65, 65\)'):
        model.to_device(StandIn()).predict([image(65, 65)[0]])


@pytest.mark.slow
def test_float32_in_parts(gpu, model, monkeypatch):
    """Where TF32 is fast: nearly as exact as float32, and TF32 alone is not."""
    x = model.prepare(image(97, 129))[np.newaxis]
    expected = chainers_logits(model, x)
    monkeypatch.delenv('NVIDIA_TF32_OVERRIDE')
    monkeypatch.setattr(cupy_engine, 'MIN_PIXELS', 200)
    engine = model.to_device(StandIn()).compile()
    needed = model.memory_needed(97, 129)
    before = gpu.memory.peak = gpu.memory.used
    model.predict([image(97, 129)])
    assert abs(gpu.memory.peak - before - needed) < 20e3
    logits = engine(gpu.asarray(x)).get()
    assert gpu.cuda.cublas.compute_types == {68, 77}
    np.testing.assert_allclose(logits, expected, rtol=0,
                               atol=1e-4 * expected.std())
    monkeypatch.setattr(cupy_engine, 'in_parts', lambda W: np.concatenate(
        [W, np.zeros_like(W)], 1))  # TF32 alone, but for x
    model.to_device(StandIn())
    logits = model.compile()(gpu.asarray(x)).get()
    assert abs(logits - expected).max() > 1e-3 * expected.std()


@pytest.mark.slow
def test_tf32(gpu, model, monkeypatch):
    expected, = model.to_device(StandIn()).predict([image(97, 129)])
    monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '1')
    model.to_device(StandIn())
    assert model.precision == 'tf32'
    label, = model.freeze().predict([image(97, 129)])
    assert 0.9 < (label == expected).mean() < 1
    with model.in_float32():
        label, = model.predict([image(97, 129)])
    np.testing.assert_array_equal(label, expected)
    assert gpu.cuda.cublas.compute_types == {68, 77, 69}
    assert model.precision == 'tf32'


@pytest.mark.slow
@pytest.mark.parametrize('change', [
    lambda model: setattr(model.decoder, 'conv_logits',
                          L.Convolution2D(256, 21, 1, groups=1, stride=(1, 2))),
    lambda model: setattr(model.decoder, 'conv_logits', type(
        'Other', (L.Convolution2D,), {'forward': lambda self, x: x})(
            256, 21, 1))])
def test_an_unknown_part_goes_to_chainer(gpu, model, change):
    change(model)
    model.to_device(StandIn())
    with pytest.warns(match='has no form .*: predict runs on Chainer'):
        assert type(model.compile()) is not CuPyEngine
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # it is said once
        model.compile()


def test_kernels_compile_as_cuda():
    """With NVIDIA's compiler, where it is installed, for cards of all ages."""
    nvrtc = pytest.importorskip('cupy_backends.cuda.libs.nvrtc')
    code = cupy_engine.KERNELS.read_text()
    for capability in 50, 60, 70, 80, 90, 100, 120:
        program = nvrtc.createProgram(code, 'kernels.cu', (), ())
        nvrtc.compileProgram(program, (f'-arch=compute_{capability}',))


def test_kernels_compile_here():
    code = cupy_engine.KERNELS.read_text()
    _, kernels = compiled(code)
    assert len(kernels) == code.count('\nKERNEL ')
