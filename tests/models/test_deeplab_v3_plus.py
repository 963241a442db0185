"""The link against ChainerCV's, and the palette model's known answers."""
import functools
from pathlib import Path

import chainer
import numpy as np
import pytest
from chainercv.links import DeepLabV3plusXception65 as ChainerCVLink
from conftest import needs_tensorflow
from fixture_graph import FixtureGraph
from fixture_nodes import run_tensorflow
from fixture_weights import random_weights, smooth_image
from PIL import Image

from models import DeepLabV3plusXception65
from models.classes import label_colors
from models.head import HEAD_EPS
from models.utils.errors import InputError
from models.weights import named_arrays

EPSILONS = {
    'extractor_kwargs': {'bn_kwargs': {'eps': 1e-3}},
    'aspp_kwargs': {'bn_kwargs': {'eps': HEAD_EPS}},
    'decoder_kwargs': {'bn_kwargs': {'eps': HEAD_EPS}},
}


def logits(model, image):
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return model(model.prepare(image)[np.newaxis]).array


def test_names_and_shapes_are_chainercvs():
    ours = named_arrays(DeepLabV3plusXception65(n_class=21))
    theirs = named_arrays(ChainerCVLink(n_class=21))
    assert {name: array.shape for name, array in ours.items()} == {
        name: array.shape for name, array in theirs.items()}


@pytest.mark.slow
def test_npz_loads_into_chainercvs_link(random_graphs):
    _, npz = random_graphs('voc')
    image = smooth_image(120, 100).transpose(2, 0, 1).astype(np.float32)
    ours = DeepLabV3plusXception65(pretrained_model=npz, min_input_size=129)
    theirs = ChainerCVLink(21, str(npz), (129, 129), **EPSILONS)
    theirs.decoder.feature_proj.bn.eps = HEAD_EPS  # ChainerCV has 2e-5
    np.testing.assert_allclose(logits(ours, image), logits(theirs, image),
                               rtol=0, atol=1e-4)


