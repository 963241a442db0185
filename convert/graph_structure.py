"""Check that a frozen graph is wired as the link is.

Equal weights do not make an equal network: a graph may take its low level
features from another block, join features in another order, or put a ReLU
elsewhere. The check looks up the output, then follows the network in forward
order. Layers are found by their weights; what each layer reads is compared
with what the link's layer reads, and so are strides, dilations, padding and
epsilons. Resizes of the official exporter that keep the size are passed over.

A dilation is SpaceToBatchND -> convolution -> BatchToSpaceND, where the block
shape is the rate; a strided convolution has its padding in a Pad before it.
"""
import math
import typing

import numpy as np

from convert.graph_wrapping import (
    check_labels_are_resized,
    check_resize,
    find_towers,
    image_and_scale,
    read_resize_range,
    resized_to,
    resizes_by_one,
    scale_of,
    scales_and_flip,
)
from convert.name_table import weight_table
from models.constants import (
    LOGITS_STRIDE,
    MAX_RATE,
    MIDDLE_BLOCKS,
    OFFSET,
    OUTPUT_STRIDES,
    SCALE,
)
from models.resize_range import ResizeRange

ADD = ('Add', 'AddV2')
ENTRY3_STRIDED = ('xception_65/entry_flow/block3/unit_1/xception_module/'
                  'separable_conv3_depthwise/depthwise_weights')
NHWC_CHANNELS = 3  # axis
# Some TensorFlow leaves the head's epsilon at 1e-5, 0.1 % less (see head.py).
EPSILON_TOLERANCE = 0.002
UINT8 = 4  # types.proto, DT_UINT8
# Ops forbidden between image and network; identity resizes and one to a range
# of sizes are allowed.
FORBIDDEN = {'Reverse', 'ReverseV2', 'Transpose', 'MatMul', 'Conv2D',
             'ResizeBilinear', 'ResizeBicubic', 'ResizeNearestNeighbor',
             'ResizeArea', 'CropAndResize'}
BATCH_NORMS = ('FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3')
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


def read_output_stride(graph):
    """Return a graph's output stride, from the block whose stride it sets."""
    graph = find_towers(graph)[0][0].graph
    found = convolution(graph, ENTRY3_STRIDED).stride
    for output_stride, sets in OUTPUT_STRIDES.items():
        if found == (sets['stride'], sets['stride']):
            return output_stride
    return graph.refuse('entry flow block 3', f'has stride {found}, and must '
                        'have 1 or 2 (output stride 8 or 16)')


def read_atrous_rates(graph):
    """Return the dilations of the ASPP's branches, three ints."""
    graph = find_towers(graph)[0][0].graph
    kernels = [f'aspp{i}_depthwise/depthwise_weights' for i in (1, 2, 3)]
    found = [convolution(graph, kernel) for kernel in kernels]
    for each in found:
        if each.dilate[0] != each.dilate[1] or each.dilate[0] > MAX_RATE:
            graph.refuse(each.node, f'has dilation {each.dilate}, which the '
                         'link cannot have')
    return [each.dilate[0] for each in found]


def check_structure(graph, link) -> Wiring:
    """Compare how layers are set and connected with the link.

    Raise InputError with the node's name where graph and link differ.
    """
    towers, mean = find_towers(graph)
    compared = [_Comparison(tower, link) for tower in towers]
    for each in compared:
        each.network()
    first = compared[0]
    scores = first.sized_logits if mean is None else mean
    if first.resize_range is not None:
        check_labels_are_resized(graph, scores)
    if mean is None:
        return Wiring(first.image, first.crop_size, first.logits, scores,
                      resize_range=first.resize_range)
    graph.compare(mean, 'images', {
        (each.image, each.resize_range) for each in compared}, {
        (first.image, first.resize_range)})
    graph.compare(mean, 'sizes', [
        each.crop_size for each in compared], len(compared) * [first.crop_size])
    scales, flip = scales_and_flip(graph, mean, [
        (each.scale, tower.mirrored)
        for each, tower in zip(compared, towers, strict=True)])
    return Wiring(first.image, first.crop_size, None, scores, scales, flip,
                  first.resize_range)


