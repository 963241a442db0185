"""What a frozen graph does to the image before the network."""
import numpy as np

from convert.graph_range import read_resize_range
from convert.graph_resizes import resizes_by_one
from convert.graph_scales import image_and_scale
from models.constants import OFFSET, SCALE

UINT8 = 4  # types.proto, DT_UINT8
# Ops forbidden between image and network; identity resizes and one to a range
# of sizes are allowed.
FORBIDDEN = {'Reverse', 'ReverseV2', 'Transpose', 'MatMul', 'Conv2D',
             'ResizeBilinear', 'ResizeBicubic', 'ResizeNearestNeighbor',
             'ResizeArea', 'CropAndResize'}


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
