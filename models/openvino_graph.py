"""Turn a DeepLabV3+ link into an OpenVINO model, without a copy of its weights.

It is the graph of onnx_graph.py, by the same description, and takes images of
any size.
"""
import numpy as np
import openvino
from openvino import opset13 as ops

from .network_graph import NetworkGraph

CHANNELS, SIDES = 1, [2, 3]  # axes


def openvino_model(link):
    """Return an openvino.Model of a link with its present weights.

    It maps an image (1, 3, H, W), float32, as `link.prepare` makes it, to
    logits (1, n_class, ceil(H/4), ceil(W/4)), float32. Raise BackendError
    where a part of the link was replaced by an unknown one.
    """
    x = ops.parameter([1, 3, -1, -1], np.float32)
    return openvino.Model([_Graph(link).network(link, x)], [x])


class _Graph(NetworkGraph):
    """Its tensors are openvino.Node."""

    def conv(self, x, path, W, b, link):
        convolution = ops.convolution
        if link.groups > 1:
            convolution = ops.group_convolution
            W = W.reshape(link.groups, -1, *W.shape[1:])
        y = convolution(x, _constant(W), list(link.stride), list(link.pad),
                        list(link.pad), list(link.dilate))
        return ops.add(y, _constant(b[None, :, None, None]))

    def relu(self, x):
        return ops.relu(x)

    def total(self, x, y):
        return ops.add(x, y)

    def concat(self, *xs):
        return ops.concat(xs, CHANNELS)

    def mean(self, x):
        return ops.reduce_mean(x, np.array(SIDES), keep_dims=True)

    def expand(self, x, like):
        shape = ops.concat([np.array([1, 1]), _sides(like)], 0)
        return ops.broadcast(x, shape, broadcast_spec='BIDIRECTIONAL')

    def resize(self, x, like):
        return ops.interpolate(
            x, _sides(like), mode='linear_onnx', shape_calculation_mode='sizes',
            coordinate_transformation_mode='align_corners',
            axes=np.array(SIDES))


def _constant(array):
    """The model shares the array's memory, and keeps it alive."""
    return ops.constant(np.ascontiguousarray(array), shared_memory=True)


def _sides(x):
    """Return height and width, as a tensor."""
    return ops.gather(ops.shape_of(x), np.array(SIDES), np.array(0))