class _Comparison:
    """Follows the network in forward order, in the graph and in the link.

    In these methods an expected tensor is the name of the node that makes it,
    or a tuple of an op and the expected tensors that it reads. 'Unchanged'
    stands for a tensor itself or resized to its own size.
    """

    def __init__(self, tower, link):
        self.tower, self.graph = tower, tower.graph
        self.names = {array: name
                      for name, (array, _) in weight_table().items()}
        self.links = {path[1:]: child for path, child in link.namedlinks()}
        self._sums = {}  # expected sum -> its node, once it was found

    def network(self):
        """Compare; set `image`, `resize_range`, `crop_size`, `scale` and the
        logits' nodes."""
        self.logits, self.sized_logits = self._output('decoder/conv_logits')
        self.crop_size = self.size = self._crop_size()
        self.size = self._scaled_size('feature_extractor/entryflow_conv1/conv')
        self._check_pooling('aspp/image_pooling_conv/conv')
        low_level, high_level = self._backbone('feature_extractor')
        features = self._aspp('aspp', high_level)
        self._match_input(self.logits, self._decoder(
            'decoder', low_level, features))
        last = self.sized_logits
        if self.tower.mirrored:
            last = self.graph.input_node(self.graph.nodes[last], 0).name
        self.size = [max(sides) for sides in zip(self.size, self.crop_size,
                                                 strict=True)]
        self._match_input(last, ('Unchanged', self.logits))

    def _output(self, path):
        """Find the logits, and the resized logits that an ArgMax reads."""
        bias = self.names[f'{path}/b']
        node = logits = self.graph.reader_of_weight(bias, 'BiasAdd')
        if self.tower.sized_logits is not None:
            return logits.name, self.tower.sized_logits
        for _ in range(2):  # the first may keep the size
            node = self.graph.only_reader(node.name, 'ResizeBilinear')
            check_resize(self.graph, node)
            for each in self.graph.readers(node.name):
                if each.op == 'ArgMax':
                    self._check_axis(each, self.graph.input_node(each, 1))
                    return logits.name, node.name
        return self.graph.refuse(node.name, 'should feed an ArgMax')

    def _crop_size(self):
        """Read it off the last resize, else off the kernel of image pooling,
        which spans all features, for the usual crops of stride * n + 1.
        """
        size = resized_to(self.graph, self.graph.nodes[self.sized_logits])
        if size is None and self.tower.sized_logits is not None:
            self.graph.refuse(self.sized_logits, 'must resize to a fixed size')
        stride = self.links[''].output_stride
        return size or [(side - 1) * stride + 1 for side in
                        self._pooling('aspp/image_pooling_conv/conv')[1][1:3]]

    def _scaled_size(self, path):
        """Return the size that the image has in this tower."""
        self.scale = 1.
        if self.tower.sized_logits is None:
            return self.crop_size
        layer = convolution(self.graph, self.names[f'{path}/W'])
        node = before_normalization(self.graph, layer.node,
                                    self.graph.nodes[layer.input])
        _, size, mirrored = image_and_scale(self.graph, node)
        self.graph.compare(node.name, 'mirroring', mirrored,
                           self.tower.mirrored)
        if size is not None:
            self.scale = scale_of(self.graph, node.name, size, self.crop_size)
        return size or self.crop_size

    def _pooling(self, path):
        """Return the AvgPool that a convolution reads, and its kernel."""
        layer = convolution(self.graph, self.names[f'{path}/W'])
        pooling = self.graph.nodes[layer.input]
        if pooling.op != 'AvgPool':
            self.graph.refuse(layer.node, f'reads {pooling.op} '
                              f'{pooling.name}, and must read an AvgPool')
        kernel = list(pooling.attr['ksize'].list.i)
        if len(kernel) != 4:
            self.graph.refuse(pooling.name, f'has kernel {kernel}')
        return pooling.name, kernel

    def _check_pooling(self, path):
        name, kernel = self._pooling(path)
        stride = self.links[''].output_stride
        if kernel != [1, *(math.ceil(side / stride) for side in self.size), 1]:
            self.graph.refuse(name, f'has kernel {kernel}, which does not span '
                              f'the features of {self.size} pixels')

    def _backbone(self, path):
        x = self._conv_bn(f'{path}/entryflow_conv1', 'input')
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
        return ('Add', h, x), middle

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
        x = ('ConcatV2', ('ResizeBilinear', high_level), ('Unchanged', low))
        x = self._separable(f'{path}/conv1', x)
        x = self._separable(f'{path}/conv2', x)
        return self._conv(f'{path}/conv_logits', x)

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
        folded = self.graph.folded.get(gamma.removesuffix('/BatchNorm/gamma'))
        if folded is not None:
            return self._folded_batch_norm(folded, x)
        node = batch_norm(self.graph, gamma)
        compare(node.name, 'weights', [
            self.graph.producer(name).name for name in node.input[1:5]], [
            self.names[f'{path}/{name}']
            for name in ('gamma', 'beta', 'avg_mean', 'avg_var')])
        self._match(node.name, node.input[0], x)
        epsilon, wanted = node.attr['epsilon'].f, self.links[path].eps
        if not np.isclose(epsilon, wanted, rtol=EPSILON_TOLERANCE, atol=0):
            compare(node.name, 'epsilon', epsilon, wanted)
        compare(node.name, 'is_training', node.attr['is_training'].b, False)
        return node.name

    def _folded_batch_norm(self, bias_add, x):
        """It comes after x, or before the BatchToSpaceND that x is."""
        node = self.graph.nodes[x]
        if node.op == 'BatchToSpaceND' and (
                self.graph.input_node(node, 0).name == bias_add):
            return x
        self._match_input(bias_add, x)
        return bias_add

    # Tensors

    def _match_input(self, name, expected):
        """Compare the first tensor that a node reads with `expected`."""
        self._match(name, self.graph.nodes[name].input[0], expected)

    def _match(self, reader, tensor, expected):
        """Compare a tensor that the node `reader` reads with `expected`."""
        node = self.graph.producer(tensor)
        if isinstance(expected, tuple) and expected[0] == 'Unchanged':
            node, expected = self._before_resize(node), expected[1]
        expected = self._sums.get(expected, expected)
        if expected == 'input':
            self.image, self.resize_range = check_image(
                self.graph, reader, node, self.tower.sized_logits is not None)
        elif isinstance(expected, str):
            if node.name != expected:
                self.graph.refuse(reader, f'reads {node.op} {node.name}, and '
                                  f'must read {expected}')
        else:
            self._match_op(reader, node, *expected)
            if expected[0] == 'Add':
                self._sums[expected] = node.name

    def _match_op(self, reader, node, op, *expected):
        if node.op not in (ADD if op == 'Add' else (op,)):
            self.graph.refuse(reader, f'reads {node.op} {node.name}, and must '
                              f'read a {op}')
        tensors = list(node.input)
        if op == 'ResizeBilinear':
            check_resize(self.graph, node)
            tensors = tensors[:1]
        elif op == 'AvgPool':
            self.graph.compare(node.name, 'padding', node.attr['padding'].s,
                               b'VALID')
        elif op == 'ConcatV2' and tensors:
            self._check_axis(node, self.graph.producer(tensors.pop()))
        if len(tensors) != len(expected):
            self.graph.refuse(node.name, f'reads {len(tensors)} tensors, and '
                              f'must read {len(expected)}')
        if op == 'Add' and self.graph.producer(tensors[0]).name != expected[0]:
            tensors.reverse()  # a sum has no order
        for tensor, wanted in zip(tensors, expected, strict=True):
            self._match(node.name, tensor, wanted)

    def _check_axis(self, node, axis):
        self.graph.compare(node.name, 'axis', self.graph.array(
            axis.name).tolist(), NHWC_CHANNELS)

    def _before_resize(self, node):
        """Return what a resize to the logits' size reads: it has that size."""
        if node.op != 'ResizeBilinear':
            return node
        check_resize(self.graph, node)
        self.graph.compare(
            node.name, 'size', resized_to(self.graph, node),
            [math.ceil(side / LOGITS_STRIDE) for side in self.size])
        return self.graph.input_node(node, 0)


