"""What the exporter puts around the network: resizes, scales, a range of sizes.

--inference_scales and --add_flipped_images write one tower for each: the padded
image, mirrored and then resized; the network, whose towers read the same
weights; logits, mirrored back and resized to the image; softmax. Labels are the
best class of the mean of all. --min_resize_value resizes the image before it is
padded, to a size computed from its own.
"""
import fractions
import functools
import math
import operator
import typing

import numpy as np
from tensorboard.compat.proto.node_def_pb2 import NodeDef

from convert.frozen_graph import FrozenGraph
from models.constants import MAX_INPUT_SIDE, MAX_SCALE, OFFSET, SCALE
from models.resize_range import ResizeRange
from models.utils.errors import InputError

WIDTH, CHANNELS, TOWERS = 2, 3, 4  # axes
UINT8 = 4  # types.proto, DT_UINT8
DECIMALS = 6  # of a scale
# Ops forbidden before the network; resizes that keep the image's size and one
# to a range of sizes are allowed.
FORBIDDEN = {'Reverse', 'ReverseV2', 'Transpose', 'MatMul', 'Conv2D',
             'ResizeBilinear', 'ResizeBicubic', 'ResizeNearestNeighbor',
             'ResizeArea', 'CropAndResize'}

# Heights and widths for which the nodes before a resize are computed.
SIZES = [
    (1, 1), (1, 9999), (9999, 1), (2, 31), (33, 65), (64, 97), (97, 64),
    (129, 200), (200, 129), (257, 683), (333, 500), (375, 500), (500, 375),
    (480, 640), (511, 512), (513, 513), (513, 514), (600, 800), (683, 257),
    (720, 1280), (1280, 720), (1023, 1025), (1025, 2049), (1080, 1920),
    (1920, 1080), (2047, 1023), (3024, 4032), (4032, 3024), (9999, 9998)]
IMAGE = np.dtype([])  # images are arrays of their shape that take no memory
MAX_VALUES = 4  # in a constant that a size is computed from
TYPES = {1: np.float32, 3: np.int32, 9: np.int64}  # types.proto
OPERATIONS = {
    'Add': operator.add, 'AddV2': operator.add, 'Sub': operator.sub,
    'Mul': operator.mul, 'RealDiv': operator.truediv, 'FloorMod': np.mod,
    'Minimum': np.minimum, 'Maximum': np.maximum, 'Greater': operator.gt,
    'Floor': np.floor, 'Ceil': np.ceil,
    'Min': lambda values, axis: values.min(int(axis.item())),
    'Max': lambda values, axis: values.max(int(axis.item())),
    'Pack': lambda *values: np.fromiter(values, values[0].dtype),
    'Shape': lambda image: np.int32(image.shape),
    'ExpandDims': lambda image, axis: np.expand_dims(image, int(axis.item())),
    'ResizeBilinear': lambda image, size: np.empty(
        (image.shape[0], *np.maximum(size, 1), image.shape[3]), IMAGE),
    'Identity': lambda value: value,
    # tf.cond: one output of a Switch has the value, the other has none.
    'Switch': lambda value, truth: (None, value) if truth else (value, None),
    'Merge': lambda *values: _the_one(
        value for value in values if value is not None),
}
# Values that do not go together, a missing input, or a node that reads itself.
NOT_COMPUTED = (TypeError, ValueError, LookupError, AttributeError,
                OverflowError, RecursionError)


class Tower(typing.NamedTuple):
    """One of the networks in a graph."""

    graph: FrozenGraph  # only what its logits depend on
    resize: NodeDef  # of its logits to the image's size
    mirrored: bool  # whether it sees the mirrored image


class Input(typing.NamedTuple):
    """What a tower's network sees of an image."""

    node: str  # that the image is fed to
    resize_range: ResizeRange | None  # that the image is resized to
    size: list | None  # that the padded image is resized to; None: its own


def find_towers(graph):
    """Return the `Tower`s of a graph, and the node of the scores: labels are
    their best class.
    """
    scores = {}
    for node in graph.nodes.values():
        if node.op == 'ArgMax':
            source = graph.input_node(node, 0)
            if source.op in {'Mean', 'ResizeBilinear'}:
                check_axis(graph, node, CHANNELS)
                scores[source.name] = source
    if len(scores) != 1:
        graph.refuse('ArgMax', f'takes the best class of {len(scores)} '
                     'ResizeBilinear or Mean nodes, and must of one')
    scores, = scores.values()
    if scores.op == 'ResizeBilinear':
        return [_tower(graph, scores)], scores
    check_axis(graph, scores, TOWERS, -1)
    joined = graph.input_node(scores, 0)
    if joined.op != 'ConcatV2':
        return [_softmax_tower(graph, scores.name, joined)], scores
    check_axis(graph, joined, TOWERS)
    return [_softmax_tower(graph, joined.name, graph.producer(tensor))
            for tensor in joined.input[:-1]], scores


