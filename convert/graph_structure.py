"""Check that a frozen graph is wired as the link is.

Equal weights do not make an equal network: a graph may take its low level
features from another block, join features in another order, or put a ReLU
elsewhere. The check looks up the output and the image, then follows the network
in forward order. Layers are found by their weights; what each layer reads is
compared with what the link's layer reads, and so are strides, dilations,
padding and epsilons.

A dilation is SpaceToBatchND -> convolution -> BatchToSpaceND, where the block
shape is the rate; a strided convolution has its padding in a Pad before it.
"""
import math
import typing

import numpy as np
from tensorboard.compat.proto.node_def_pb2 import NodeDef

from convert.frozen_graph import BATCH_NORMS
from convert.graph_wrapping import (
    CHANNELS,
    check_axis,
    check_labels_are_resized,
    check_resize,
    find_towers,
    read_input,
    resized_to,
    scale_of,
    scales_and_flip,
)
from convert.name_table import weight_table
from models.constants import (
    LOGITS_STRIDE,
    MAX_RATE,
    MIDDLE_BLOCKS,
    OUTPUT_STRIDES,
)
from models.resizing import ResizeRange

FIRST = 'xception_65/entry_flow/conv1_1/weights'
ENTRY3_STRIDED = ('xception_65/entry_flow/block3/unit_1/xception_module/'
                  'separable_conv3_depthwise/depthwise_weights')
ASPP = [f'aspp{i}_depthwise/depthwise_weights' for i in (1, 2, 3)]
POOLED = 'image_pooling/weights'
# Some TensorFlow leaves the head's epsilon at 1e-5, 0.1 % less (see head.py).
EPSILON_TOLERANCE = 0.002
ADD = ('Add', 'AddV2')
CONVOLUTIONS = ('Conv2D', 'DepthwiseConv2dNative')


class Wiring(typing.NamedTuple):
    """What running a graph needs to know of it."""

    image: str  # node that the image is fed to
    crop_size: list  # height, width in pixels to which images are padded
    logits: str | None  # node of the logits; None: there are several
    scores: str  # node of what the best class is taken of, at image size
    scales: tuple = (1.,)
    flip: bool = False
    resize_range: ResizeRange | None = None  # to which images are resized


def read_strides(graph):
    """Return a graph's output stride and the dilations of the ASPP's branches,
    three ints.
    """
    graph = find_towers(graph)[0][0].graph
    output_strides = {2 * (sets['stride'],): output_stride
                      for output_stride, sets in OUTPUT_STRIDES.items()}
    stride = convolution(graph, ENTRY3_STRIDED).stride
    if stride not in output_strides:
        graph.refuse('entry flow block 3', f'has stride {stride}, and must '
                     'have 1 or 2 (output stride 8 or 16)')
    branches = [convolution(graph, kernel) for kernel in ASPP]
    for each in branches:
        if each.dilate[0] != each.dilate[1] or each.dilate[0] > MAX_RATE:
            graph.refuse(each.node, f'has dilation {each.dilate}, which the '
                         'link cannot have')
    return output_strides[stride], [each.dilate[0] for each in branches]


def check_structure(graph, link) -> Wiring:
    """Compare how layers are set and connected with the link.

    Raise InputError with the node's name where graph and link differ.
    """
    towers, scores = find_towers(graph)
    found = [_check_tower(tower, link) for tower in towers]
    first, *others = ((each.image, each.crop_size, each.resize_range)
                      for each in found)
    for each in others:
        graph.compare(scores.name, 'images', each, first)
    if found[0].resize_range is not None:
        check_labels_are_resized(graph, scores.name)
    scales, flip = scales_and_flip(graph, scores.name, [
        (*each.scales, each.flip) for each in found])
    one = (scales, flip) == ((1.,), False)
    return found[0]._replace(
        logits=found[0].logits if one else None, scores=scores.name,
        scales=scales, flip=flip)


def _check_tower(tower, link):
    """Compare a tower with the link; return its own `Wiring`."""
    graph, stride = tower.graph, link.output_stride
    first = convolution(graph, FIRST)
    image, resize_range, size = read_input(tower, first.node, first.input)
    pooling = convolution(graph, POOLED).input
    kernel = list(graph.sides(pooling, 'ksize'))
    graph.compare(pooling.name, 'padding', pooling.attr['padding'].s, b'VALID')
    crop_size = resized_to(graph, tower.resize)
    if crop_size is None:  # then it is the usual stride * n + 1
        if size is not None:
            graph.refuse(tower.resize.name, 'must resize to a fixed size')
        crop_size = [(side - 1) * stride + 1 for side in kernel]
    size = size or crop_size
    scale = scale_of(graph, first.node, size, crop_size)
    graph.compare(pooling.name, 'kernel', kernel,
                  [math.ceil(side / stride) for side in size])
    comparison = _Comparison(graph, link, size)
    logits = comparison.network(first.input.name)
    last = tower.resize
    if tower.mirrored:
        last = graph.input_node(last, 0)
    comparison.match_input(last, (
        'Unchanged', list(map(max, size, crop_size)), logits))
    return Wiring(image, crop_size, logits, tower.resize.name, (scale,),
                  tower.mirrored, resize_range)


