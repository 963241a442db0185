"""Write a DeepLabV3+ link as an ONNX graph: to logits, or pixels to labels.

Dilations are attributes of the convolutions, so that the graph runs at any
input size; or at one, whose sizes are then constants.
"""
import collections
import functools
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
LOWEST = np.iinfo(np.int64).min


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
    model = onnx.ModelProto(
        ir_version=IR_VERSION, producer_name='deeplab_v3_plus',
        opset_import=[helper.make_opsetid('', OPSET)])
    model.graph.name = type(link).__name__
    helper.set_model_props(model, metadata or {})
    if end_to_end:
        link = link.with_background()
        _add_labels(_Graph(model.graph, link), link)
    else:
        _add_scores(_Graph(model.graph, link), link, probabilities, size)
    if size is not None:
        _make_sizes_constant(model)
    serialized = model.SerializeToString()
    onnx.checker.check_model(serialized)
    return serialized


def _make_sizes_constant(model):
    """Write the sizes that ONNX infers as constants, and leave out the nodes
    that compute them.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {each.name: [dim.dim_value for dim
                          in each.type.tensor_type.shape.dim]
              for each in inferred.value_info}
    used, nodes = {each.name for each in model.graph.output}, []
    for node in reversed(model.graph.node):
        if node.op_type in {'Expand', 'Resize'}:
            node.input[-1] = f'{node.name}/shape'
            model.graph.initializer.append(helper.make_tensor(
                node.input[-1], TensorProto.INT64, [4], shapes[node.output[0]]))
        if node.output[0] in used:
            used.update(node.input)
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


class _Graph(NetworkGraph):
    """Adds nodes and constants to an onnx.GraphProto.

    A tensor is given by its name; a node has the name of its output.
    """

    def __init__(self, proto, root):
        super().__init__(root)
        self.proto = proto
        self._counts, self._constants = collections.Counter(), set()

    def node(self, op, *inputs, name=None, **attributes):
        """Add a node, of tensors and numbers; return its output."""
        inputs = [each if isinstance(each, str) else
                  self.constant(np.asarray(each)) for each in inputs]
        name = name or op
        self._counts[name] += 1
        if name == op or self._counts[name] > 1:  # a network's second use
            name = f'{name}_{self._counts[name]}'
        self.proto.node.append(
            helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(self, array, name=None):
        """Add a constant; by default it is named after its values."""
        name = name or '_'.join(map(str, [array.dtype, *array.reshape(-1)]))
        if name not in self._constants:
            self._constants.add(name)
            self.proto.initializer.add(
                name=name, dims=array.shape, raw_data=array.tobytes(),
                data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        return name

    def conv(self, x, path, W, b, link):
        return self.node(
            'Conv', x, self.constant(W, f'{path}/W'),
            self.constant(b, f'{path}/b'), name=path, group=link.groups,
            kernel_shape=W.shape[2:], strides=link.stride,
            pads=link.pad * 2, dilations=link.dilate)

    relu = functools.partialmethod(node, 'Relu')
    total = functools.partialmethod(node, 'Add')
    mean = functools.partialmethod(node, 'GlobalAveragePool')
    concat = functools.partialmethod(node, 'Concat', axis=1)

    def expand(self, x, like):
        return self.node('Expand', x, self.sides(like))

    def resize(self, x, like):
        return self.resize_to(x, self.sides(like))

    def sides(self, x):
        """Return the height and width of x, as a tensor."""
        return self.node('Shape', x, start=2, end=4)

    def resize_to(self, x, size, mode='linear', **options):
        """Resize x to a height and width, given as a tensor."""
        shape = self.node('Concat', self.node('Shape', x, end=2), size, axis=0)
        return self.node('Resize', x, '', '', shape, mode=mode,
                         coordinate_transformation_mode='align_corners',
                         **options)

    def cast(self, x, kind):
        return self.node('Cast', x, to=getattr(TensorProto, kind))


def _value(name, kind, *shape):
    return helper.make_tensor_value_info(
        name, getattr(TensorProto, kind), shape)


def _add_scores(graph, link, probabilities, size):
    """Add logits or probabilities."""
    batch, *sides = ('batch', 'H', 'W') if size is None else (1, *size)
    graph.proto.input.append(_value(INPUT, 'FLOAT', batch, 3, *sides))
    logits = graph.network(link, INPUT)
    if probabilities:
        output = graph.node('Softmax', graph.resize(logits, INPUT), axis=1,
                            name='probabilities')
    else:
        output = graph.node('Identity', logits, name='logits')
        sides = ['ceil(H/4)', 'ceil(W/4)'] if size is None else [
            math.ceil(side / LOGITS_STRIDE) for side in size]
    graph.proto.output.append(
        _value(output, 'FLOAT', batch, link.n_class, *sides))


def _add_labels(graph, link):
    """Add what `predict` does, from pixels to labels."""
    graph.proto.input.append(_value(IMAGE, 'UINT8', 1, 'H', 'W', 3))
    size = original = graph.node('Shape', IMAGE, start=1, end=3)
    x = graph.node('Transpose', graph.cast(IMAGE, 'FLOAT'), perm=[0, 3, 1, 2])
    if link.resize_range is not None:
        size = _size_in_range(graph, link.resize_range, original)
        x = graph.resize_to(x, size)
    missing = graph.node('Sub', np.int64(link.min_input_size), size)
    pads = graph.node('Concat', [0] * 6, graph.node('Max', missing, [0]),
                      axis=0)
    x = graph.node('Pad', x, pads, np.float32(PAD_VALUE))  # (1, 3, h, w)
    x = graph.node('Sub', graph.node('Mul', x, np.float32(SCALE)),
                   np.float32(OFFSET))
    padded = graph.sides(x)
    scores = [graph.resize_to(logits, padded)
              for logits in _logits(graph, link, x, padded)]
    if len(scores) > 1:
        total = graph.node('Sum', *(graph.node('Softmax', each, axis=1)
                                    for each in scores))
        scores = [graph.node('Slice', total, [0], [link.n_class], [1])]
    labels = graph.node('ArgMax', scores[0], axis=1)  # (1, 1, h, w)
    labels = graph.node('Slice', labels, [0, 0], size, [2, 3])
    if link.resize_range is not None:  # as `resize_labels` does
        labels = graph.cast(graph.resize_to(
            graph.cast(labels, 'INT32'), original, 'nearest',
            nearest_mode='round_prefer_ceil'), 'INT64')
    graph.node('Squeeze', labels, [1], name=LABELS)
    graph.proto.output.append(_value(LABELS, 'INT64', 1, 'H', 'W'))


def _size_in_range(graph, resize_range, size):
    """What `ResizeRange.size` returns, as a tensor."""
    shortest, longest, factor, rounds_up = resize_range
    factor = factor or 1
    sides = graph.cast(size, 'FLOAT')

    def scaled(number, reduce):
        scale = graph.node('Div', np.float32(number),
                           graph.node(reduce, sides, keepdims=1))
        return graph.node('Ceil' if rounds_up else 'Floor',
                          graph.node('Mul', sides, scale))

    size = scaled(shortest, 'ReduceMin')
    if longest:
        longest -= (longest - 1) % factor
        too_long = graph.node('Greater', graph.node(
            'ReduceMax', size, keepdims=1), np.float32(longest))
        size = graph.node('Where', too_long, scaled(longest, 'ReduceMax'), size)
    size = graph.cast(size, 'INT64')
    missing = graph.node('Mod', graph.node('Sub', [1], size), [factor])
    return graph.node('Max', graph.node('Add', size, missing), [1])


def _logits(graph, link, x, padded):
    """Yield logits at each scale, also of x mirrored, as `predict` does."""
    for scale in link.scales:
        scaled = x
        if scale != 1:  # int((side - 1) * scale + 1), in double as in Python
            size = graph.cast(graph.node('Sub', padded, [1]), 'DOUBLE')
            size = graph.node('Add', graph.node('Mul', size, float(scale)), 1.)
            scaled = graph.resize_to(x, graph.cast(size, 'INT64'))
        for mirrored in (False, True) if link.flip else (False,):
            image = _mirrored(graph, scaled) if mirrored else scaled
            y = graph.network(link, image)
            y = _mirrored(graph, y) if mirrored else y
            if scale < 1:  # (side + 3) // 4
                more = graph.node('Add', padded, [LOGITS_STRIDE - 1])
                y = graph.resize_to(y, graph.node('Div', more, [LOGITS_STRIDE]))
            yield y


def _mirrored(graph, x):
    return graph.node('Slice', x, [-1], [LOWEST], [3], [-1])
