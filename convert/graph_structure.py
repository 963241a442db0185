"""Read how a frozen graph is wired, and check that the link is so as well.

Equal weights do not make an equal network: a graph may take its low level
features from another block, join features in another order, or put a ReLU
elsewhere. So the graph is followed from the labels back to the image. Where a
constant stands says which of the link's arrays it is, whatever tools have named
it. Strides, dilations, padding, epsilons and activations are noted, and then
compared with the link's.

A dilation is SpaceToBatchND -> convolution -> BatchToSpaceND, where the block
shape is the rate; a strided convolution has its padding in a Pad before it.
Where a tool has folded a batch norm into its convolution, a BiasAdd is left: a
batch norm of gamma 1, mean 0 and variance 1 - epsilon.
"""
import math
import typing

import numpy as np
from tensorboard.compat.proto.node_def_pb2 import NodeDef

from convert.frozen_graph import BATCH_NORMS
from convert.graph_wrapping import (
    CHANNELS,
    before_resize,
    check_labels_are_resized,
    find_resizes,
    is_mirror,
    joined,
    read_input,
    resized_to,
    scale_of,
    scales_and_flip,
)
from models.constants import (
    BACKBONE_EPS,
    HEAD_EPS,
    LOGITS_STRIDE,
    MAX_RATE,
    MIDDLE_BLOCKS,
    OUTPUT_STRIDES,
)
from models.resizing import ResizeRange
from models.utils.errors import shortened

BACKBONE, ASPP, DECODER = 'feature_extractor', 'aspp', 'decoder'  # link's paths
BLOCKS = [*(f'entryflow_block{i}' for i in (1, 2, 3)),
          *(f'middleflow_block{i}' for i in MIDDLE_BLOCKS), 'exitflow_block1']
STRIDED = f'{BACKBONE}/entryflow_block3/separable3/depthwise'
ATROUS = [f'{ASPP}/atrous{i}/depthwise' for i in (1, 2, 3)]
ADD, DEPTHWISE = ('Add', 'AddV2'), 'DepthwiseConv2dNative'  # ops
# Some TensorFlow leaves the head's epsilon at 1e-5, 0.1 % less (see head.py).
EPSILON_TOLERANCE = 0.002


class Wiring(typing.NamedTuple):
    """What a graph is made of."""

    image: str  # node that the image is fed to
    crop_size: list  # height, width in pixels to which images are padded
    logits: str | None  # node of the logits; None: there are several
    scores: str  # node of what the best class is taken of, at image size
    scales: tuple
    flip: bool
    resize_range: ResizeRange | None  # to which images are resized
    output_stride: int
    atrous_rates: list  # of the ASPP: three ints
    weights: dict  # name of the link's array -> NodeDef of the constant
    settings: list  # of layers: (node, path in the link, attribute, value)


def read_wiring(graph) -> Wiring:
    """Follow a graph from the labels to the image.

    Raise InputError with the node's name where it is another network.
    """
    resizes, scores = find_resizes(graph)
    first, *others = towers = [_read_tower(graph, each) for each in resizes]
    for each in others:
        for name in 'image', 'crop_size', 'resize_range':
            graph.compare(scores.name, name, getattr(each, name),
                          getattr(first, name))
        for name, node in first.weights.items():
            found = each.weights.get(name, node).name
            graph.compare(scores.name, name, found, node.name)
    if first.resize_range is not None:
        check_labels_are_resized(graph, scores.name)
    scales, flip = scales_and_flip(graph, scores.name, [
        (*each.scales, each.flip) for each in towers])
    return first._replace(
        logits=first.logits if (scales, flip) == ((1.,), False) else None,
        scores=scores.name, scales=scales, flip=flip,
        settings=[setting for each in towers for setting in each.settings])


def check_settings(graph, settings, link):
    """Raise InputError for a layer that is not set as the link's."""
    links = {path[1:]: child for path, child in link.namedlinks()}
    for node, path, attribute, value in settings:
        wanted = getattr(links[path], attribute)
        wanted = getattr(wanted, '__name__', wanted)  # of an activation
        if attribute != 'eps' or not np.isclose(
                value, wanted, rtol=EPSILON_TOLERANCE, atol=0):
            graph.compare(node, attribute, value, wanted)