def _softmax_tower(graph, reader, node):
    for op in 'ExpandDims', 'Softmax', 'ResizeBilinear':
        node = graph.past(node, 'Reshape')
        if node.op != op:
            graph.refuse(reader, f'reads {node.op} {node.name}, and must read '
                         f'a {op}')
        if op == 'ExpandDims':
            check_axis(graph, node, TOWERS, -1)
        reader, last, node = node.name, node, graph.input_node(node, 0)
    return _tower(graph, last)


def _tower(graph, resize):
    check_resize(graph, resize)
    return Tower(graph.part(resize.name), resize,
                 _is_mirror(graph, graph.input_node(resize, 0)))


def _is_mirror(graph, node):
    """Return whether a node mirrors left and right."""
    if node.op != 'ReverseV2':
        return False
    check_axis(graph, node, WIDTH)
    return True


def check_axis(graph, node, *allowed):
    """Refuse a node whose last input is none of the allowed axes."""
    found = graph.array(graph.input_node(
        node, len(node.input) - 1).name).ravel().tolist()
    if found not in [[axis] for axis in allowed]:
        graph.refuse(node.name, f'has axis {found}, and must have '
                     f'{allowed[0]}')


def check_resize(graph, node):
    """Refuse a ResizeBilinear that does not align corners."""
    graph.compare(node.name, 'align_corners',
                  node.attr['align_corners'].b, True)
    graph.compare(node.name, 'half_pixel_centers',
                  node.attr['half_pixel_centers'].b, False)


def read_input(tower, reader, node):
    """Return the `Input` of a tower: it must be pixel * SCALE - OFFSET.

    `reader` is the name of the network's first node, `node` what it reads.
    """
    graph, size = tower.graph, None
    product, offset = _with_constant(graph, reader, node, 'Sub')
    image, scale = _with_constant(graph, node.name, product, 'Mul')
    graph.compare(node.name, 'offset', offset, OFFSET)
    if not np.isclose(scale, SCALE, rtol=1e-5, atol=0):
        graph.compare(product.name, 'scale', scale, SCALE)
    if image.op == 'ResizeBilinear':
        size = resized_to(graph, image)
    if size is not None:
        check_resize(graph, image)
        image = graph.input_node(image, 0)
    mirrored = _is_mirror(graph, image)
    graph.compare(image.name, 'mirroring', mirrored, tower.mirrored)
    if mirrored:
        image = graph.input_node(image, 0)
    fed = [each for each in graph.ancestors(image.name).values()
           if each.op == 'Placeholder']
    if len(fed) != 1 or fed[0].attr['dtype'].type != UINT8:
        graph.refuse(image.name, 'must come from one Placeholder of type '
                     f'uint8, and comes from {len(fed)}')
    return Input(fed[0].name, _read_resize_range(graph, image), size)


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


def check_labels_are_resized(graph, scores):
    """Refuse a graph whose labels, the best class of the node `scores`, do not
    go back to the image's size as `resize_labels` does it.
    """
    for node in graph.nodes.values():
        if node.op == 'ResizeNearestNeighbor' and (
                scores in graph.ancestors(node.name)):
            return check_resize(graph, node)
    return graph.refuse(scores, 'gives labels at another size than the '
                        "image's")


def resized_to(graph, resize):
    """Return [height, width] after a resize; None if an image's depends on it.
    """
    size = graph.input_node(resize, 1)
    if any(node.op == 'Placeholder'
           for node in graph.ancestors(size.name).values()):
        return None
    (found,), = _values(graph, resize, [size.name], SIZES[:1])
    if found.shape != (2,) or found.dtype.kind != 'i':
        graph.refuse(resize.name, f'has size {found.tolist()}, and must have '
                     'height and width')
    return found.tolist()


def _read_resize_range(graph, image):
    """Return the `ResizeRange` that an image is resized to on its way to the
    node `image`, or None.
    """
    resizes = {node.name: node for node in graph.way_back(image)
               if node.op == 'ResizeBilinear'}
    for node in graph.ancestors(image.name).values():
        if node.op in FORBIDDEN and node.name not in resizes:
            graph.refuse(node.name, f'is a {node.op} of the image before the '
                         'network: only padding and one resize can be '
                         'converted')
    changing = []
    for node in resizes.values():
        check_resize(graph, node)
        before, after = _sizes(graph, node, SIZES)
        if before != after:
            changing.append(node)
    if len(changing) > 1:
        graph.refuse(changing[0].name, 'resizes the image a second time')
    return _range_of(graph, changing[0]) if changing else None


