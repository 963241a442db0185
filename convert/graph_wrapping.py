"""What the exporter puts around the network: resizes, scales, a range of sizes.

--inference_scales and --add_flipped_images write one tower for each: the
image, mirrored and then resized; the network, whose towers read the same
weights; logits, mirrored back and resized to the image; softmax. Labels are the
best class of the mean of all. --min_resize_value computes the image's new size
from its own.
"""
import fractions
import itertools
import math
import operator
import typing

import numpy as np

from convert.frozen_graph import FrozenGraph
from models.constants import MAX_INPUT_SIDE, MAX_SCALE
from models.resize_range import ResizeRange
from models.utils.errors import InputError

WIDTH, TOWERS = 2, 4  # axes
DECIMALS = 6  # of a scale
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


def check_resize(graph, node):
    """Refuse a ResizeBilinear that does not align corners."""
    graph.compare(node.name, 'align_corners',
                  node.attr['align_corners'].b, True)
    graph.compare(node.name, 'half_pixel_centers',
                  node.attr['half_pixel_centers'].b, False)


def resized_to(graph, resize):
    """Return [height, width] after a resize; None if not constant."""
    size = graph.input_node(resize, 1)
    if size.op == 'StridedSlice' and (
            shape := graph.input_node(size, 0)).op == 'Const':
        graph.compare(size.name, 'edges', _edges(graph, size), (1, 3, False))
        return graph.integers(shape, (4,))[1:3]
    return graph.integers(size, (2,)) if size.op == 'Const' else None


def resizes_by_one(graph, node):
    """Return whether a node resizes an image to 1 times its own size, as
    graphs of early 2018 do.
    """
    if node.op != 'ResizeBilinear':
        return False
    image, size = (graph.past(graph.input_node(node, i), 'ExpandDims', 'Cast')
                   for i in (0, 1))
    if size.op != 'Mul' or len(size.input) != 2:
        return False
    sides, factor = map(graph.producer, size.input)
    sides = graph.past(sides, 'Cast')
    return (factor.op == 'Const' and sides.op == 'Pack'
            and graph.array(factor.name).tolist() == 1
            and len(sides.input) == 2
            and all(_is_side(graph, graph.producer(tensor), i, image)
                    for i, tensor in enumerate(sides.input)))


def _is_side(graph, node, i, image):
    """Return whether a node takes side i of the shape of an image."""
    if node.op != 'StridedSlice' or _edges(graph, node) != (i, i + 1, True):
        return False
    shape = graph.input_node(node, 0)
    return shape.op == 'Shape' and image is graph.past(
        graph.input_node(shape, 0), 'Cast')


def _edges(graph, node):
    """Return begin and end of a StridedSlice, and whether it takes one item."""
    for mask in 'begin_mask', 'end_mask', 'ellipsis_mask', 'new_axis_mask':
        graph.compare(node.name, mask, node.attr[mask].i, 0)
    begin, end, step = (graph.integers(
        graph.input_node(node, i), (1,))[0] for i in (1, 2, 3))
    graph.compare(node.name, 'step', step, 1)
    return begin, end, node.attr['shrink_axis_mask'].i == 1


class Tower(typing.NamedTuple):
    """One of the networks in a graph."""

    graph: FrozenGraph  # only what its logits depend on
    sized_logits: str | None  # its logits at image size; None: the only tower
    mirrored: bool  # whether it sees the mirrored image


def find_towers(graph):
    """Return the `Tower`s of a graph; and the node of their mean, or None."""
    means = {graph.input_node(node, 0).name for node in graph.nodes.values()
             if node.op == 'ArgMax' and node.input
             and graph.input_node(node, 0).op == 'Mean'}
    if not means:
        return [Tower(graph, None, False)], None
    if len(means) > 1:
        graph.refuse(min(means), 'is not the only mean that gives labels')
    mean = graph.nodes[means.pop()]
    _check_axis(graph, mean, TOWERS, -1)
    joined, names = graph.input_node(mean, 0), [mean.input[0]]
    if joined.op == 'ConcatV2':
        *names, axis = joined.input
        graph.compare(joined.name, 'axis', graph.array(
            graph.producer(axis).name).tolist(), TOWERS)
    return [_tower(graph, mean.name, graph.producer(name))
            for name in names], mean.name


def _tower(graph, reader, node):
    for op in 'ExpandDims', 'Softmax', 'ResizeBilinear':
        node = graph.past(node, 'Reshape')
        if node.op != op:
            graph.refuse(reader, f'reads {node.op} {node.name}, and must read '
                         f'a {op}')
        reader = node.name
        if op == 'ExpandDims':
            _check_axis(graph, node, TOWERS, -1)
        if op != 'ResizeBilinear':
            node = graph.input_node(node, 0)
    check_resize(graph, node)
    return Tower(graph.part(node.name), node.name,
                 is_mirror(graph, graph.input_node(node, 0)))


def is_mirror(graph, node):
    """Return whether a node mirrors left and right."""
    if node.op != 'ReverseV2':
        return False
    _check_axis(graph, node, WIDTH)
    return True


def _check_axis(graph, node, *allowed):
    found = graph.array(graph.input_node(node, 1).name).ravel().tolist()
    if found not in [[axis] for axis in allowed]:
        graph.refuse(node.name, f'has axis {found}, and must have '
                     f'{allowed[0]}')


def image_and_scale(graph, node):
    """Return what an image is before it is mirrored and resized; height and
    width that it is resized to, or None; and whether it is mirrored.
    """
    size = None
    if node.op == 'ResizeBilinear' and resized_to(graph, node) is not None:
        check_resize(graph, node)
        size, node = resized_to(graph, node), graph.input_node(node, 0)
    mirrored = is_mirror(graph, node)
    return graph.input_node(node, 0) if mirrored else node, size, mirrored


def scale_of(graph, node, size, crop_size):
    """Return the scale by which a crop became a size, both (height, width).

    The exporter has int((side - 1) * scale + 1); of the scales that do, the
    one with the fewest decimals is taken.
    """
    for decimals in range(DECIMALS + 1):
        unit = 10 ** decimals
        least = max(fractions.Fraction(side - 1, max(crop - 1, 1))
                    for side, crop in zip(size, crop_size, strict=True))
        scale = math.ceil(least * unit) / unit
        if 0 < scale <= MAX_SCALE and list(size) == [
                int((crop - 1) * scale + 1) for crop in crop_size]:
            return scale
    return graph.refuse(node, f'resizes {crop_size} pixels to {size}, which '
                        'is no scale of the image')


def scales_and_flip(graph, mean, found):
    """Return the scales and whether each is also mirrored.

    `found` is a list of (scale, whether it is mirrored), one for each tower.
    """
    flip = any(mirrored for _, mirrored in found)
    step = 2 if flip else 1
    scales = tuple(scale for scale, _ in found[::step])
    if found != [(scale, bool(i)) for scale in scales for i in range(step)]:
        graph.refuse(mean, f'averages over {found}, and must have each scale '
                     'once, or once as it is and once mirrored')
    return scales, flip


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