def _read_tower(graph, resize):
    """Return the `Wiring` of the network whose logits are resized by a node."""
    last = before_resize(graph, resize)
    mirrored = is_mirror(graph, last)
    if mirrored:
        last = graph.input_node(last, 0)
    logits = before_resize(graph, last)
    network = _Network(graph)
    x, pooling, low_level = network.read(logits)
    image, resize_range, size = read_input(graph, x, mirrored)

    output_stride, rates = _strides(graph, network.settings)
    kernel = list(graph.sides(pooling, 'ksize'))
    crop_size = resized_to(graph, resize)
    if crop_size is None:  # then it is the usual stride * n + 1
        if size is not None:
            graph.refuse(resize.name, 'must resize to a fixed size')
        crop_size = [(side - 1) * output_stride + 1 for side in kernel]
    size = size or crop_size
    scale = scale_of(graph, x.name, size, crop_size)
    graph.compare(pooling.name, 'padding', pooling.attr['padding'].s, b'VALID')
    graph.compare(pooling.name, 'kernel', kernel,
                  [math.ceil(side / output_stride) for side in size])
    for node, kept in (low_level, size), (last, map(max, size, crop_size)):
        if node.op == 'ResizeBilinear':  # to the size that it has
            graph.compare(node.name, 'size', resized_to(graph, node), [
                math.ceil(side / LOGITS_STRIDE) for side in kept])
    return Wiring(
        image, crop_size, logits.name, resize.name, (scale,), mirrored,
        resize_range, output_stride, rates, network.weights, network.settings)


def _strides(graph, settings):
    """Return the output stride and the dilations of the ASPP's branches."""
    found = {(path, attribute): (node, value)
             for node, path, attribute, value in settings}
    node, stride = found[STRIDED, 'stride']
    strides = {2 * (sets['stride'],): output_stride
               for output_stride, sets in OUTPUT_STRIDES.items()}
    if stride not in strides:
        graph.refuse(node, f'has stride {stride}, and must have one of '
                     f'{shortened(strides)}')
    rates = [found[path, 'dilate'][1][0] for path in ATROUS]
    if not all(0 < rate <= MAX_RATE for rate in rates):
        graph.refuse(ASPP, f'has dilations {rates}, which the link cannot have')
    return strides[stride], rates


