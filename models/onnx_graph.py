"""Write a DeepLabV3+ link as an ONNX graph: to logits, or pixels to labels.

Dilations are attributes of the convolutions, so that the graph runs at any
input size; or at one, whose sizes are then constants.
"""
import collections
import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from .constants import LOGITS_STRIDE, OFFSET, PAD_VALUE, SCALE
from .network_graph import NetworkGraph

INPUT = 'image'
OPSET = 15  # the first whose Shape takes a part of the shape
IR_VERSION = 8  # the one that goes with this opset
IMAGE, LABELS = 'ImageTensor', 'SemanticPredictions'  # the frozen graph's
WIDTH = 3  # axis


def onnx_model(link, metadata: dict[str, str] | None = None,
               probabilities: bool = False, end_to_end: bool = False,
               size: tuple[int, int] | None = None) -> bytes:
    """Build the ONNX model of a link with its present weights.

    Args:
        link (DeepLabV3plusXception65): the network; its weights are copied.
        metadata (dict): str -> str, for the model's metadata.
        probabilities (bool): output softmax at image size instead of logits.
        end_to_end (bool): do what `link.predict` does, with the official
            frozen graph's names: from 'ImageTensor' (1, H, W, 3), uint8, RGB,
            to 'SemanticPredictions' (1, H, W), int64, the class of each pixel.
        size ((int, int)): the only height and width, for one image; by
            default H, W and the batch are free.

    Returns:
        bytes: an onnx.ModelProto, validated, from 'image' (B, 3, H, W),
        float32, as `link.prepare` makes it, to 'logits' (B, n_class,
        ceil(H/4), ceil(W/4)), float32; or to 'probabilities' (B, n_class,
        H, W).

    Raises:
        BackendError: a part of the link was replaced by an unknown one.
    """
    model = _model(link, metadata, probabilities, end_to_end, size, {})
    if size is not None:  # once more, with the sizes that ONNX infers
        found = onnx.shape_inference.infer_shapes(model, data_prop=True)
        shapes = {each.name: [dim.dim_value for dim
                              in each.type.tensor_type.shape.dim]
                  for each in (*found.graph.value_info, *found.graph.input)}
        model = _model(link, metadata, probabilities, end_to_end, size, shapes)
    serialized = model.SerializeToString()
    onnx.checker.check_model(serialized)
    return serialized


def _model(link, metadata, probabilities, end_to_end, size, shapes):
    model = onnx.ModelProto(
        ir_version=IR_VERSION, producer_name='deeplab_v3_plus',
        opset_import=[helper.make_opsetid('', OPSET)])
    helper.set_model_props(model, metadata or {})
    graph = _Graph(model.graph, link, shapes)
    source, output = (add_labels(graph, link) if end_to_end else
                      _add_scores(graph, link, probabilities, size))
    model.graph.name = type(link).__name__
    model.graph.input.append(source)
    model.graph.output.append(output)
    return model


def _add_scores(graph, link, probabilities, size):
    """Add logits or probabilities; return the types of input and output."""
    batch, *sides = ('batch', 'H', 'W') if size is None else (1, *size)
    source = _float_value(INPUT, batch, 3, *sides)
    logits = graph.network(link, INPUT)
    if probabilities:
        output = graph.node('Softmax', graph.resize(logits, INPUT), axis=1,
                            name='probabilities')
    else:
        output = graph.node('Identity', logits, name='logits')
        sides = ['ceil(H/4)', 'ceil(W/4)'] if size is None else [
            math.ceil(side / LOGITS_STRIDE) for side in size]
    return source, _float_value(output, batch, link.n_class, *sides)


