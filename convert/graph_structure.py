"""Check that a frozen graph is wired as the link is.

Equal weights do not make an equal network: a graph may take its low level
feature from another block, join features in another order, or put a ReLU
elsewhere. `Structure` looks up the output, then goes through the graph in
forward order. Layers are found by their weights; what each of them reads is
compared with what the link's layer reads, and so are strides, dilations,
padding and epsilons. What the official exporter does without effect is passed
over: it resizes features and logits to the size they have, and in 2018 scales
the image by 1.
"""
import math

import numpy as np

from models.constants import LOGITS_STRIDE, MIDDLE_BLOCKS, OFFSET, SCALE
from models.utils.errors import InputError

ADD = ('Add', 'AddV2')
UINT8 = 4  # types.proto, DT_UINT8
# What may not be done to the image, but for a resize by 1.
REARRANGING = {'Reverse', 'ReverseV2', 'Transpose', 'MatMul', 'Conv2D',
               'ResizeBilinear', 'ResizeBicubic', 'ResizeNearestNeighbor',
               'ResizeArea', 'CropAndResize'}


class Structure:
    """A graph that is wired like the link.

    Args:
        graph (frozen_graph.FrozenGraph): see there.
        link (DeepLabV3plusXception65): its output stride is the graph's.
        names (dict): the link's array -> TensorFlow's name of the weight.

    Attributes:
        image (str): node that the image is fed to.
        crop_size (list of two ints): height and width in pixels that images
            are padded to.
        logits (str): node of the logits.
        sized_logits (str): node of the logits at the size of the image.

    Raises:
        InputError: graph and link differ; the node is named.

    A tensor that is expected somewhere is, in the methods, the name of the
    node that makes it, or a tuple of an operation and the tensors it reads;
    'Unchanged' stands for the tensor itself, or resized to the size it has.

    """

    def __init__(self, graph, link, names):
        self.graph, self.names = graph, names
        self._sums = {}  # expected -> the node that turned out to be it
        self.links = {path[1:]: child for path, child in link.namedlinks()}
        self._network()

    def _network(self):
        self.logits, self.sized_logits = self._output('decoder/conv_logits')
        self.crop_size = self._crop_size('aspp/image_pooling_conv/conv')
        low_level, high_level = self._backbone('feature_extractor')
        features = self._aspp('aspp', high_level)
        self._match_input(self.logits, self._decoder(
            'decoder', low_level, features))
        self._match_input(self.sized_logits, ('Unchanged', self.logits))

    def _output(self, path):
        """Find the logits, and what labels are the best of: the logits at the
        size of the image, not probabilities.
        """
        readers = self.graph.readers(f'{self.names[f"{path}/b"]}/read')
        if len(readers) != 1 or readers[0].op != 'BiasAdd' or (
                not readers[0].input):
            self._refuse('the bias of the logits', 'must be read by a BiasAdd')
        logits = node = readers[0]
        for _ in range(2):  # the first may keep the size
            readers = self.graph.readers(node.name)
            if [each.op for each in readers] != ['ResizeBilinear']:
                found = ', '.join(f'{each.op} {each.name}' for each in readers)
                self._refuse(node.name, f'is read by {found or "nothing"}, '
                             'and must be by one ResizeBilinear')
            node = readers[0]
            self._check_resize(node)
            for each in self.graph.readers(node.name):
                if each.op == 'ArgMax':
                    axis = self.graph.input_node(each, 1)
                    self._compare(each.name, 'axis', self.graph.array(
                        axis.name).tolist(), 3)
                    return logits.name, node.name
        return self._refuse(node.name, 'must be read by an ArgMax')

    def _crop_size(self, path):
        """The last resize tells it; if not, the kernel of image pooling does,
        which spans all the features, for the usual crops of stride * n + 1.
        """
        convolution = self.graph.convolution(self.names[f'{path}/W'])
        pooling = self.graph.nodes[convolution.input]
        if pooling.op != 'AvgPool':
            self._refuse(convolution.node, f'reads {pooling.op} '
                         f'{pooling.name}, and must read an AvgPool')
        kernel = list(pooling.attr['ksize'].list.i)
        stride = self.links[''].output_stride
        size = self._size(self.graph.nodes[self.sized_logits]) or [
            (side - 1) * stride + 1 for side in kernel[1:3]]
        if kernel != [1, *(math.ceil(side / stride) for side in size), 1]:
            self._refuse(pooling.name, f'has kernel {kernel}, which is not '
                         f'all that labels of {size} pixels are made of')
        return size

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
        link = self.links[path]
        found = self.graph.convolution(self.names[f'{path}/W'])
        self._match(found.node, found.input, x)
        self._compare(found.node, 'stride', found.stride, link.stride)
        self._compare(found.node, 'dilation', found.dilate, link.dilate)
        if found.pad is not None:
            self._compare(found.node, 'padding', found.pad, link.pad)
        return found.output

    def _batch_norm(self, path, x):
        node = self.graph.batch_norm(self.names[f'{path}/gamma'])
        weights = [self.graph.producer(name).name for name in node.input[1:5]]
        self._compare(node.name, 'weights', weights, [
            self.names[f'{path}/{name}']
            for name in ('gamma', 'beta', 'avg_mean', 'avg_var')])
        self._match(node.name, node.input[0], x)
        epsilon, wanted = node.attr['epsilon'].f, self.links[path].eps
        # Some TensorFlow leaves the head's at 1e-5, 0.1 % less (see head.py).
        if not np.isclose(epsilon, wanted, rtol=0.002, atol=0):
            self._compare(node.name, 'epsilon', epsilon, wanted)
        self._compare(node.name, 'is_training',
                      node.attr['is_training'].b, False)
        return node.name

    # Tensors

    def _match_input(self, name, expected):
        """Compare the first tensor that a node reads with `expected`."""
        self._match(name, self.graph.nodes[name].input[0], expected)

    def _match(self, reader, tensor, expected):
        """Compare the tensor that the node `reader` reads with `expected`."""
        node = self.graph.producer(tensor)
        if isinstance(expected, tuple) and expected[0] == 'Unchanged':
            node, expected = self._unresized(node), expected[1]
        expected = self._sums.get(expected, expected)
        if expected == 'input':
            self._check_input(reader, node)
        elif isinstance(expected, str):
            if node.name != expected:
                self._refuse(reader, f'reads {node.op} {node.name}, and must '
                             f'read {expected}')
        else:
            self._match_operation(reader, node, *expected)
            if expected[0] == 'Add':
                self._sums[expected] = node.name

    def _match_operation(self, reader, node, operation, *expected):
        allowed = ADD if operation == 'Add' else (operation,)
        if node.op not in allowed:
            self._refuse(reader, f'reads {node.op} {node.name}, and must read '
                         f'a {operation}')
        tensors = list(node.input)
        if operation == 'ResizeBilinear':
            self._check_resize(node)
            tensors = tensors[:1]
        elif operation == 'AvgPool':
            self._compare(node.name, 'padding', node.attr['padding'].s,
                          b'VALID')
        elif operation == 'ConcatV2' and tensors:
            axis = self.graph.array(self.graph.producer(tensors.pop()).name)
            self._compare(node.name, 'axis', axis.tolist(), 3)
        if len(tensors) != len(expected):
            self._refuse(node.name, f'reads {len(tensors)} tensors, and must '
                         f'read {len(expected)}')
        if operation == 'Add' and self.graph.producer(
                tensors[0]).name != expected[0]:
            tensors.reverse()  # a sum has no order
        for tensor, wanted in zip(tensors, expected, strict=True):
            self._match(node.name, tensor, wanted)

    def _unresized(self, node):
        """Return what a resize to the logits' size reads: it has that size."""
        if node.op != 'ResizeBilinear':
            return node
        self._check_resize(node)
        self._compare(node.name, 'size', self._size(node),
                      [math.ceil(side / LOGITS_STRIDE)
                       for side in self.crop_size])
        return self.graph.input_node(node, 0)

    def _size(self, resize):
        """Return height and width after a resize; None if not constant."""
        size = self.graph.input_node(resize, 1)
        if size.op == 'StridedSlice' and (
                shape := self.graph.input_node(size, 0)).op == 'Const':
            edges = self._edges(size)
            self._compare(size.name, 'edges', edges, (1, 3, False))
            return self.graph.integers(shape, (4,))[1:3]
        return self.graph.integers(size, (2,)) if size.op == 'Const' else None

    def _edges(self, node):
        """Return begin and end of a StridedSlice, and if it takes one item."""
        for mask in 'begin_mask', 'end_mask', 'ellipsis_mask', 'new_axis_mask':
            self._compare(node.name, mask, node.attr[mask].i, 0)
        begin, end, step = (self.graph.integers(
            self.graph.input_node(node, i), (1,))[0] for i in (1, 2, 3))
        self._compare(node.name, 'step', step, 1)
        return begin, end, node.attr['shrink_axis_mask'].i == 1

    def _check_resize(self, node):
        self._compare(node.name, 'align_corners',
                      node.attr['align_corners'].b, True)
        self._compare(node.name, 'half_pixel_centers',
                      node.attr['half_pixel_centers'].b, False)

    def _check_input(self, reader, node):
        """The network reads pixel * SCALE - OFFSET."""
        source, offset = self._with_constant(reader, node, 'Sub')
        image, scale = self._with_constant(reader, source, 'Mul')
        self.image = self._image(image)
        self._compare(node.name, 'offset', offset, OFFSET)
        if not np.isclose(scale, SCALE, rtol=1e-5, atol=0):
            self._compare(source.name, 'scale', scale, SCALE)

    def _image(self, node):
        """Return what feeds a node: one image, only converted, scaled by 1 and
        padded.
        """
        before = self.graph.ancestors(node.name)
        for each in before:
            if each.op in REARRANGING and not self._scales_by_one(each):
                self._refuse(each.name, f'is a {each.op} of the image before '
                             'the network, which cannot be converted')
        images = [each for each in before if each.op == 'Placeholder']
        if len(images) != 1 or images[0].attr['dtype'].type != UINT8:
            self._refuse(node.name, 'must come from one Placeholder of type '
                         f'uint8, and comes from {len(images)}')
        return images[0].name

    def _scales_by_one(self, node):
        """Tell whether a resize is to 1 times the size of what it reads."""
        if node.op != 'ResizeBilinear':
            return False
        image, size = (self._past(self.graph.input_node(node, i),
                                  'ExpandDims', 'Cast') for i in (0, 1))
        if size.op != 'Mul' or len(size.input) != 2:
            return False
        sides, factor = map(self.graph.producer, size.input)
        sides = self._past(sides, 'Cast')
        if factor.op != 'Const' or sides.op != 'Pack' or (
                self.graph.array(factor.name).tolist() != 1):
            return False
        for i, each in enumerate(map(self.graph.producer, sides.input)):
            if each.op != 'StridedSlice' or self._edges(each) != (
                    i, i + 1, True):
                return False
            shape = self.graph.input_node(each, 0)
            if shape.op != 'Shape' or image is not self._past(
                    self.graph.input_node(shape, 0), 'Cast'):
                return False
        return len(sides.input) == 2

    def _past(self, node, *ops):
        """Return the first node, going back from this one, of another op."""
        for _ in self.graph.nodes:
            if node.op not in ops:
                return node
            node = self.graph.input_node(node, 0)
        return self._refuse(node.name, 'reads itself')

    def _with_constant(self, reader, node, operation):
        """Return the other input of a node, and the number it works with."""
        if node.op != operation or len(node.input) != 2:
            self._refuse(reader, f'reads {node.op} {node.name}, and must read '
                         'pixel * 2 / 255 - 1')
        a, b = map(self.graph.producer, node.input)
        if a.op == 'Const' and operation == 'Mul':
            a, b = b, a
        number = self.graph.array(b.name)
        if number.size != 1 or number.dtype.kind != 'f':
            self._refuse(node.name, 'must work with one number')
        return a, number.item()

    def _compare(self, node, what, found, wanted):
        if found != wanted:
            self._refuse(node, f'has {what} {found}, and the link has '
                         f'{wanted}')

    def _refuse(self, node, reason):
        raise InputError(f'{self.graph.path}: {node} {reason}')