@pytest.mark.slow
def test_chainercvs_npz_loads(tmp_path):
    theirs = ChainerCVLink(21, min_input_size=(129, 129), **EPSILONS)
    theirs.decoder.feature_proj.bn.eps = HEAD_EPS
    chainer.serializers.save_npz(tmp_path / 'cv.npz', theirs)
    ours = DeepLabV3plusXception65(21, tmp_path / 'cv.npz', 129)
    image = smooth_image(120, 100).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_allclose(logits(ours, image), logits(theirs, image),
                               rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('dataset', ['voc', 'cityscapes', 'ade20k'])
def test_palette_labels_are_exact(palette_graphs, dataset):
    _, npz = palette_graphs(dataset)
    colors = label_colors(dataset)
    side, margin, columns = 24, 4, 12  # pixels, pixels, patches in a row
    rows = -(-len(colors) // columns)
    patches = np.arange(rows * columns) % len(colors)
    truth = np.kron(patches.reshape(rows, columns),
                    np.ones((side, side), int))
    model = DeepLabV3plusXception65(pretrained_model=npz, min_input_size=1)
    label = model.predict([colors[truth].transpose(2, 0, 1)])[0]

    first = [np.flatnonzero((colors == color).all(axis=1))[0]
             for color in colors]  # of classes with one colour, the lower
    y, x = np.mgrid[:label.shape[0], :label.shape[1]] % side
    inside = (np.minimum(x, y) >= margin) & (np.maximum(x, y) < side - margin)
    np.testing.assert_array_equal(label[inside], np.array(first)[truth][inside])


@pytest.mark.slow
def test_backward_reaches_every_parameter():
    model = DeepLabV3plusXception65(n_class=3)
    x = np.stack([smooth_image(65, 65, seed) for seed in (1, 2)])
    x = x.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    model.cleargrads()
    y = model(x)  # in training: batch statistics, dropout
    assert y.shape == (2, 3, 17, 17)
    weights = np.random.default_rng(0).normal(size=y.shape).astype(np.float32)
    chainer.functions.sum(y * weights).backward()
    unreached = [name for name, param in model.namedparams()
                 if param.grad is None or not np.abs(param.grad).max() > 0]
    assert unreached == []


def labels_of_tensorflow(image, scales):
    """What the official code makes of scales and flips, on the logits of a
    frozen graph for each size.
    """
    import tensorflow as tf
    resize = functools.partial(tf.compat.v1.image.resize_bilinear,
                               align_corners=True)
    size, total = image.shape[:2], 0
    x = image[np.newaxis] * np.float32(2 / 255) - 1
    for scale in scales:
        scaled = [int((side - 1) * scale + 1) for side in size]
        merged = [int((side - 1) * max(scale, 1) / 4 + 1) for side in size]
        graph = FixtureGraph(random_weights(21), 21, scaled, 16, 2020).graph
        for step in (1, -1):
            y, = run_tensorflow(
                graph, ['logits/semantic/BiasAdd'],
                resize(x[:, :, ::step], scaled)[0].numpy(), 'sub_2')
            y = resize(resize(y, merged)[:, :, ::step], size)
            total += tf.nn.softmax(y).numpy()
    return total[0].argmax(axis=2)


@needs_tensorflow
@pytest.mark.slow
def test_scales_and_flip_equal_tensorflow(random_graphs):
    _, npz = random_graphs('voc', 16)
    image, scales = smooth_image(129, 161), (0.75, 1.25)
    model = DeepLabV3plusXception65(pretrained_model=npz, scales=scales,
                                    min_input_size=65, flip=True)
    label, = model.predict([image.transpose(2, 0, 1)])
    assert len(np.unique(label)) >= 5
    assert (label == labels_of_tensorflow(image, scales)).mean() >= 0.999


def test_epsilons():
    model = DeepLabV3plusXception65(n_class=2)
    for path, link in model.namedlinks():
        if isinstance(link, chainer.links.BatchNormalization):
            backbone = path.startswith('/feature_extractor')
            assert link.eps == (1e-3 if backbone else 1.001e-5), path


def test_prepare():
    model = DeepLabV3plusXception65(n_class=2, min_input_size=(4, 6))
    x = model.prepare(np.full((3, 2, 8), 255, np.float32))
    assert x.shape == (3, 4, 8)
    assert x.dtype == np.float32
    assert (x[:, :2] == 1).all()
    assert (x[:, 2:] == 0).all()


@pytest.mark.parametrize(('arguments', 'words'), [
    ({}, 'n_class is None, and must be a positive integer, or that of'),
    ({'n_class': 2, 'output_stride': 4}, 'must be 8 or 16'),
    ({'n_class': 2, 'scales': ()}, 'must be one or more positive'),
    ({'n_class': 2, 'min_input_size': (0, 5)}, '1 to 16384 pixels'),
    ({'n_class': 2, 'min_input_size': 0}, '1 to 16384 pixels'),
    ({'n_class': 2, 'min_input_size': (1, 2, 3)}, 'one integer or two'),
    ({'n_class': 2, 'min_input_size': '9x9'}, 'one integer or two'),
    ({'n_class': 2, 'output_stride': 0}, 'must be 8 or 16'),
    ({'n_class': 2, 'scales': (float('nan'),)}, 'must be one or more positive'),
    ({'n_class': 2.5}, 'must be a positive integer'),
    ({'n_class': 0}, 'must be a positive integer'),
    ({'pretrained_model': 'no.npz'}, 'no.npz is no file'),
])
def test_refuses_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        DeepLabV3plusXception65(**arguments)


@pytest.mark.parametrize(('given', 'words'), [
    (Image.new('RGB', (9, 9)), 'of type Image, and must be a numpy.ndarray'),
    ([Image.new('RGB', (9, 9))], 'of type Image, and must be'),
    ([[1, 2, 3]], 'of type list, and must be'), ('a.png', 'of type str, and'),
    (Path('a.png'), 'of type PosixPath, and'), (None, 'of type NoneType, and'),
    ([np.zeros((3, 9, 9), complex)], 'is complex128 of shape'),
    (np.zeros((3, 9, 9)), r'an image is float64 of shape \(9, 9\)')])
def test_predict_says_what_it_takes(given, words):
    with pytest.raises(InputError, match=words):
        DeepLabV3plusXception65(n_class=2, min_input_size=9).predict(given)


@pytest.mark.parametrize('dtype', [np.float16, chainer.mixed16, np.float64])
def test_predict_of_another_type(dtype):
    """Its weights are computed with in float32; Chainer would not."""
    with chainer.using_config('dtype', dtype):
        link = DeepLabV3plusXception65(n_class=3, min_input_size=33)
    image = smooth_image(33, 33).transpose(2, 0, 1)
    same = DeepLabV3plusXception65(n_class=3, min_input_size=33)
    arrays = named_arrays(link)
    for name, param in same.namedparams():
        param.array[...] = arrays[name[1:]]
    np.testing.assert_array_equal(link.predict([image]), same.predict([image]))
    with pytest.raises(InputError, match='create the link while chainer'):
        link.to_chainer().predict([image])
