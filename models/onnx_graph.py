"""Turn a DeepLabV3+ link into an ONNX graph.

Batch norm is folded into the convolution before it: with
s = gamma / sqrt(avg_var + eps), the kernel becomes s W and the bias
beta - s avg_mean. Dilations are attributes of the convolutions, and resizes
take sizes, not scales (which would round), so that the graph runs at any
input size; or at one, whose sizes are then constants.
"""
import chainer.functions as F
import numpy as np
import onnx
from chainer.backends.cuda import to_cpu
from chainer.links import BatchNormalization, Convolution2D
from chainercv.links import Conv2DBNActiv, SeparableConv2DBNActiv
from onnx import TensorProto, helper

from .constants import MIDDLE_BLOCKS
from .head import Decoder, SeparableASPP
from .utils.errors import BackendError
from .xception import ExitBlock, Xception65, XceptionBlock

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


class _Graph:
    """Adds nodes and constants to an onnx.GraphProto.

    A tensor is given by its name; a node has the name of its output.

    Attributes:
        shapes (dict): tensor -> (B, C, H, W), where the input's is fixed.
    """

    def __init__(self, proto, root):
        self.proto, self.shapes = proto, {}
        self._names, self._constants = set(), set()
        self._paths = {id(link): path.strip('/')
                       for path, link in root.namedlinks()}

    def add(self, link, *xs):
        """Add the nodes of a link; return what its `forward` returns."""
        known = _FORWARD.get(type(link).forward)
        if known is None:
            raise self._unknown(link)
        return known(self, link, *xs)

    def _unknown(self, link):
        return BackendError(
            f'{self._paths[id(link)] or "the link"}, a {type(link).__name__}, '
            'has no ONNX form')

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

    def convolution(self, x, conv, bn=None, activ=F.identity):
        """Add convolution -> batch norm -> activation."""
        for link, known in (conv, Convolution2D), (bn, BatchNormalization):
            if link is not None and type(link).forward is not known.forward:
                raise self._unknown(link)
        path = self._paths[id(conv)]
        W = to_cpu(conv.W.array)  # (O, I, kh, kw)
        shift = 0. if conv.b is None else to_cpu(conv.b.array)
        if bn is not None:
            scale = to_cpu(bn.gamma.array) / np.sqrt(
                to_cpu(bn.avg_var).astype(np.float64) + bn.eps)
            shift = to_cpu(bn.beta.array) + scale * (
                shift - to_cpu(bn.avg_mean))
            W = W * scale.astype(np.float32)[:, None, None, None]
        b = np.broadcast_to(shift, len(W)).astype(np.float32)
        h = self.node(
            'Conv', x, self.constant(f'{path}/W', W),
            self.constant(f'{path}/b', b), name=path, group=conv.groups,
            kernel_shape=W.shape[2:], strides=conv.stride,
            pads=conv.pad * 2, dilations=conv.dilate)
        if x in self.shapes:
            batch, _, *sides = self.shapes[x]
            self.shapes[h] = batch, len(W), *(
                (side + 2 * pad - rate * (kernel - 1) - 1) // stride + 1
                for side, pad, rate, kernel, stride in zip(
                    sides, conv.pad, conv.dilate, W.shape[2:], conv.stride,
                    strict=True))
        return self.activation(h, activ)

    def concat(self, *inputs):
        """Join channels."""
        h = self.node('Concat', *inputs, axis=1)
        if h in self.shapes:
            shapes = [self.shapes[each] for each in inputs]
            self.shapes[h] = (shapes[0][0], sum(shape[1] for shape in shapes),
                              *shapes[0][2:])
        return h

    def activation(self, x, function):
        if function is F.relu:
            return self.node('Relu', x)
        if function in {F.identity, None}:
            return x
        raise BackendError(f'the activation {function} has no ONNX form')

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

    def network(self, link, x):
        """Add the whole network; return its logits."""
        low_level, high_level = self.add(link.feature_extractor, x)
        return self.add(link.decoder, low_level,
                        self.add(link.aspp, high_level))


# Each link's `forward`, in the order of xception.py, head.py and
# deeplab_v3_plus.py.

def _conv_bn(graph, link, x):
    return graph.convolution(x, link.conv, link.bn, link.activ)


def _separable_conv_bn(graph, link, x):
    h = graph.convolution(x, link.depthwise, link.dw_bn, link.dw_activ)
    return graph.convolution(h, link.pointwise, link.pw_bn, link.pw_activ)


def _convolution(graph, link, x):
    return graph.convolution(x, link)


def _xception_block(graph, link, x):
    h = graph.add(link.separable1, graph.activation(x, F.relu))
    middle = graph.add(link.separable2, graph.activation(h, F.relu))
    h = graph.add(link.separable3, graph.activation(middle, F.relu))
    if link.shortcut == 'conv':
        x = graph.add(link.conv, x)
    return graph.node('Add', h, x), middle


def _exit_block(graph, link, x):
    for name in 'separable1', 'separable2', 'separable3':
        x = graph.add(link[name], x)
    return x


def _xception65(graph, link, x):
    h = graph.add(link.entryflow_conv1, x)
    h = graph.add(link.entryflow_conv2, h)
    h, _ = graph.add(link.entryflow_block1, h)
    h, low_level = graph.add(link.entryflow_block2, h)
    h, _ = graph.add(link.entryflow_block3, h)
    for i in MIDDLE_BLOCKS:
        h, _ = graph.add(link[f'middleflow_block{i}'], h)
    h, _ = graph.add(link.exitflow_block1, h)
    return low_level, graph.add(link.exitflow_block2, h)


def _separable_aspp(graph, link, x):
    pooled = graph.node('GlobalAveragePool', x)
    if pooled in graph.shapes:
        graph.shapes[pooled] = *graph.shapes[x][:2], 1, 1
        shape = graph.integers(1, 1, *graph.shapes[x][2:])
    else:
        shape = graph.node('Concat', graph.integers(1, 1), graph.sides(x),
                           axis=0)
    pooled = graph.node('Expand', graph.add(link.image_pooling_conv, pooled),
                        shape)
    return graph.add(link.proj, graph.concat(
        pooled, *(graph.add(link[name], x) for name in (
            'conv1x1', 'atrous1', 'atrous2', 'atrous3'))))


def _decoder(graph, link, low_level, high_level):
    low = graph.add(link.feature_proj, low_level)
    h = graph.concat(graph.resize(high_level, low), low)
    h = graph.add(link.conv2, graph.add(link.conv1, h))
    return graph.add(link.conv_logits, h)


_FORWARD = {
    Conv2DBNActiv.forward: _conv_bn,
    SeparableConv2DBNActiv.forward: _separable_conv_bn,
    Convolution2D.forward: _convolution,
    XceptionBlock.forward: _xception_block,
    ExitBlock.forward: _exit_block,
    Xception65.forward: _xception65,
    SeparableASPP.forward: _separable_aspp,
    Decoder.forward: _decoder,
}
