"""What the exporter puts around the network: resizes, scales, a range of sizes.

--inference_scales and --add_flipped_images write one tower for each: the padded
image, mirrored and then resized; the network, whose towers read the same
weights; logits, mirrored back and resized to the image; softmax. Labels are the
best class of the mean of all. --min_resize_value resizes the image before it is
padded, to a size computed from its own.
"""
import contextlib
import fractions
import functools
import math
import operator

import numpy as np

from models.constants import MAX_SCALE, OFFSET, SCALE
from models.resizing import ResizeRange
from models.utils.errors import InputError

WIDTH, CHANNELS, TOWERS = 2, 3, 4  # axes
UINT8 = 4  # types.proto, DT_UINT8
DECIMALS = 6  # of a scale
# Ops forbidden before the network; resizes that keep the image's size and one
# to a range of sizes are allowed.
FORBIDDEN = {'Reverse', 'ReverseV2', 'Transpose', 'MatMul', 'Conv2D',
             'ResizeBilinear', 'ResizeBicubic', 'ResizeNearestNeighbor',
             'ResizeArea', 'CropAndResize'}

# Image sizes for which the nodes before a resize are computed.
SIDES = (1, 2, 33, 64, 97, 129, 200, 257, 333, 375, 500, 513, 600, 720, 1023,
         1080, 1920, 2049, 3024, 4032, 9999)
SIZES = [*zip(SIDES, SIDES[::-1], strict=True),
         *zip(SIDES, SIDES[2:] + SIDES[:2], strict=True)]
IMAGE = np.dtype([])  # images are arrays of their shape that take no memory
MAX_NUMBERS = 4  # in a constant that a size is computed from
TYPES = {1: np.float32, 3: np.int32, 9: np.int64}  # types.proto
# Values that do not go together, a missing input, or a node that reads itself.
NOT_COMPUTED = (TypeError, ValueError, LookupError, AttributeError,
                OverflowError, RecursionError)