def check_image(graph, reader, node, scaled=False):
    """Check that the network reads pixel * SCALE - OFFSET of a padded image.

    `reader` is the name of the network's first node, `node` what it reads;
    the image may be `scaled` and mirrored before. Return the name of the node
    that the image is fed to, and the `ResizeRange` that it is resized to, or
    None.
    """
    source, offset = _with_constant(graph, reader, node, 'Sub')
    image, scale = _with_constant(graph, reader, source, 'Mul')
    if scaled:
        image, _, _ = image_and_scale(graph, image)
    resize_range = _resize_range(graph, image)
    name = _image(graph, image)
    graph.compare(node.name, 'offset', offset, OFFSET)
    if not np.isclose(scale, SCALE, rtol=1e-5, atol=0):
        graph.compare(source.name, 'scale', scale, SCALE)
    return name, resize_range


def before_normalization(graph, reader, node):
    """Return the image of which the network reads pixel * SCALE - OFFSET."""
    source, _ = _with_constant(graph, reader, node, 'Sub')
    return _with_constant(graph, reader, source, 'Mul')[0]


def _resize_range(graph, node):
    """Return to what an image is resized before a node."""
    changes = [each for each in graph.ancestors(node.name)
               if each.op in FORBIDDEN and not resizes_by_one(graph, each)]
    if not changes:
        return None
    first, *more = changes
    if first.op != 'ResizeBilinear' or more:
        other = more[0] if first.op == 'ResizeBilinear' else first
        graph.refuse(other.name, f'is a {other.op} of the image before the '
                     'network: only padding and one resize can be converted')
    return read_resize_range(graph, first, node)


