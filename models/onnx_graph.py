"""Write a DeepLabV3+ link as an ONNX graph.

Dilations are attributes of the convolutions, so that the graph runs at any
input size; or at one, whose sizes are then constants.
"""
import numpy as np
import onnx
from onnx import TensorProto, helper

from .network_graph import NetworkGraph

INPUT = 'image'
OPSET = 15  # the first whose Shape takes a part of the shape
IR_VERSION = 8  # the one that goes with this opset


def onnx_model(link, metadata: dict[str, str] | None = None,
               probabilities: bool = False, end_to_end: bool = False,
               size: tuple[int, int] | None = None) -> bytes:
    """Build the ONNX model of a link with its present weights.

    Args:
        link (DeepLabV3plusXception65): the network; its weights are copied.
        metadata (dict): str -> str, for the model's metadata.
        probabilities (bool): output softmax at image size instead of logits.
        end_to_end (bool): do what `link.predict` does, with the official
            frozen graph's names: from 'ImageTensor' (1, H, W, 3), uint8, RGB,
            to 'SemanticPredictions' (1, H, W), int64, the class of each pixel.
        size ((int, int)): the only height and width, for one image; by
            default H, W and the batch are free.

    Returns:
        bytes: an onnx.ModelProto, validated, from 'image' (B, 3, H, W),
        float32, as `link.prepare` makes it, to 'logits' (B, n_class,
        ceil(H/4), ceil(W/4)), float32; or to 'probabilities' (B, n_class,
        H, W).

    Raises:
        BackendError: a part of the link was replaced by an unknown one.
    """
    model = onnx.ModelProto(
        ir_version=IR_VERSION, producer_name='deeplab_v3_plus',
        opset_import=[helper.make_opsetid('', OPSET)])
    helper.set_model_props(model, metadata or {})
    graph = _Graph(model.graph, link)
    if end_to_end:
        from .onnx_labels import add_labels
        values = add_labels(graph, link)
    else:
        values = _add_scores(graph, link, probabilities, size)
    model.graph.name = type(link).__name__
    model.graph.input.append(values[0])
    model.graph.output.append(values[1])
    serialized = model.SerializeToString()
    onnx.checker.check_model(serialized)
    return serialized


def _add_scores(graph, link, probabilities, size):
    """Add logits or probabilities; return the types of input and output."""
    batch, H, W = ('batch', 'H', 'W') if size is None else (1, *size)
    if size is not None:
        graph.shapes[INPUT] = 1, 3, *size
    logits = graph.network(link, INPUT)
    if probabilities:
        sides = H, W
        output = graph.node('Softmax', graph.resize(logits, INPUT), axis=1,
                            name='probabilities')
    else:
        sides = graph.shapes.get(logits, (0, 0, 'ceil(H/4)', 'ceil(W/4)'))[2:]
        output = graph.node('Identity', logits, name='logits')
    return (_float_value(INPUT, batch, 3, H, W),
            _float_value(output, batch, link.n_class, *sides))


def _float_value(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class _Graph(NetworkGraph):
    """Adds nodes and constants to an onnx.GraphProto.

    A tensor is given by its name; a node has the name of its output.

    Attributes:
        shapes (dict): tensor -> (B, C, H, W), where the input's is fixed.
    """

    def __init__(self, proto, root):
        super().__init__(root)
        self.proto, self.shapes = proto, {}
        self._names, self._constants = set(), set()

    def node(self, op, *inputs, name=None, **attributes):
        """Add a node; return its output, of the shape of its first input."""
        if name is None or name in self._names:  # a network's second use
            name = f'{name or op}_{len(self.proto.node)}'
        self._names.add(name)
        self.proto.node.append(
            helper.make_node(op, inputs, [name], name, **attributes))
        if inputs[0] in self.shapes:
            self.shapes[name] = self.shapes[inputs[0]]
        return name

    def constant(self, name, array):
        if name in self._constants:
            return name
        self._constants.add(name)
        self.proto.initializer.add(
            name=name, dims=array.shape, raw_data=array.tobytes(),
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        return name

    def conv(self, x, path, W, b, link):
        h = self.node(
            'Conv', x, self.constant(f'{path}/W', W),
            self.constant(f'{path}/b', b), name=path, group=link.groups,
            kernel_shape=W.shape[2:], strides=link.stride,
            pads=link.pad * 2, dilations=link.dilate)
        if x in self.shapes:
            batch, _, *sides = self.shapes[x]
            self.shapes[h] = batch, len(W), *(
                (side + 2 * pad - rate * (kernel - 1) - 1) // stride + 1
                for side, pad, rate, kernel, stride in zip(
                    sides, link.pad, link.dilate, W.shape[2:], link.stride,
                    strict=True))
        return h

    def relu(self, x):
        return self.node('Relu', x)

    def total(self, x, y):
        return self.node('Add', x, y)

    def mean(self, x):
        h = self.node('GlobalAveragePool', x)
        if x in self.shapes:
            self.shapes[h] = *self.shapes[x][:2], 1, 1
        return h

    def expand(self, x, like):
        shape = (self.integers(1, 1, *self.shapes[like][2:])
                 if like in self.shapes else self.node(
                     'Concat', self.integers(1, 1), self.sides(like), axis=0))
        h = self.node('Expand', x, shape)
        if x in self.shapes:
            self.shapes[h] = *self.shapes[x][:2], *self.shapes[like][2:]
        return h

    def concat(self, *inputs):
        """Join channels."""
        h = self.node('Concat', *inputs, axis=1)
        if h in self.shapes:
            shapes = [self.shapes[each] for each in inputs]
            self.shapes[h] = (shapes[0][0], sum(shape[1] for shape in shapes),
                              *shapes[0][2:])
        return h

    def sides(self, x):
        """Return the height and width of x, as a tensor."""
        return self.node('Shape', x, start=2, end=4)

    def resize(self, x, like):
        """Resize x to the height and width of another tensor."""
        if x in self.shapes:
            size = *self.shapes[x][:2], *self.shapes[like][2:]
            sides = self.integers(*size)
        else:
            sides = self.node('Concat', self.node('Shape', x, end=2),
                              self.sides(like), axis=0)
        h = self.resize_to(x, sides)
        if x in self.shapes:
            self.shapes[h] = size
        return h

    def resize_to(self, x, shape):
        """Resize x to a whole shape, given as a tensor."""
        return self.node('Resize', x, '', '', shape, mode='linear',
                         coordinate_transformation_mode='align_corners')

    def integers(self, *values):
        return self.constant(f'int64_{"_".join(map(str, values))}',
                             np.array(values, np.int64))
