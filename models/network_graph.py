"""The network of a link as a graph, for a writer: ONNX, OpenVINO or CuPy.

Each link's `forward` is written out here once more; `NetworkGraph` walks a link
in that order and asks its child for one operation after another. Batch norm is
folded into the convolution before it: with s = gamma / sqrt(avg_var + eps), the
kernel becomes s W and the bias beta - s avg_mean. Resizes take sizes, not
scales, which would round.
"""
import chainer.functions as F
import numpy as np
from chainer.backends.cuda import to_cpu
from chainer.links import BatchNormalization, Convolution2D

from . import head, xception
from .constants import MIDDLE_BLOCKS
from .utils.errors import BackendError

# Link attributes, besides arrays, that affect the output.
SETTINGS = ('eps', 'stride', 'pad', 'dilate', 'groups', 'shortcut', 'activ',
            'dw_activ', 'pw_activ')


def settings(link):
    """Return what affects a link's output besides its arrays, as text."""
    return repr([(child.name, type(child), *map(vars(child).get, SETTINGS))
                 for child in link.links()])


class NetworkGraph:
    """Builds the graph of a link.

    A tensor is what the child's operations take and return. The child has

    - conv(x, path, W, b, link): a convolution with W (O, I, kh, kw) and b (O),
      and stride, pad, dilate and groups of `link`, which is at `path`;
    - relu(x), total(x, y), concat(*xs) along the channels;
    - mean(x) over height and width; expand(x, like), from one pixel to all;
    - resize(x, like), bilinear, corners aligned.
    """

    def __init__(self, root):
        self._paths = {id(link): path.strip('/')
                       for path, link in root.namedlinks()}

    def network(self, link, x):
        """Add the whole network; return its logits."""
        low_level, high_level = self.add(link.feature_extractor, x)
        return self.add(link.decoder, low_level,
                        self.add(link.aspp, high_level))

    def add(self, link, *xs):
        """Add the nodes of a link; return what its `forward` returns."""
        known = _FORWARD.get(type(link).forward)
        if known is None:
            raise self._unknown(link)
        return known(self, link, *xs)

    def convolution(self, conv, x, bn=None, activ=None):
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
        if activ not in {F.relu, F.identity, None}:
            raise BackendError(f'the activation {activ} has no form as a graph')
        y = self.conv(x, path, W, b, conv)
        return self.relu(y) if activ is F.relu else y

    def _unknown(self, link):
        return BackendError(
            f'{self._paths[id(link)] or "the link"}, a {type(link).__name__}, '
            'has no form as a graph')


# Each link's `forward`, in the order of xception.py, head.py and
# deeplab_v3_plus.py.

def _conv_bn(graph, link, x):
    return graph.convolution(link.conv, x, link.bn, link.activ)


def _separable_conv_bn(graph, link, x):
    h = graph.convolution(link.depthwise, x, link.dw_bn, link.dw_activ)
    return graph.convolution(link.pointwise, h, link.pw_bn, link.pw_activ)


def _xception_block(graph, link, x):
    h = graph.add(link.separable1, graph.relu(x))
    middle = graph.add(link.separable2, graph.relu(h))
    h = graph.add(link.separable3, graph.relu(middle))
    if link.shortcut == 'conv':
        x = graph.add(link.conv, x)
    return graph.total(h, x), middle


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
    pooled = graph.add(link.image_pooling_conv, graph.mean(x))
    return graph.add(link.proj, graph.concat(
        graph.expand(pooled, x), *(graph.add(link[name], x) for name in (
            'conv1x1', 'atrous1', 'atrous2', 'atrous3'))))


def _decoder(graph, link, low_level, high_level):
    low = graph.add(link.feature_proj, low_level)
    h = graph.concat(graph.resize(high_level, low), low)
    h = graph.add(link.conv2, graph.add(link.conv1, h))
    return graph.add(link.conv_logits, h)


_FORWARD = {
    xception.Conv2DBNActiv.forward: _conv_bn,
    xception.SeparableConv2DBNActiv.forward: _separable_conv_bn,
    Convolution2D.forward: NetworkGraph.convolution,
    xception.XceptionBlock.forward: _xception_block,
    xception.ExitBlock.forward: _exit_block,
    xception.Xception65.forward: _xception65,
    head.SeparableASPP.forward: _separable_aspp,
    head.Decoder.forward: _decoder,
}
