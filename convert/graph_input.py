"""What a frozen graph does to the image before the network."""
import numpy as np

from convert.graph_resizes import resizes_by_one
from convert.graph_scales import image_and_scale
from models.constants import OFFSET, SCALE

UINT8 = 4  # types.proto, DT_UINT8
# Ops forbidden between image and network; identity resizes are allowed.
FORBIDDEN = {'Reverse', 'ReverseV2', 'Transpose', 'MatMul', 'Conv2D',
             'ResizeBilinear', 'ResizeBicubic', 'ResizeNearestNeighbor',
             'ResizeArea', 'CropAndResize'}


def check_image(graph, reader, node, scaled=False):
    """Check that the network reads pixel * SCALE - OFFSET of a padded image.

    `reader` is the name of the network's first node, `node` what it reads;
    the image may be `scaled` and mirrored before. Return the name of the node
    that the image is fed to.
    """
    source, offset = _with_constant(graph, reader, node, 'Sub')
    image, scale = _with_constant(graph, reader, source, 'Mul')
    if scaled:
        image, _, _ = image_and_scale(graph, image)
    name = _image(graph, image)
    graph.compare(node.name, 'offset', offset, OFFSET)
    if not np.isclose(scale, SCALE, rtol=1e-5, atol=0):
        graph.compare(source.name, 'scale', scale, SCALE)
    return name


def before_normalization(graph, reader, node):
    """Return the image of which the network reads pixel * SCALE - OFFSET."""
    source, _ = _with_constant(graph, reader, node, 'Sub')
    return _with_constant(graph, reader, source, 'Mul')[0]


def _image(graph, node):
    """Return what feeds a node: one image, converted and padded at most."""
    before = graph.ancestors(node.name)
    for each in before:
        if each.op in FORBIDDEN and not resizes_by_one(graph, each):
            advice = ('export without --min_resize_value, and use demo.py '
                      '--max-size' if each.op.startswith('Resize') else
                      'only padding can be converted')
            graph.refuse(each.name, f'is a {each.op} of the image before the '
                         f'network: {advice}')
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
