"""Resizes in a frozen graph: what they resize to."""


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
