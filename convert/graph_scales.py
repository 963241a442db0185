"""A graph that averages over several scales and the mirrored image.

The exporter's --inference_scales and --add_flipped_images write one tower for
each: the image, mirrored and then resized; the network, whose towers read the
same weights; logits, mirrored back and resized to the image; softmax. Labels
are the best class of the mean of all.
"""
import fractions
import math
import typing

from convert.frozen_graph import FrozenGraph
from convert.graph_resizes import check_resize, resized_to
from models.constants import MAX_SCALE

WIDTH, TOWERS = 2, 4  # axes
DECIMALS = 6  # of a scale


class Tower(typing.NamedTuple):
    """One of the networks in a graph."""

    graph: FrozenGraph  # seen from its logits
    sized_logits: str | None  # its logits at the size of the image, mirrored
    mirrored: bool  # back; None and False where there is but one tower


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