class _Comparison:
    """Follows the network in forward order, in the graph and in the link.

    In these methods an expected tensor is the name of the node that makes it,
    or a tuple of an op and the expected tensors that it reads. 'Unchanged' and
    a size stand for a tensor of this size, itself or resized to it.
    """

    def __init__(self, graph, link, size):
        self.graph, self.size = graph, size  # of the image, height and width
        self.names = {array: name
                      for name, (array, _) in weight_table().items()}
        self.links = {path[1:]: child for path, child in link.namedlinks()}

    def network(self, x):
        """Compare all from the input `x` to the logits; return their node."""
        low_level, high_level = self._backbone('feature_extractor', x)
        features = self._aspp('aspp', high_level)
        return self._decoder('decoder', low_level, features)

    def _backbone(self, path, x):
        x = self._conv_bn(f'{path}/entryflow_conv1', x)
        x = self._conv_bn(f'{path}/entryflow_conv2', x)
        blocks = [*(f'entryflow_block{i}' for i in (1, 2, 3)),
                  *(f'middleflow_block{i}' for i in MIDDLE_BLOCKS),
                  'exitflow_block1']
        for block in blocks:
            x, middle = self._block(f'{path}/{block}', x)
            if block == 'entryflow_block2':
                low_level = middle
        for i in (1, 2, 3):
            x = self._separable(f'{path}/exitflow_block2/separable{i}', x)
        return low_level, x

    def _block(self, path, x):
        h = self._separable(f'{path}/separable1', ('Relu', x))
        middle = self._separable(f'{path}/separable2', ('Relu', h))
        h = self._separable(f'{path}/separable3', ('Relu', middle))
        if self.links[path].shortcut == 'conv':
            x = self._conv_bn(f'{path}/conv', x)
        total = self.graph.only_reader(h, *ADD)
        self.graph.compare(total.name, 'terms', sorted(total.input),
                           sorted([h, x]))
        return total.name, middle

    def _aspp(self, path, x):
        pooled = self._conv_bn(f'{path}/image_pooling_conv', ('AvgPool', x))
        branches = [self._conv_bn(f'{path}/conv1x1', x)]
        branches += [self._separable(f'{path}/atrous{i}', x)
                     for i in (1, 2, 3)]
        return self._conv_bn(
            f'{path}/proj', ('ConcatV2', ('ResizeBilinear', pooled),
                             *branches))

    def _decoder(self, path, low_level, high_level):
        low = self._conv_bn(f'{path}/feature_proj', low_level)
        x = ('ConcatV2', ('ResizeBilinear', high_level),
             ('Unchanged', self.size, low))
        x = self._separable(f'{path}/conv1', x)
        x = self._separable(f'{path}/conv2', x)
        x = self._conv(f'{path}/conv_logits', x)
        bias_add = self.graph.reader_of_weight(
            self.names[f'{path}/conv_logits/b'], 'BiasAdd')
        self.match_input(bias_add, x)
        return bias_add.name

    # Layers: each compares what it reads with x and returns what it makes.

    def _conv_bn(self, path, x):
        x = self._batch_norm(f'{path}/bn', self._conv(f'{path}/conv', x))
        return self._activated(self.links[path].activ, x)

    def _separable(self, path, x):
        link = self.links[path]
        x = self._conv(f'{path}/depthwise', x)
        x = self._activated(link.dw_activ, self._batch_norm(
            f'{path}/dw_bn', x))
        x = self._conv(f'{path}/pointwise', x)
        return self._activated(link.pw_activ, self._batch_norm(
            f'{path}/pw_bn', x))

    def _activated(self, activation, x):
        return ('Relu', x) if activation.__name__ == 'relu' else x

    def _conv(self, path, x):
        link, compare = self.links[path], self.graph.compare
        found = convolution(self.graph, self.names[f'{path}/W'])
        self._match(found.node, found.input, x)
        compare(found.node, 'stride', found.stride, link.stride)
        compare(found.node, 'dilation', found.dilate, link.dilate)
        if found.pad is not None:
            compare(found.node, 'padding', found.pad, link.pad)
        return found.output

    def _batch_norm(self, path, x):
        compare, gamma = self.graph.compare, self.names[f'{path}/gamma']
        node = self.graph.reader_of_weight(gamma, *BATCH_NORMS)
        compare(node.name, 'weights', list(node.input[1:5]), [
            self.names[f'{path}/{name}']
            for name in ('gamma', 'beta', 'avg_mean', 'avg_var')])
        self.match_input(node, x)
        epsilon, wanted = node.attr['epsilon'].f, self.links[path].eps
        if not np.isclose(epsilon, wanted, rtol=EPSILON_TOLERANCE, atol=0):
            compare(node.name, 'epsilon', epsilon, wanted)
        compare(node.name, 'is_training', node.attr['is_training'].b, False)
        return node.name

    # Tensors

    def match_input(self, node, expected):
        """Compare what a node reads first with an expected tensor."""
        self._match(node.name, self.graph.input_node(node, 0), expected)

    def _match(self, reader, node, expected):
        """Compare a node, which another reads, with an expected tensor."""
        if isinstance(expected, str):
            if node.name != expected:
                self.graph.refuse(reader, f'reads {node.op} {node.name}, and '
                                  f'must read {expected}')
            return
        op, *tensors = expected
        if op == 'Unchanged':
            size, x = tensors
            self._match(reader, self._before_resize(node, size), x)
            return
        self.graph.check_op(reader, node, op)
        found = node.input
        if op == 'ResizeBilinear':
            check_resize(self.graph, node)
            found = found[:1]  # without the size
        elif op == 'ConcatV2':
            check_axis(self.graph, node, CHANNELS)
            found = found[:-1]
        self.graph.compare(node.name, 'inputs', len(found), len(tensors))
        for tensor, x in zip(found, tensors, strict=True):
            self._match(node.name, self.graph.producer(tensor), x)

    def _before_resize(self, node, size):
        """Return what a node reads if it only resizes to features' own size."""
        if node.op != 'ResizeBilinear':
            return node
        check_resize(self.graph, node)
        self.graph.compare(
            node.name, 'size', resized_to(self.graph, node),
            [math.ceil(side / LOGITS_STRIDE) for side in size])
        return self.graph.input_node(node, 0)


