"""How the official exporter writes layers: convolution and batch norm.

A dilation is SpaceToBatchND -> convolution -> BatchToSpaceND, where the block
shape is the rate; a strided convolution has its padding in a Pad before it.
"""
import typing

BATCH_NORMS = ('FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3')
CONVOLUTIONS = ('Conv2D', 'DepthwiseConv2dNative')


class Convolution(typing.NamedTuple):
    """How a graph applies a kernel; pairs are vertical, horizontal."""

    node: str
    input: str  # node before the convolution, padding and SpaceToBatchND
    output: str  # last node: the convolution, or BatchToSpaceND
    stride: tuple
    dilate: tuple
    pad: tuple | None  # the same on both sides; None: computed by the graph


def batch_norm(graph, gamma):
    """Return the node of the batch norm that reads the weight `gamma`."""
    return graph.reader_of_weight(gamma, *BATCH_NORMS)


def convolution(graph, kernel):
    """Return the `Convolution` that applies the weight `kernel`.

    Raise InputError where it is applied in a way that the link does not have.
    """
    node = graph.reader_of_weight(kernel, *CONVOLUTIONS)
    stride = graph.sides(node, 'strides')
    dilate = graph.sides(node, 'dilations') if 'dilations' in node.attr else (
        1, 1)
    before, output, pad = graph.input_node(node, 0), node.name, (0, 0)
    padding = _padding(graph, node, before)
    if before.op == 'SpaceToBatchND':
        last = graph.folded.get(node.name.rpartition('/')[0])
        inside = last is not None and any(
            each.name == last for each in graph.readers(node.name))
        after = graph.only_reader(last if inside else node.name,
                                  'BatchToSpaceND')
        block, other = (graph.integers(graph.input_node(each, 1), (2,))
                        for each in (before, after))
        if block != other:
            graph.refuse(before.name, f'has the block {block}, and '
                         f'{after.name} {other}')
        pad = _space_padding(graph, before, after)
        dilate = tuple(a * b for a, b in zip(block, dilate, strict=True))
        before, output = graph.input_node(before, 0), after.name
    elif before.op == 'Pad':
        pad = _explicit_padding(graph, before)
        before = graph.input_node(before, 0)
    if padding == b'SAME':
        pad = _same_padding(graph, node, graph.weights[kernel], stride, dilate)
    return Convolution(node.name, before.name, output, stride, dilate, pad)


def _padding(graph, node, before):
    padding = node.attr['padding'].s
    allowed = {b'VALID'} if before.op in {'SpaceToBatchND', 'Pad'} else {
        b'VALID', b'SAME'}
    if padding not in allowed:
        graph.refuse(node.name, f'has padding {padding} after {before.op}, '
                     f'and must have {" or ".join(map(str, sorted(allowed)))}')
    return padding


def _same_padding(graph, node, kernel, stride, dilate):
    if stride != (1, 1) and kernel[:2] != (1, 1):
        graph.refuse(node.name, f'pads by SAME at stride {stride}, which '
                     'depends on the size')
    return tuple(rate * (side - 1) // 2
                 for rate, side in zip(dilate, kernel[:2], strict=True))


def _explicit_padding(graph, node):
    pad = graph.integers(graph.input_node(node, 1), (4, 2))
    if any(a != b for a, b in pad) or pad[0] != [0, 0] or pad[3] != [0, 0]:
        graph.refuse(node.name, f'pads by {pad}, and must pad alike on '
                     'opposite sides')
    return pad[1][0], pad[2][0]


def _space_padding(graph, before, after):
    sources = [graph.input_node(node, 2) for node in (before, after)]
    if any(node.op != 'Const' for node in sources):
        return None
    paddings, crops = (graph.integers(node, (2, 2)) for node in sources)
    if crops[0][0] or crops[1][0]:
        graph.refuse(after.name, 'crops at the top or left')
    for (start, end), (_, crop) in zip(paddings, crops, strict=True):
        if start != end - crop:
            graph.refuse(before.name, f'pads by {paddings}, and must pad '
                         'alike on opposite sides')
    return paddings[0][0], paddings[1][0]