def _range_of(graph, resize):
    """Return the `ResizeRange` that a ResizeBilinear resizes to: what its
    nodes' names and constants say, if they give the same sizes.
    """
    found = _formula(graph, resize)
    sizes = [*SIZES, *_sizes_that_tell(*found)]
    _, after = _sizes(graph, resize, sizes)
    if not found.shortest or after != [
            found.size(*size).tolist() for size in sizes]:
        graph.refuse(
            resize.name, 'resizes the image to a size that is not the official '
            "exporter's: export without --min_resize_value, and use demo.py "
            '--max-size')
    return found


def _formula(graph, resize):
    """Read off a `ResizeRange`: the exporter divides `shortest` by the lesser
    side of the image, `longest` by the greater one.
    """
    nodes = graph.ancestors(graph.input_node(resize, 1).name).values()
    numbers = {}
    for node in nodes:
        if node.op == 'RealDiv':
            numbers[graph.input_node(node, 1).op] = graph.input_node(node, 0)
        elif node.op == 'FloorMod':
            numbers[node.op] = graph.input_node(node, 1)
    rounds_up = any(node.op == 'Ceil' for node in nodes)
    return ResizeRange(*(
        _whole_number(graph, numbers[op]) if op in numbers else 0
        for op in ('Minimum', 'Maximum', 'FloorMod')), int(rounds_up))


def _sizes_that_tell(shortest, longest, factor, _):
    """Return sizes that become another if a limit is a little other."""
    step = factor or 1
    limit = longest - (longest - 1) % step
    above = shortest + -(shortest - 1) % step
    resized = [(shortest, above), (shortest, above + 1),
               (step + 1, limit), (step + 2, limit)]
    return [(times * height, times * width) for height, width in resized
            for times in (3, 7) if height * width > 0]


def _whole_number(graph, node):
    """Return the constant that a limit or factor is, or begins with: limits are
    lowered to a multiple of the factor plus 1. 0: there is none.
    """
    constant = graph.past(node, 'Cast', 'Add', 'AddV2', 'Sub')
    array = graph.array(constant.name)
    number = array.item() if array.size == 1 and array.dtype.kind in 'if' else 0
    return int(number) if 0 < number <= MAX_INPUT_SIDE and (
        number == int(number)) else 0


# Computing sizes

def _sizes(graph, resize, sizes):
    """Return what sizes images have before a ResizeBilinear, and after it."""
    found = _values(graph, resize, [resize.input[0], resize.name], sizes)
    return [[list(image.shape[1:3]) for image in images]
            for images in found]


def _values(graph, resize, tensors, sizes):
    """Compute tensors for images of some sizes; refuse `resize` if impossible.

    Return a list for each tensor.
    """
    try:
        with np.errstate(all='ignore'):  # of other forms than the exporter's
            functions = [_evaluator(graph, *size) for size in sizes]
            return [[np.asarray(value(tensor)) for value in functions]
                    for tensor in tensors]
    except InputError:
        raise
    except NOT_COMPUTED as error:
        return graph.refuse(resize.name, 'resizes to a size that cannot be '
                            f'computed ({error})')


def _evaluator(graph, height, width):
    """Return a function from a tensor's name to its value for an image."""
    @functools.cache
    def value(tensor):
        name, _, output = tensor.partition(':')
        node = graph.nodes[name]
        if node.op == 'Placeholder':
            return np.empty((1, height, width, 3), IMAGE)
        if node.op == 'Const':
            return _few_numbers(graph.array(name))
        inputs = [value(each) for each in node.input if each[:1] != '^']
        if node.op in WITH_ATTRIBUTES:
            return WITH_ATTRIBUTES[node.op](node.attr, *inputs)
        if node.op not in OPERATIONS:
            graph.refuse(name, f'is a {node.op}, which computes no size of an '
                         "image in the exporter's graphs")
        result = OPERATIONS[node.op](*inputs)
        return result[int(output or 0)] if node.op == 'Switch' else result

    return value


def _the_one(values):
    value, = values
    return value


def _few_numbers(array):
    if array.size > MAX_VALUES:
        raise ValueError(f'{array.size} numbers')
    return array


def _cast(attr, value):
    is_image = value.dtype == IMAGE
    return value if is_image else value.astype(TYPES[attr['DstT'].type])


def _squeeze(attr, image):
    return image.squeeze(tuple(attr['squeeze_dims'].list.i) or None)


def _strided_slice(attr, values, *edges):
    """x[i], or x[begin:end:step]."""
    begin, end, step = (int(each.item()) for each in edges)
    if attr['shrink_axis_mask'].i == 1:
        return values[begin]
    if attr['ellipsis_mask'].i or attr['new_axis_mask'].i:
        raise ValueError('a slice with new axes')
    return values[None if attr['begin_mask'].i else begin:
                  None if attr['end_mask'].i else end:step]


WITH_ATTRIBUTES = {
    'Cast': _cast, 'Squeeze': _squeeze, 'StridedSlice': _strided_slice}