class Convolution(typing.NamedTuple):
    """How a graph applies a kernel; pairs are vertical, horizontal."""

    node: str
    input: NodeDef  # before the convolution, padding and SpaceToBatchND
    output: str  # last node: the convolution, or BatchToSpaceND
    stride: tuple
    dilate: tuple
    pad: tuple | None  # the same on both sides; None: computed by the graph


def convolution(graph, kernel):
    """Return the `Convolution` that applies the weight `kernel`.

    Raise InputError where it is applied in a way that the link does not have.
    """
    node = graph.reader_of_weight(kernel, *CONVOLUTIONS)
    stride = graph.sides(node, 'strides')
    dilate = graph.sides(node, 'dilations') if 'dilations' in node.attr else (
        1, 1)
    before, last, pad = graph.input_node(node, 0), node, (0, 0)
    is_padded = before.op in {'SpaceToBatchND', 'Pad'}
    padding = node.attr['padding'].s
    if padding == b'SAME' and not is_padded:
        pad = _same_padding(graph, node, graph.weights[kernel], stride, dilate)
    elif padding != b'VALID':
        graph.refuse(node.name, f'has padding {padding} after {before.op}, '
                     'which the link cannot have')
    if before.op == 'SpaceToBatchND':
        last = graph.only_reader(node.name, 'BatchToSpaceND')
        block, other = (graph.integers(graph.input_node(each, 1), (2,))
                        for each in (before, last))
        graph.compare(last.name, 'block', other, block)
        pad = _space_padding(graph, before, last)
        dilate = tuple(a * b for a, b in zip(block, dilate, strict=True))
    elif before.op == 'Pad':
        batch, *edges, channels = graph.integers(
            graph.input_node(before, 1), (4, 2))
        graph.compare(before.name, 'padding of batch and channels',
                      batch + channels, 4 * [0])
        pad = _padding(graph, before, edges)
    return Convolution(
        node.name, graph.input_node(before, 0) if is_padded else before,
        last.name, stride, dilate, pad)


def _same_padding(graph, node, kernel, stride, dilate):
    if stride != (1, 1) and kernel[:2] != (1, 1):
        graph.refuse(node.name, f'pads by SAME at stride {stride}, which '
                     'depends on the size')
    return tuple(rate * (side - 1) // 2
                 for rate, side in zip(dilate, kernel, strict=False))


def _space_padding(graph, before, after):
    edges = [graph.input_node(node, 2) for node in (before, after)]
    if any(node.op != 'Const' for node in edges):
        return None
    paddings, crops = (graph.integers(node, (2, 2)) for node in edges)
    return _padding(graph, before, (np.array(paddings) - crops).tolist())


def _padding(graph, node, edges):
    (top, bottom), (left, right) = edges
    graph.compare(node.name, 'padding at bottom and right', (bottom, right),
                  (top, left))
    return top, left