def _float_value(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class _Graph(NetworkGraph):
    """Adds nodes and constants to an onnx.GraphProto.

    A tensor is given by its name; a node has the name of its output.

    `shapes` is tensor -> shape, where sizes are constants; else empty.
    """

    def __init__(self, proto, root, shapes):
        super().__init__(root)
        self.proto, self.shapes = proto, shapes
        self._counts, self._constants = collections.Counter(), set()

    def node(self, op, *inputs, name=None, **attributes):
        """Add a node; return its output."""
        name = name or op
        self._counts[name] += 1
        if name == op or self._counts[name] > 1:  # a network's second use
            name = f'{name}_{self._counts[name]}'
        self.proto.node.append(
            helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(self, name, array):
        if name in self._constants:
            return name
        self._constants.add(name)
        self.proto.initializer.add(
            name=name, dims=array.shape, raw_data=array.tobytes(),
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        return name

    def conv(self, x, path, W, b, link):
        return self.node(
            'Conv', x, self.constant(f'{path}/W', W),
            self.constant(f'{path}/b', b), name=path, group=link.groups,
            kernel_shape=W.shape[2:], strides=link.stride,
            pads=link.pad * 2, dilations=link.dilate)

    def relu(self, x):
        return self.node('Relu', x)

    def total(self, x, y):
        return self.node('Add', x, y)

    def mean(self, x):
        return self.node('GlobalAveragePool', x)

    def expand(self, x, like):
        shape = (self.integers(1, 1, *self.shapes[like][2:])
                 if like in self.shapes else self.node(
                     'Concat', self.integers(1, 1), self.sides(like), axis=0,
                     name='shape'))
        return self.node('Expand', x, shape)

    def concat(self, *inputs):
        """Join channels."""
        return self.node('Concat', *inputs, axis=1)

    def sides(self, x):
        """Return the height and width of x, as a tensor."""
        return self.node('Shape', x, start=2, end=4)

    def resize(self, x, like):
        """Resize x to the height and width of another tensor."""
        if x in self.shapes:
            return self.resize_to(x, self.integers(
                *self.shapes[x][:2], *self.shapes[like][2:]))
        return self.resize_to(x, self.node(
            'Concat', self.node('Shape', x, end=2), self.sides(like), axis=0,
            name='shape'))

    def resize_to(self, x, shape):
        """Resize x to a whole shape, given as a tensor."""
        return self.node('Resize', x, '', '', shape, mode='linear',
                         coordinate_transformation_mode='align_corners')

    def integers(self, *values):
        return self.constant(f'int64_{"_".join(map(str, values))}',
                             np.array(values, np.int64))


def add_labels(graph, link):
    """Add the nodes to an `onnx_graph._Graph`; return the types of its input,
    uint8 (1, H, W, 3), RGB, and its output, int64 (1, H, W).
    """
    original = graph.node('Shape', IMAGE, start=1, end=3)
    x = graph.node('Cast', IMAGE, to=TensorProto.FLOAT)
    x, size = graph.node('Transpose', x, perm=[0, 3, 1, 2]), original
    if link.resize_range is not None:
        size = _size_in_range(graph, link.resize_range, original)
        x = _resized(graph, x, size)
    x = _prepared(graph, link, x, size)  # (1, 3, h, w)
    padded = graph.sides(x)
    logits = [_resized(graph, each, padded)
              for each in _logits(graph, link, x, padded)]
    if len(logits) > 1:
        logits = [graph.node('Sum', *(graph.node('Softmax', each, axis=1)
                                      for each in logits))]
    labels = graph.node('ArgMax', logits[0], axis=1, keepdims=0)
    resized = link.resize_range is not None
    labels = graph.node('Slice', labels, graph.integers(0, 0), size,
                        graph.integers(1, 2), name=None if resized else LABELS)
    if resized:
        _labels_in_size(graph, labels, original)
    return (helper.make_tensor_value_info(
                IMAGE, TensorProto.UINT8, [1, 'H', 'W', 3]),
            helper.make_tensor_value_info(
                LABELS, TensorProto.INT64, [1, 'H', 'W']))


def _size_in_range(graph, resize_range, size):
    """What `ResizeRange.size` returns, as a tensor."""
    shortest, longest, factor, rounds_up = resize_range
    if longest and factor:
        longest -= (longest - 1) % factor
    sides = graph.node('Cast', size, to=TensorProto.FLOAT)

    def scaled(number, reduce):
        side = graph.node(reduce, sides, keepdims=1)
        scale = graph.node('Div', _number(graph, number, np.float32), side)
        scaled = graph.node('Mul', sides, scale)
        return graph.node('Ceil' if rounds_up else 'Floor', scaled)

    size = scaled(shortest, 'ReduceMin')
    if longest:
        too_long = graph.node(
            'Greater', graph.node('ReduceMax', size, keepdims=1),
            _number(graph, longest, np.float32))
        size = graph.node('Where', too_long, scaled(longest, 'ReduceMax'),
                          size)
    size = graph.node('Cast', size, to=TensorProto.INT64)
    if factor:  # up to the next multiple, plus 1
        factor = graph.integers(factor)
        missing = graph.node('Sub', graph.integers(1), size)
        size = graph.node('Add', size, graph.node('Mod', missing, factor))
    return graph.node('Max', size, graph.integers(1))


def _labels_in_size(graph, labels, size):
    """Resize labels to the nearest pixel, as `resize_labels` does."""
    labels = graph.node('Unsqueeze', labels, graph.integers(1))
    labels = graph.node('Cast', labels, to=TensorProto.INT32)
    shape = graph.node('Concat', graph.integers(1, 1), size, axis=0)
    labels = graph.node(
        'Resize', labels, '', '', shape, mode='nearest',
        nearest_mode='round_prefer_ceil',
        coordinate_transformation_mode='align_corners')
    labels = graph.node('Squeeze', labels, graph.integers(1))
    graph.node('Cast', labels, to=TensorProto.INT64, name=LABELS)


def _prepared(graph, link, x, size):
    """Pad to `min_input_size` and scale, as `link.prepare` does."""
    missing = graph.node('Sub', graph.integers(*link.min_input_size), size)
    missing = graph.node('Max', missing, graph.integers(0))
    pads = graph.node('Concat', graph.integers(0, 0, 0, 0, 0, 0), missing,
                      axis=0)
    x = graph.node('Pad', x, pads, _number(graph, PAD_VALUE, np.float32))
    x = graph.node('Mul', x, _number(graph, SCALE, np.float32))
    return graph.node('Sub', x, _number(graph, OFFSET, np.float32))


def _logits(graph, link, x, padded):
    """Yield logits at each scale, also of x mirrored, as `predict` does."""
    for scale in link.scales:
        scaled = x if scale == 1 else _resized(
            graph, x, _scaled(graph, padded, scale))
        for mirrored in (False, True) if link.flip else (False,):
            image = _mirrored(graph, scaled) if mirrored else scaled
            y = graph.network(link, image)
            y = _mirrored(graph, y) if mirrored else y
            if scale < 1:
                y = _resized(graph, y, _logits_size(graph, padded))
            yield y


def _scaled(graph, size, scale):
    """int((side - 1) * scale + 1), in double as in Python."""
    size = graph.node('Sub', size, graph.integers(1))
    size = graph.node('Cast', size, to=TensorProto.DOUBLE)
    size = graph.node('Mul', size, _number(graph, scale, np.float64))
    size = graph.node('Add', size, _number(graph, 1, np.float64))
    return graph.node('Cast', size, to=TensorProto.INT64)


def _logits_size(graph, size):
    size = graph.node('Add', size, graph.integers(LOGITS_STRIDE - 1))
    return graph.node('Div', size, graph.integers(LOGITS_STRIDE))


def _resized(graph, x, size):
    shape = graph.node('Concat', graph.node('Shape', x, end=2), size, axis=0)
    return graph.resize_to(x, shape)


def _mirrored(graph, x):
    return graph.node('Slice', x, graph.integers(-1),
                      graph.integers(np.iinfo(np.int64).min),
                      graph.integers(WIDTH), graph.integers(-1))


def _number(graph, value, dtype):
    return graph.constant(f'{dtype.__name__}_{value}', np.array(value, dtype))