def _image(graph, node):
    """Return what feeds a node: one image, converted and padded at most."""
    before = graph.ancestors(node.name)
    images = [each for each in before if each.op == 'Placeholder']
    if len(images) != 1 or images[0].attr['dtype'].type != UINT8:
        graph.refuse(node.name, 'must come from one Placeholder of type '
                     f'uint8, and comes from {len(images)}')
    return images[0].name


def _with_constant(graph, reader, node, op):
    """Return the other input of a node, and the number that it works with."""
    if node.op != op or len(node.input) != 2:
        graph.refuse(reader, f'reads {node.op} {node.name}, and must read '
                     'pixel * 2 / 255 - 1')
    a, b = map(graph.producer, node.input)
    if a.op == 'Const' and op == 'Mul':
        a, b = b, a
    number = graph.array(b.name)
    if number.size != 1 or number.dtype.kind != 'f':
        graph.refuse(node.name, 'must work with one number')
    return a, number.item()


class Convolution(typing.NamedTuple):
    """How a graph applies a kernel; pairs are vertical, horizontal."""

    node: str
    input: str  # node before the convolution, padding and SpaceToBatchND
    output: str  # last node: the convolution, or BatchToSpaceND
    stride: tuple
    dilate: tuple
    pad: tuple | None  # the same on both sides; None: computed by the graph


def batch_norm(graph, gamma):
    """Return the node of the batch norm that reads the weight `gamma`."""
    return graph.reader_of_weight(gamma, *BATCH_NORMS)


def convolution(graph, kernel):
    """Return the `Convolution` that applies the weight `kernel`.

    Raise InputError where it is applied in a way that the link does not have.
    """
    node = graph.reader_of_weight(kernel, *CONVOLUTIONS)
    stride = graph.sides(node, 'strides')
    dilate = graph.sides(node, 'dilations') if 'dilations' in node.attr else (
        1, 1)
    before, output, pad = graph.input_node(node, 0), node.name, (0, 0)
    padding = _padding(graph, node, before)
    if before.op == 'SpaceToBatchND':
        last = graph.folded.get(node.name.rpartition('/')[0])
        inside = last is not None and any(
            each.name == last for each in graph.readers(node.name))
        after = graph.only_reader(last if inside else node.name,
                                  'BatchToSpaceND')
        block, other = (graph.integers(graph.input_node(each, 1), (2,))
                        for each in (before, after))
        if block != other:
            graph.refuse(before.name, f'has the block {block}, and '
                         f'{after.name} {other}')
        pad = _space_padding(graph, before, after)
        dilate = tuple(a * b for a, b in zip(block, dilate, strict=True))
        before, output = graph.input_node(before, 0), after.name
    elif before.op == 'Pad':
        pad = _explicit_padding(graph, before)
        before = graph.input_node(before, 0)
    if padding == b'SAME':
        pad = _same_padding(graph, node, graph.weights[kernel], stride, dilate)
    return Convolution(node.name, before.name, output, stride, dilate, pad)


def _padding(graph, node, before):
    padding = node.attr['padding'].s
    allowed = {b'VALID'} if before.op in {'SpaceToBatchND', 'Pad'} else {
        b'VALID', b'SAME'}
    if padding not in allowed:
        graph.refuse(node.name, f'has padding {padding} after {before.op}, '
                     f'and must have {" or ".join(map(str, sorted(allowed)))}')
    return padding


def _same_padding(graph, node, kernel, stride, dilate):
    if stride != (1, 1) and kernel[:2] != (1, 1):
        graph.refuse(node.name, f'pads by SAME at stride {stride}, which '
                     'depends on the size')
    return tuple(rate * (side - 1) // 2
                 for rate, side in zip(dilate, kernel[:2], strict=True))


def _explicit_padding(graph, node):
    pad = graph.integers(graph.input_node(node, 1), (4, 2))
    if any(a != b for a, b in pad) or pad[0] != [0, 0] or pad[3] != [0, 0]:
        graph.refuse(node.name, f'pads by {pad}, and must pad alike on '
                     'opposite sides')
    return pad[1][0], pad[2][0]


def _space_padding(graph, before, after):
    sources = [graph.input_node(node, 2) for node in (before, after)]
    if any(node.op != 'Const' for node in sources):
        return None
    paddings, crops = (graph.integers(node, (2, 2)) for node in sources)
    if crops[0][0] or crops[1][0]:
        graph.refuse(after.name, 'crops at the top or left')
    for (start, end), (_, crop) in zip(paddings, crops, strict=True):
        if start != end - crop:
            graph.refuse(before.name, f'pads by {paddings}, and must pad '
                         'alike on opposite sides')
    return paddings[0][0], paddings[1][0]