def find_resizes(graph):
    """Return the nodes that resize logits to the image's size, one for each
    tower, and the node of the scores: labels are their best class.
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
        return [scores], scores
    check_axis(graph, scores, TOWERS, -1)
    towers = [graph.input_node(scores, 0)]
    if towers[0].op == 'ConcatV2':
        towers = joined(graph, towers[0], TOWERS)
    return [_resize_before_softmax(graph, node) for node in towers], scores


def joined(graph, node, axis):
    """Return the nodes of what a ConcatV2 joins along an axis."""
    graph.check_op(node, 'ConcatV2')
    check_axis(graph, node, axis)
    return [graph.input_node(node, i) for i in range(len(node.input) - 1)]


def _resize_before_softmax(graph, node):
    for op in 'ExpandDims', 'Softmax', 'ResizeBilinear':
        last = graph.past(node, 'Reshape')
        node = graph.before(last, op)
        if op == 'ExpandDims':
            check_axis(graph, last, TOWERS, -1)
    return last


def is_mirror(graph, node):
    """Return whether a node mirrors left and right."""
    if node.op != 'ReverseV2':
        return False
    check_axis(graph, node, WIDTH)
    return True


def check_axis(graph, node, *allowed):
    """Refuse a node whose last input is none of the allowed axes."""
    axis = graph.input_node(node, len(node.input) - 1)
    found = graph.array(axis).ravel().tolist()
    if found not in [[axis] for axis in allowed]:
        graph.compare(node.name, 'axis', found, allowed[:1])


def check_resize(graph, node):
    """Refuse a ResizeBilinear that does not align corners."""
    for name, wanted in ('align_corners', True), ('half_pixel_centers', False):
        graph.compare(node.name, name, node.attr[name].b, wanted)


def before_resize(graph, node):
    """Return what a ResizeBilinear resizes; another node itself."""
    if node.op != 'ResizeBilinear':
        return node
    check_resize(graph, node)
    return graph.input_node(node, 0)


def read_input(graph, node, mirrored):
    """Check that a node makes pixel * SCALE - OFFSET of an image, mirrored or
    not.

    Return the name of the node that the image is fed to; the `ResizeRange` that
    it is resized to, or None; [height, width] that the padded image is resized
    to, or None.
    """
    node = _before(graph, node, 'Sub', OFFSET)
    image, size = _before(graph, node, 'Mul', SCALE), None
    if image.op == 'ResizeBilinear':
        size = resized_to(graph, image)
    if size is not None:
        image = before_resize(graph, image)
    graph.compare(image.name, 'mirroring', is_mirror(graph, image), mirrored)
    if mirrored:
        image = graph.input_node(image, 0)
    fed = [each for each in graph.ancestors(image.name).values()
           if each.op == 'Placeholder']
    if len(fed) != 1 or fed[0].attr['dtype'].type != UINT8:
        graph.refuse(image.name, 'must come from one Placeholder of type '
                     f'uint8, and comes from {len(fed)}')
    return fed[0].name, _read_resize_range(graph, image), size


def _before(graph, node, op, wanted):
    """Return what a node multiplies, or subtracts from, by a wanted number."""
    graph.check_op(node, op)
    a, b = (graph.input_node(node, i) for i in (0, 1))
    if a.op == 'Const' and op == 'Mul':
        a, b = b, a
    number = graph.array(b)
    if number.size != 1 or number.dtype.kind != 'f' or not np.isclose(
            number.item(), wanted, rtol=1e-5, atol=0):
        graph.refuse(node.name, f'must be a {op} with {wanted:.6g}')
    return a


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
    """Return [height, width] after a resize; None if that depends on the image.
    """
    size = graph.input_node(resize, 1)
    if any(node.op == 'Placeholder'
           for node in graph.ancestors(size.name).values()):
        return None
    with _computing(graph, resize):
        found = np.asarray(_evaluator(graph, *SIZES[0])(size.name))
    if found.shape != (2,) or found.dtype.kind != 'i':
        graph.refuse(resize.name, f'has size {found.tolist()}, and must have '
                     'height and width')
    return found.tolist()


def _read_resize_range(graph, image):
    """Return the `ResizeRange` of an image that is resized before, or None."""
    resizes = {node.name: node for node in graph.way_back(image)
               if node.op == 'ResizeBilinear'}
    for node in graph.ancestors(image.name).values():
        if node.op in FORBIDDEN and node.name not in resizes:
            graph.refuse(node.name, f'is a {node.op} of the image before the '
                         'network: only padding and one resize can be '
                         'converted')
    found = None
    for node in resizes.values():
        check_resize(graph, node)
        with _computing(graph, node):
            if operator.ne(*_sizes_around(graph, node, SIZES)):
                if found is not None:
                    graph.refuse(node.name, 'resizes the image once more')
                found = _range_of(graph, node)
    return found


def _range_of(graph, resize):
    """Read off the `ResizeRange` of a resize, and prove it.

    The exporter divides `shortest` by the shorter side of an image, and
    `longest`, lowered to a multiple of the factor plus 1, by the longer side.
    In early 2018 it lowered even such a multiple plus 1, by the factor: then
    that limit is the range's `longest`, which is not lowered again.
    The proof is that the graph's nodes give the sizes of the range.
    """
    nodes = graph.ancestors(graph.input_node(resize, 1).name).values()
    numbers, limit = {}, 0
    for node in nodes:
        if node.op in {'RealDiv', 'FloorMod'}:
            a, b = (graph.input_node(node, i) for i in (0, 1))
            op, number = (b.op, a) if node.op == 'RealDiv' else (node.op, b)
            if op == 'Maximum':
                limit = int(_evaluator(graph, *SIZES[0])(a.name))
            number = graph.past(number, 'Cast', 'Add', 'AddV2', 'Sub')
            numbers[op] = int(graph.array(number).item())
    shortest, longest, factor = (
        numbers.get(op, 0) for op in ('Minimum', 'Maximum', 'FloorMod'))
    if limit == longest - factor:
        longest = limit
    found = ResizeRange(shortest, longest, factor,
                        int(any(node.op == 'Ceil' for node in nodes)))
    sizes = [*SIZES, *_sizes_that_tell(*found)]
    _, after = _sizes_around(graph, resize, sizes)
    if shortest < 1 or longest < 0 or after != [
            found.size(*size).tolist() for size in sizes]:
        graph.refuse(
            resize.name, 'resizes the image to a size that is not the official '
            "exporter's: export without --min_resize_value, and use demo.py "
            '--max-size')
    return found


def _sizes_that_tell(shortest, longest, factor, _):
    """Return sizes at which a slightly different limit or factor shows."""
    step = factor or 1
    limit = longest - (longest - 1) % step
    above = shortest + -(shortest - 1) % step
    resized = [(shortest, above), (shortest, above + 1),
               (step + 1, limit), (step + 2, limit)]
    return [(times * height, times * width) for height, width in resized
            for times in (3, 7) if min(height, width) > 0]


def _sizes_around(graph, resize, sizes):
    """Return what sizes images have before a resize, and after it."""
    images = [_evaluator(graph, *size) for size in sizes]
    return [[list(value(tensor).shape[1:3]) for value in images]
            for tensor in (resize.input[0], resize.name)]


@contextlib.contextmanager
def _computing(graph, resize):
    try:
        with np.errstate(all='ignore'):  # of other forms than the exporter's
            yield
    except InputError:
        raise
    except NOT_COMPUTED as error:
        graph.refuse(resize.name, 'resizes to a size that cannot be computed '
                     f'({error})')


def _evaluator(graph, height, width):
    """Return a function that computes a tensor for an image of a size."""
    @functools.cache
    def value(tensor):
        name, _, output = tensor.partition(':')
        node = graph.nodes[name]
        if node.op == 'Placeholder':
            return np.empty((1, height, width, 3), IMAGE)
        if node.op == 'Const':
            array = graph.array(node)
            if array.size > MAX_NUMBERS:
                raise ValueError(f'{name} has {array.size} numbers')
            return array
        inputs = [value(each) for each in node.input if each[:1] != '^']
        if node.op in WITH_ATTRIBUTES:
            return WITH_ATTRIBUTES[node.op](node.attr, *inputs)
        if node.op not in OPERATIONS:
            graph.refuse(name, f'is a {node.op}, which computes no size of an '
                         "image in the exporter's graphs")
        result = OPERATIONS[node.op](*inputs)
        return result[int(output or 0)] if node.op == 'Switch' else result

    return value


def _merge(*values):
    value, = (each for each in values if each is not None)
    return value


def _strided_slice(attr, values, *edges):
    """x[i], or x[begin:end:step]."""
    begin, end, step = (int(each.item()) for each in edges)
    if attr['ellipsis_mask'].i or attr['new_axis_mask'].i:
        raise ValueError('a slice with other axes')
    if attr['shrink_axis_mask'].i:
        return values[begin]
    return values[None if attr['begin_mask'].i else begin:
                  None if attr['end_mask'].i else end:step]


# Ops as functions of their inputs, and of attributes and inputs.
OPERATIONS = {
    'Add': operator.add, 'AddV2': operator.add, 'Sub': operator.sub,
    'Mul': operator.mul, 'RealDiv': operator.truediv, 'FloorMod': np.mod,
    'Minimum': np.minimum, 'Maximum': np.maximum, 'Greater': operator.gt,
    'Floor': np.floor, 'Ceil': np.ceil,
    'Max': lambda values, axis: values.max(int(axis.item())),
    'Pack': lambda *values: np.fromiter(values, values[0].dtype),
    'Shape': lambda image: np.int32(image.shape),
    'ExpandDims': lambda image, axis: np.expand_dims(image, int(axis.item())),
    'ResizeBilinear': lambda image, size: np.empty(
        (image.shape[0], *np.maximum(size, 1), image.shape[3]), IMAGE),
    # tf.cond: one output of a Switch has the value, the other has none.
    'Switch': lambda value, truth: (None, value) if truth else (value, None),
    'Merge': _merge,
}
WITH_ATTRIBUTES = {
    'Cast': lambda attr, value: value if value.dtype == IMAGE else (
        value.astype(TYPES[attr['DstT'].type])),
    'Squeeze': lambda attr, image: image.squeeze(
        tuple(attr['squeeze_dims'].list.i) or None),
    'StridedSlice': _strided_slice,
}
