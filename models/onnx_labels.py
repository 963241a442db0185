"""From pixels to labels in an ONNX graph: what `predict` does."""
import numpy as np
from onnx import TensorProto, helper

from .constants import LOGITS_STRIDE, OFFSET, PAD_VALUE, SCALE

IMAGE, LABELS = 'ImageTensor', 'SemanticPredictions'  # the frozen graph's
WIDTH = 3  # axis


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
