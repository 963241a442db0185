"""Weights for the graphs of fixture_graph.py; write and convert a graph.

    python tests/fixture_weights.py cityscapes standin.pb

There are two sets:

- `palette_weights`, closed form: RGB passes unchanged through the backbone's
  first layers to the decoder, and a pixel's label is the class with the
  nearest palette colour. It makes an image worth looking at without trained
  weights, and it knows the right answer. This is what the command writes.
- `random_weights`, with batch norm statistics measured so that activations
  stay near 1: every swapped tensor, stride or epsilon shows.
"""
import argparse
import functools
import pathlib
import sys
import warnings
import zlib

import numpy as np
from fixture_graph import FixtureGraph
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from convert.conversion import check, tensorflow_shape, write
from convert.name_table import weight_table
from convert.sources import open_source
from models.classes import label_colors
from models.constants import DATASETS
from models.utils.errors import report_errors
from models.utils.files import atomic_path


def palette_weights(colors, n_other=0):
    """Return weights whose label is the nearest palette colour.

    The image x in [-1, 1] enters as x + 1, which passes every ReLU; centre
    taps and unit matrices carry it to the decoder. There the logits are
    2 p.x - |p|^2 for each palette colour p, largest where |x - p| is least.

    Args:
        colors (array, (n_class, 3)): the palette, RGB in [0, 255].
        n_other (int): outputs before the classes that never win.

    """
    palette = np.asarray(colors, np.float64) / 127.5  # x + 1 for each colour

    def weights(name, shape):
        scope, _, kind = name.rpartition('/')
        value = np.zeros(shape, np.float32)
        if kind == 'gamma':
            value[:] = 1
        elif kind == 'moving_variance':
            value[:] = 1 - (1e-3 if 'xception_65' in name else 1.001e-5)
        elif name == 'xception_65/entry_flow/conv1_1/BatchNorm/beta':
            value[:3] = 1
        elif name == 'logits/semantic/weights':
            value[0, 0, :3, n_other:] = 2 * palette.T
        elif name == 'logits/semantic/biases':
            value[:n_other] = -1e3
            value[n_other:] = -(palette ** 2).sum(axis=1)
        elif kind == 'depthwise_weights':
            value[1, 1] = 1
        elif kind == 'weights' and _carries_rgb(scope):
            first = 256 if scope == 'decoder/decoder_conv0_pointwise' else 0
            centre = shape[0] // 2
            value[centre, centre, first:first + 3, :3] = np.eye(3)
        return value

    return weights


def _carries_rgb(scope):
    return (scope.startswith('decoder/')
            or 'entry_flow/conv1_' in scope
            or ('entry_flow/block1' in scope and 'shortcut' not in scope)
            or 'entry_flow/block2/unit_1/xception_module/separable_conv1_'
            in scope
            or 'entry_flow/block2/unit_1/xception_module/separable_conv2_'
            in scope)


@functools.cache
def random_weights(n_output):
    """Return random weights under which many classes win.

    Args:
        n_output (int): channels of the logits.

    """
    values, features = _calibrated_weights()
    rng = np.random.default_rng(n_output)
    logits = rng.normal(size=(256, n_output)).astype(np.float32)
    spread = (features @ logits).std(axis=0)
    logits /= spread
    values = {
        **values,
        'logits/semantic/weights': logits[np.newaxis, np.newaxis],
        'logits/semantic/biases': -(features @ logits).mean(axis=0)}
    return lambda name, shape: values[name]


@functools.cache
def _calibrated_weights():
    """Draw weights; measure batch norm's statistics and the last features.

    The link measures them, in training mode. Any statistics will do, so that
    the tests may still find faults of the link with these weights.
    """
    import chainer

    from models import DeepLabV3plusXception65
    from models.weights import named_arrays
    link = DeepLabV3plusXception65(256, output_stride=16, initialW=0)
    arrays, values = named_arrays(link), {}
    for name, (path, axes) in weight_table().items():
        shape = tensorflow_shape(name, arrays[path].shape, axes, 0)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values[name] = _random_weight(name, shape, rng)
        arrays[path][...] = (values[name] if axes is None
                             else values[name].transpose(axes))
    link.decoder.conv_logits.W.array[:, :, 0, 0] = np.eye(256)
    link.decoder.conv_logits.b.array[:] = 0  # its output is its input
    for bn in link.links():
        if isinstance(bn, chainer.links.BatchNormalization):
            bn.decay = 0  # keep this image's statistics alone
    image = smooth_image(513, 513)  # where the widest dilation sees something
    np.random.seed(0)  # for dropout
    with warnings.catch_warnings(), chainer.no_backprop_mode(), (
            chainer.using_config('train', True)):
        warnings.simplefilter('ignore')  # image pooling sees one place
        features = link(link.prepare(image.transpose(2, 0, 1))[np.newaxis])
    arrays = named_arrays(link)
    for name, (path, _) in weight_table().items():
        if name.endswith('/moving_mean'):
            values[name] = arrays[path]
        elif name.endswith('/moving_variance'):
            # A channel that hardly varies would be blown up, rounding and all;
            # and image pooling sees one place, which has no variance.
            variance = arrays[path]
            values[name] = np.maximum(
                variance, np.median(variance) if variance.any() else 1)
    return values, features.array[0].reshape(256, -1).T


def _random_weight(name, shape, rng):
    kind = name.rpartition('/')[2]
    if kind == 'gamma':
        value = rng.uniform(0.5, 1.5, shape)
    elif kind == 'beta':
        value = rng.normal(0, 0.3, shape)
    else:
        fan_in = 9 if kind == 'depthwise_weights' else np.prod(shape[:-1])
        value = rng.normal(0, np.sqrt(2 / fan_in), shape)
    return value.astype(np.float32)


def smooth_image(height, width, seed=0):
    """Draw soft random blobs: uint8, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3),
                         np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height),
                                                    Image.Resampling.BICUBIC))


def write_palette_graph(path, dataset, crop_size, **options):
    """Write a graph with palette weights for 'voc', 'cityscapes', 'ade20k'."""
    weights = palette_weights(label_colors(dataset),
                              DATASETS[dataset]['background_offset'])
    write_graph(path, dataset, weights, crop_size, **options)


def write_random_graph(path, dataset, crop_size, **options):
    """Write a graph with random weights."""
    weights = random_weights(n_outputs(dataset))
    write_graph(path, dataset, weights, crop_size, **options)


def write_graph(path, dataset, weights, crop_size, **options):
    graph = FixtureGraph(weights, n_outputs(dataset), crop_size,
                         **options).graph
    with atomic_path(path) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))


def n_outputs(dataset):
    known = DATASETS[dataset]
    return known['n_class'] + known['background_offset']


def convert(source, dataset, target):
    """Convert as tf2npz.py does, in this process."""
    conversion = check(open_source(source), dataset)
    with atomic_path(target) as temporary:
        write(conversion, temporary)
    return conversion


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('dataset', choices=DATASETS)
    parser.add_argument('target', help='the .pb file to write')
    args = parser.parse_args()
    crop_size = DATASETS[args.dataset]['min_input_size']
    with report_errors():
        write_palette_graph(args.target, args.dataset, crop_size)


if __name__ == '__main__':
    main()