class _Network:
    """A network that is followed back from its logits.

    Methods take the path of a part of the link, and the node that makes what
    this part makes; they return the node of what it reads.

    Attributes:
        weights, settings: see `Wiring`.
    """

    def __init__(self, graph):
        self.graph, self.weights, self.settings = graph, {}, []

    def read(self, logits):
        """Return the node of the input, that of the image pooling, and that
        which gives the decoder its low level features.
        """
        x = self.graph.before(logits, 'BiasAdd')
        self._weight(f'{DECODER}/conv_logits/b', logits)
        x = self._conv(f'{DECODER}/conv_logits', x)
        x = self._separable(f'{DECODER}/conv2', x)
        x = self._separable(f'{DECODER}/conv1', x)
        high_level, resized = self._joined(x, 2)
        low_level = self._conv_bn(f'{DECODER}/feature_proj',
                                  before_resize(self.graph, resized))
        x, pooling = self._aspp(before_resize(self.graph, high_level))
        return self._backbone(x, low_level), pooling, resized

    def _aspp(self, x):
        pooled, *branches = self._joined(self._conv_bn(f'{ASPP}/proj', x), 5)
        pooling = self._conv_bn(f'{ASPP}/image_pooling_conv',
                                before_resize(self.graph, pooled))
        x = self.graph.before(pooling, 'AvgPool')
        self._same(f'{ASPP}/conv1x1', x,
                   self._conv_bn(f'{ASPP}/conv1x1', branches[0]))
        for i in (1, 2, 3):
            path = f'{ASPP}/atrous{i}'
            self._same(path, x, self._separable(path, branches[i]))
        return x, pooling

    def _backbone(self, x, low_level):
        for i in (3, 2, 1):
            x = self._separable(f'{BACKBONE}/exitflow_block2/separable{i}', x)
        for block in reversed(BLOCKS):
            x, middle = self._block(f'{BACKBONE}/{block}', x)
            if block == 'entryflow_block2':
                self._same(f'{DECODER}/feature_proj', middle, low_level)
        x = self._conv_bn(f'{BACKBONE}/entryflow_conv2', x)
        return self._conv_bn(f'{BACKBONE}/entryflow_conv1', x)

    def _block(self, path, total):
        """Return also what its second separable convolution makes."""
        graph = self.graph
        graph.check_op(total, *ADD)
        terms = [graph.input_node(total, i) for i in (0, 1)]
        h, shortcut = sorted(terms, key=self._is_shortcut)  # in any order
        middle = graph.before(self._separable(f'{path}/separable3', h), 'Relu')
        h = graph.before(self._separable(f'{path}/separable2', middle), 'Relu')
        x = graph.before(self._separable(f'{path}/separable1', h), 'Relu')
        kind = 'identity' if shortcut.name == x.name else 'conv'
        self.settings.append((total.name, path, 'shortcut', kind))
        if kind == 'conv':
            self._same(path, x, self._conv_bn(f'{path}/conv', shortcut))
        return x, middle

    def _is_shortcut(self, term):
        before = next((node.op for node in self.graph.way_back(term)
                       if node.op in {DEPTHWISE, *ADD, 'Relu'}), None)
        return before != DEPTHWISE

    # Layers

    def _conv_bn(self, path, x):
        x = self._batch_norm(f'{path}/bn', self._activation(path, 'activ', x))
        return self._conv(f'{path}/conv', x)

    def _separable(self, path, x):
        x = self._activation(path, 'pw_activ', x)
        x = self._conv(f'{path}/pointwise', self._batch_norm(
            f'{path}/pw_bn', x))
        x = self._activation(path, 'dw_activ', x)
        return self._conv(f'{path}/depthwise', self._batch_norm(
            f'{path}/dw_bn', x), DEPTHWISE)

    def _activation(self, path, attribute, x):
        found = 'relu' if x.op == 'Relu' else 'identity'
        self.settings.append((x.name, path, attribute, found))
        return self.graph.input_node(x, 0) if found == 'relu' else x

    def _batch_norm(self, path, node):
        """Return what it reads; where a tool folded it, it may stand before
        the BatchToSpaceND, and counts as behind it.
        """
        graph, bias_add = self.graph, node
        if node.op == 'BatchToSpaceND':
            bias_add = graph.input_node(node, 0)
        if bias_add.op == 'BiasAdd':
            self._folded(path, bias_add)
            if bias_add is node:
                return graph.input_node(node, 0)
            space = NodeDef()
            space.CopyFrom(node)
            space.input[0] = graph.input_node(bias_add, 0).name
            return space
        graph.check_op(node, *BATCH_NORMS)
        for i, name in enumerate(('gamma', 'beta', 'avg_mean', 'avg_var'), 1):
            self._weight(f'{path}/{name}', node, i)
        self.settings.append((node.name, path, 'eps', node.attr['epsilon'].f))
        graph.compare(node.name, 'is_training', node.attr['is_training'].b,
                      False)
        return graph.input_node(node, 0)

    def _folded(self, path, bias_add):
        bias = self._weight(f'{path}/beta', bias_add)
        epsilon = BACKBONE_EPS if path.startswith(BACKBONE) else HEAD_EPS
        for name, value in (('gamma', 1), ('avg_mean', 0),
                            ('avg_var', 1 - epsilon)):
            self.weights[f'{path}/{name}'] = self.graph.filled(bias, value)

    def _conv(self, path, last, op='Conv2D'):
        """Read a convolution; `last` is it, or the BatchToSpaceND after it."""
        graph, node = self.graph, last
        if last.op == 'BatchToSpaceND':
            node = graph.input_node(last, 0)
        graph.check_op(node, op)
        self._weight(f'{path}/W', node)
        x, stride = graph.input_node(node, 0), graph.sides(node, 'strides')
        dilate = graph.sides(node, 'dilations') if (
            'dilations' in node.attr) else (1, 1)
        pad = self._padding(path, node, x, last, stride)
        if last is not node:
            rates, others = (graph.integers(graph.input_node(each, 1), (2,))
                             for each in (x, last))
            graph.compare(last.name, 'block', others, rates)
            dilate = tuple(a * b for a, b in zip(rates, dilate, strict=True))
            x = graph.before(x, 'SpaceToBatchND')
        elif x.op == 'Pad':
            x = graph.input_node(x, 0)
        self.settings += [(node.name, path, name, value) for name, value in (
            ('stride', stride), ('dilate', dilate), ('pad', pad))
            if value is not None]
        return x

    def _padding(self, path, node, before, last, stride):
        """Return the padding of a convolution: vertical, horizontal, if it is
        the same on both sides; None if TensorFlow computes it.
        """
        graph, padding = self.graph, node.attr['padding'].s
        is_padded = before.op in {'SpaceToBatchND', 'Pad'}
        if padding == b'SAME' and not is_padded:  # both sides at stride 1
            sides = graph.shape(self.weights[f'{path}/W'])[:2]
            if stride != (1, 1) and sides != (1, 1):
                graph.refuse(node.name, f'pads by SAME at stride {stride}, '
                             'which depends on the size')
            return None
        if padding != b'VALID':
            graph.refuse(node.name, f'has padding {padding} after {before.op}, '
                         'which the link cannot have')
        edges = np.zeros((4, 2), int)  # before and after, of NHWC
        if last is not node:
            constants = [graph.input_node(each, 2) for each in (before, last)]
            if any(each.op != 'Const' for each in constants):
                return None
            edges[1:3] = np.subtract(*(graph.integers(each, (2, 2))
                                       for each in constants))
        elif is_padded:
            edges = graph.integers(graph.input_node(before, 1), (4, 2))
        first, second = np.transpose(edges).tolist()
        is_same = first == second and first[::3] == [0, 0]
        return tuple(first[1:3]) if is_same else (first, second)

    def _weight(self, array, reader, index=1):
        """Note the constant that a layer reads."""
        self.weights[array] = self.graph.input_node(reader, index)
        return self.weights[array]

    # Connections

    def _joined(self, node, count):
        """Return the nodes of what is joined along the channels."""
        found = joined(self.graph, node, CHANNELS)
        self.graph.compare(node.name, 'inputs', len(found), count)
        return found

    def _same(self, path, wanted, found):
        if found.name != wanted.name:
            self.graph.refuse(path, f'reads {found.op} {found.name}, and must '
                              f'read {wanted.name}')
