"""`predict` through OpenVINO against Chainer, and when it must not be used."""
import copy
import gc
import pickle
import sys
import warnings

import chainer
import numpy as np
import openvino
import pytest
from chainer import links as L
from chainer import optimizers, serializers
from fixture_weights import smooth_image

from models import DeepLabV3plusXception65, memory, openvino_engine
from models.openvino_engine import OpenVINOEngine
from models.utils.errors import BackendError, InputError


def image(height, width, seed=0):
    return smooth_image(height, width, seed).transpose(2, 0, 1).astype('f')


def both_logits(model, x):
    """Return the logits of an image by OpenVINO and by Chainer."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return model.compile()(x).copy(), model(x).array


@pytest.mark.slow
@pytest.mark.parametrize(('output_stride', 'size', 'min_input_size'), [
    (8, (257, 321), 257),
    (8, (65, 65), 65),
    (8, (129, 257), 65),
    (8, (101, 70), 1),  # not 8 k + 1
    (8, (40, 90), 65),  # below the smallest size one way, above it the other
    (16, (129, 257), 1),
    (16, (75, 128), 1),
])
def test_agrees_with_chainer(random_graphs, output_stride, size,
                             min_input_size):
    _, npz = random_graphs('voc', 8)
    model = DeepLabV3plusXception65(
        pretrained_model=npz, output_stride=output_stride,
        min_input_size=min_input_size)
    x = model.prepare(image(*size))[np.newaxis]
    ours, chainers = both_logits(model, x)
    assert ours.shape == chainers.shape
    np.testing.assert_allclose(
        ours, chainers, rtol=0, atol=1e-3 * np.abs(chainers).max())
    fast = model.predict([image(*size)])[0]
    slow = model.to_chainer().predict([image(*size)])[0]
    assert fast.shape == size
    assert (fast == slow).mean() >= 0.999


@pytest.fixture
def model(random_graphs):
    _, npz = random_graphs('voc', 8)
    return DeepLabV3plusXception65(pretrained_model=npz, min_input_size=1)


@pytest.mark.slow
def test_agrees_at_scales_and_mirrored(model):
    model.scales, model.flip = (0.75, 1.0, 1.25), True
    fast = model.predict([image(90, 101)])[0]
    slow = model.to_chainer().predict([image(90, 101)])[0]
    assert (fast == slow).mean() >= 0.999


def n_networks():
    """How many compiled networks are held: each has the weights."""
    return sum(isinstance(each, openvino.InferRequest)
               for each in gc.get_objects())


@pytest.mark.slow
def test_sizes_in_turn(model, monkeypatch):
    """Sizes of one compilation and of their own, back and forth."""
    monkeypatch.setattr(openvino_engine, 'SHARED_PIXELS', 80 * 80)
    others = n_networks()
    engine = OpenVINOEngine()
    engine.update(model)
    for size in (65, 65), (97, 81), (33, 50), (81, 97), (97, 81):
        x = model.prepare(image(*size))[np.newaxis]
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            expected = model(x).array
        np.testing.assert_allclose(engine(x), expected, rtol=0, atol=1e-3)
        assert n_networks() - others <= 2


def change_bias(model):
    model.decoder.conv_logits.b.array[3] += 1000


def train(model):
    optimizer = chainer.optimizers.SGD(lr=1e4).setup(model)
    model.cleargrads()
    for param in model.params():
        param.grad = np.zeros_like(param.array)
    model.decoder.conv_logits.b.grad[3] = -1
    optimizer.update()


def replace_classifier(model):
    model.decoder.conv_logits = L.Convolution2D(
        256, 21, 1, initialW=0, initial_bias=np.eye(21, dtype='f')[3])


def shift_by_batch_norm(model):
    bn = model.decoder.conv2.pw_bn
    bn.avg_mean[...] = 1e6  # ReLU makes all of it 0
    model.decoder.conv_logits.b.array[...] = np.eye(21, dtype='f')[3]


@pytest.mark.slow
@pytest.mark.parametrize('change', [change_bias, train, replace_classifier,
                                    shift_by_batch_norm])
def test_changed_weights_are_noticed(model, change):
    before = model.predict([image(65, 65)])[0]
    assert not (before == 3).all()
    change(model)
    assert (model.predict([image(65, 65)])[0] == 3).all()


@pytest.mark.slow
def test_loaded_weights_are_noticed(model, tmp_path):
    before = model.predict([image(65, 65)])[0]
    chainer.serializers.save_npz(tmp_path / 'before.npz', model)
    change_bias(model)
    assert (model.predict([image(65, 65)])[0] == 3).all()
    chainer.serializers.load_npz(tmp_path / 'before.npz', model)
    np.testing.assert_array_equal(model.predict([image(65, 65)])[0], before)


@pytest.mark.slow
def test_a_changed_epsilon_is_noticed(model):
    x = model.prepare(image(65, 65))[np.newaxis]
    before, _ = both_logits(model, x)
    model.aspp.proj.bn.eps = 0.5
    ours, chainers = both_logits(model, x)
    np.testing.assert_allclose(ours, chainers, rtol=0, atol=1e-3)
    assert np.abs(ours - before).max() > 0.1


@pytest.mark.slow
def test_copies_and_pickles(model):
    expected = model.predict([image(65, 65)])[0]
    for other in (model.copy('copy'), copy.deepcopy(model),
                  pickle.loads(pickle.dumps(model))):
        change_bias(other)
        assert (other.predict([image(65, 65)])[0] == 3).all()
    np.testing.assert_array_equal(model.predict([image(65, 65)])[0], expected)


class OtherClassifier(L.Convolution2D):

    def forward(self, x):
        y = super().forward(x).array.copy()
        y[:, 3] = 1e6
        return chainer.Variable(y)


@pytest.mark.slow
def test_an_unknown_part_goes_to_chainer(model):
    model.decoder.conv_logits = OtherClassifier(256, 21, 1)
    with pytest.warns(match='OtherClassifier, has no form as a g'):
        label = model.predict([image(65, 65)])[0]
    assert (label == 3).all()
    with pytest.raises(BackendError, match='decoder/conv_logits'):
        model.to_openvino().predict([image(65, 65)])


@pytest.mark.slow
def test_a_frozen_link_only_predicts(model, tmp_path):
    path = tmp_path / 'a.npz'
    serializers.save_npz(path, model)
    images = [image(65, 65), image(40, 81), image(65, 65)]
    expected = model.predict(images)
    assert model.freeze() is model
    for label, wanted in zip(model.predict(images), expected, strict=True):
        np.testing.assert_array_equal(label, wanted)
    assert model.freeze() is model
    for use in (model.copy, model.to_cpu, model.onnx_model, model.to_chainer,
                model.to_openvino,
                lambda: model(np.zeros((1, 3, 65, 65), 'f')),
                lambda: pickle.dumps(model), lambda: copy.deepcopy(model),
                lambda: serializers.save_npz(tmp_path / 'empty.npz', model),
                lambda: serializers.load_npz(path, model), model.cleargrads,
                lambda: model.copyparams(model), lambda: model.addgrads(model),
                lambda: optimizers.SGD().setup(model),
                lambda: dict(model.namedparams())):
        with pytest.raises(InputError, match='was frozen, and can only pred'):
            use()
    np.testing.assert_array_equal(model.predict(images[:1])[0], expected[0])


@pytest.mark.slow
def test_on_chainer_nothing_is_frozen(model):
    expected = model.to_chainer().predict([image(33, 33)])[0]
    label, = model.freeze().predict([image(33, 33)])
    np.testing.assert_array_equal(label, expected)
    model.to_openvino()


@pytest.mark.slow
def test_bfloat16(model):
    """Where the processor has it, it is used; elsewhere it is refused."""
    expected, = model.predict([image(65, 65)])
    if not openvino_engine.has_bfloat16():
        with pytest.raises(BackendError, match='this processor has no bfloat'):
            model.to_openvino(precision='bfloat16')
        return
    model.to_openvino(precision='bfloat16').freeze()
    assert model.precision == 'bfloat16'
    label, = model.predict([image(65, 65)])
    assert not np.array_equal(label, expected)  # of random weights
    with model.in_float32():
        label, = model.predict([image(65, 65)])
    np.testing.assert_array_equal(label, expected)


@pytest.mark.slow
def test_float32_beside_another_precision(model):
    with model.in_float32():  # before all else
        expected, = model.predict([image(65, 65)])
    model.freeze()
    with model.in_float32():
        label, = model.predict([image(65, 65)])
    np.testing.assert_array_equal(label, expected)


def test_memory_is_that_of_the_largest_scale():
    model = DeepLabV3plusXception65(1)
    model.scales = 0.5, 1.5
    most = model.memory_needed(513, 513)
    model.scales = 0.5, 1.0
    assert most > model.memory_needed(513, 513) + 100e6  # not logits alone


def test_refuses_an_unknown_precision():
    with pytest.raises(InputError, match='precision is int8, and must be one'):
        OpenVINOEngine(precision='int8')


@pytest.mark.slow
def test_a_subclass_is_known(random_graphs):
    class Named(DeepLabV3plusXception65):
        pass

    _, npz = random_graphs('voc', 8)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        Named(pretrained_model=npz, min_input_size=1).predict([image(65, 65)])


@pytest.mark.slow
def test_a_forward_of_its_own_goes_to_chainer(random_graphs):
    class Biased(DeepLabV3plusXception65):
        def forward(self, x):
            return super().forward(x) + np.eye(21, dtype='f')[
                3][None, :, None, None] * 1e6

    _, npz = random_graphs('voc', 8)
    model = Biased(pretrained_model=npz, min_input_size=1)
    with pytest.warns(match='Biased has a `forward` of its own'):
        label = model.predict([image(65, 65)])[0]
    assert (label == 3).all()


@pytest.mark.slow
def test_without_openvino(model, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(InputError, match='OpenVINO cannot be used'):
        model.to_openvino()
    model.to_openvino(required=False)
    with pytest.warns(match='runs on Chainer instead'):
        model.predict([image(65, 65)])
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # it is said once
        model.predict([image(65, 65)])


@pytest.mark.slow
def test_calling_the_link_is_chainers(model, monkeypatch):
    def fail(*args):
        raise AssertionError('the engine was asked')

    monkeypatch.setattr(OpenVINOEngine, '__call__', fail)
    y = model(model.prepare(image(65, 65))[np.newaxis])
    assert y.creator is not None  # the graph is there to go back through


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['openvino', 'chainer'])
def test_refuses_what_the_memory_is_too_small_for(model, monkeypatch, backend):
    getattr(model, f'to_{backend}')()
    model.predict([image(65, 65)])
    monkeypatch.setattr(memory, 'available_memory', lambda: 3e8)
    model.predict([image(65, 65)])  # fits
    with pytest.raises(InputError, match='an image of 513 x 900 pixels needs '
                       r'about \d\.\d GB of memory, and 0\.3 GB are free'):
        model.predict([image(513, 900)])


def test_refuses_threads():
    with pytest.raises(InputError, match='threads is 0'):
        OpenVINOEngine(0)
