"""A graph that resizes its image to a range of sizes by itself.

The exporter's --min_resize_value computes the new size from the image's. What
it computes is run here for many sizes and compared with `ResizeRange`, so that
every form that TensorFlow gives these few operations is understood.
"""
import itertools
import operator

import numpy as np

from convert.graph_resizes import check_resize
from models.constants import MAX_INPUT_SIDE
from models.resize_range import ResizeRange
from models.utils.errors import InputError

SIDES = (1, 2, 31, 64, 97, 129, 200, 257, 333, 375, 500, 513, 600, 683, 720,
         1023, 1025, 1080, 1920, 2047, 2049, 3024, 4032, 9999)
HEIGHTS, WIDTHS = np.array(list(itertools.product(SIDES, SIDES))).T
MAX_DEPTH = 100  # operations between the image's size and the new one (40)
MAX_NUMBERS = 8  # constants among them (6)
OPERATIONS = {
    'Minimum': np.minimum, 'Maximum': np.maximum, 'Add': operator.add,
    'AddV2': operator.add, 'Sub': operator.sub, 'Mul': operator.mul,
    'RealDiv': operator.truediv, 'FloorMod': np.mod, 'Floor': np.floor,
    'Ceil': np.ceil, 'Greater': operator.gt,
    'Pack': lambda *values: np.stack(np.broadcast_arrays(*values)),
    'Max': lambda values, axis: values.max(int(axis.item())),
    'Min': lambda values, axis: values.min(int(axis.item())),
}
# Values that do not go together, or inputs that are missing.
NOT_COMPUTED = TypeError, ValueError, IndexError, AttributeError, OverflowError
TYPES = {1: np.float32, 3: np.int32, 9: np.int64}  # types.proto


def read_resize_range(graph, resize, last):
    """Return the `ResizeRange` by which the ResizeBilinear `resize` changes
    the image, on its way to the node `last`.
    """
    check_resize(graph, resize)
    if resize.name not in _way_of_image(graph, last):
        graph.refuse(resize.name, 'resizes the image, and is not on its way to '
                     'the network')
    _rank(graph, graph.input_node(resize, 0))
    sizes = _Sizes(graph)
    try:
        with np.errstate(all='ignore'):  # of another form than the exporter's
            found = np.maximum(sizes.of(resize.input[1]), 1)
    except InputError:
        raise
    except NOT_COMPUTED as error:
        graph.refuse(resize.name, 'resizes the image to a size that cannot be '
                     f'computed ({error})')
    numbers = sorted(sizes.numbers)
    if len(numbers) <= MAX_NUMBERS:
        for each in itertools.starmap(ResizeRange, itertools.product(
                numbers, [0, *numbers], [0, *numbers], (0, 1))):
            if np.array_equal(each.size(HEIGHTS, WIDTHS), found):
                return each
    return graph.refuse(
        resize.name, 'resizes the image to a size that is not the official '
        "exporter's: export without --min_resize_value, and use demo.py "
        '--max-size')


def check_labels_are_resized(graph, scores):
    """Refuse a graph whose labels, the best class of the node `scores`, do not
    go back to the image's size as `resize_labels` does it.
    """
    nodes, names = [graph.nodes[scores]], set()
    while nodes:
        node = nodes.pop()
        if node.op == 'ResizeNearestNeighbor':
            return check_resize(graph, node)
        nodes += [each for each in graph.readers(node.name)
                  if each.name not in names]
        names.update(each.name for each in nodes)
    return graph.refuse(scores, 'gives labels at another size than the '
                        "image's")


def _way_of_image(graph, node):
    """Return the names of nodes that an image goes through to a node: the
    first input of each.
    """
    names = []
    while node.op != 'Placeholder' and node.input and len(names) < MAX_DEPTH:
        names.append(node.name)
        node = graph.input_node(node, 0)
    return names


def _rank(graph, node):
    """Return how many axes an image has: the graph's, with only the axis of
    the batch taken away or added.
    """
    rank = 4
    for _ in range(MAX_DEPTH):
        if node.op == 'Placeholder':
            return rank
        if node.op not in {'Cast', 'Squeeze', 'ExpandDims'}:
            break
        if node.op == 'Squeeze':
            graph.compare(node.name, 'axis', list(
                node.attr['squeeze_dims'].list.i), [0])
        if node.op == 'ExpandDims':
            graph.compare(node.name, 'axis', graph.array(graph.input_node(
                node, 1).name).ravel().tolist(), [0])
        rank += {'Squeeze': -1, 'ExpandDims': 1}.get(node.op, 0)
        node = graph.input_node(node, 0)
    return graph.refuse(node.name, 'changes the image before it is resized')


class _Sizes:
    """Computes what a graph does to `HEIGHTS` and `WIDTHS`.

    A value is a number, or an array whose last axis is that of the sizes.
    `numbers` are the whole numbers among the constants.
    """

    def __init__(self, graph):
        self.graph, self.numbers, self._known = graph, set(), {}

    def of(self, tensor, depth=0):
        """Return the value of a tensor; refuse an unknown operation."""
        node = self.graph.producer(tensor)
        if depth > MAX_DEPTH:
            self.graph.refuse(node.name, 'comes from too many operations')
        if node.name not in self._known:
            self._known[node.name] = self._compute(node, depth + 1)
        return self._known[node.name]

    def _compute(self, node, depth):
        if node.op == 'Const':
            return self._constant(node)
        if node.op == 'Shape':
            rank = _rank(self.graph, self.graph.input_node(node, 0))
            return np.stack(np.broadcast_arrays(
                *[1] * (rank - 3), HEIGHTS, WIDTHS, 3)).astype(np.int32)
        if node.op == 'Merge':
            return self._merge(node, depth)
        values = [self.of(tensor, depth) for tensor in node.input]
        if node.op == 'Cast':
            return values[0].astype(
                TYPES.get(node.attr['DstT'].type, np.float64))
        if node.op == 'StridedSlice':
            return self._slice(node, values[0])
        if node.op in OPERATIONS:
            return OPERATIONS[node.op](*values)
        return self.graph.refuse(node.name, f'is a {node.op}, which computes '
                                 "no size of an image in the exporter's graphs")

    def _constant(self, node):
        value = self.graph.array(node.name)
        if value.ndim == 0 and value.dtype.kind in 'if' and (
                0 < value <= MAX_INPUT_SIDE and value == int(value)):
            self.numbers.add(int(value))
        return value

    def _slice(self, node, value):
        """x[i], or x[begin:end]."""
        begin, end, step = (self.graph.integers(
            self.graph.input_node(node, i), (1,))[0] for i in (1, 2, 3))
        if node.attr['shrink_axis_mask'].i == 1:
            return value[begin]
        masks = [node.attr[f'{name}_mask'].i for name in ('begin', 'end')]
        return value[None if masks[0] else begin:None if masks[1] else end:step]

    def _merge(self, node, depth):
        """tf.cond: of two values, each through a Switch of the same truth."""
        values = {}
        for tensor in node.input:
            name, _, output = tensor.partition(':')
            switch = self.graph.nodes.get(name)
            for _ in range(MAX_DEPTH):
                if switch is None or switch.op != 'Identity':
                    break
                name, _, output = switch.input[0].partition(':')
                switch = self.graph.nodes.get(name)
            if switch is None or switch.op != 'Switch':
                self.graph.refuse(node.name, 'must choose between two sizes')
            value, truth = (self.of(each, depth) for each in switch.input)
            values[output == '1'] = value
        if len(values) != 2:
            self.graph.refuse(node.name, 'must choose between two sizes')
        return np.where(truth, values[True], values[False])
