"""Layers whose batch norm a tool has folded into the convolution.

TensorFlow's optimize_for_inference and graph_transforms replace a kernel W and
the batch norm after it by s W and a BiasAdd of beta - s mean, where
s = gamma / sqrt(variance + epsilon). A batch norm of gamma 1, mean 0, variance
1 - epsilon and that bias as beta does just the same.
"""
import numpy as np

from convert.graph_layers import CONVOLUTIONS
from models.head import HEAD_EPS
from models.xception import BACKBONE_EPS

BATCH_NORM = 'BatchNorm'
KERNELS = {'Conv2D': 'weights', 'DepthwiseConv2dNative': 'depthwise_weights'}


def find_folded(graph):
    """Name the weights of folded layers as before; return the graph.

    Kernel and bias keep their values; gamma, mean and variance are given.
    """
    for node in list(graph.nodes.values()):
        if node.op not in CONVOLUTIONS or len(node.input) != 2:
            continue
        scope = node.name.rpartition('/')[0]
        bias_add = _bias_add(graph, node)
        if bias_add is None or f'{scope}/{BATCH_NORM}/gamma' in graph.weights:
            continue
        if graph.producer(bias_add.input[1]).name in graph.weights:
            continue  # a bias of its own
        graph.folded[scope] = bias_add.name
        for name, index, reader in (
                (f'{scope}/{KERNELS[node.op]}', 1, node),
                (f'{scope}/{BATCH_NORM}/beta', 1, bias_add)):
            graph.rename_weight(graph.producer(reader.input[index]), name)
        shape = graph.weights[f'{scope}/{BATCH_NORM}/beta']
        epsilon = BACKBONE_EPS if scope.startswith('xception') else HEAD_EPS
        for name, value in (('gamma', 1), ('moving_mean', 0),
                            ('moving_variance', 1 - epsilon)):
            graph.give_weight(f'{scope}/{BATCH_NORM}/{name}', shape,
                              np.float32(value))
    return graph


def _bias_add(graph, convolution):
    """Return the BiasAdd of a constant after a convolution, or None."""
    node = convolution
    for _ in range(2):  # graph_transforms puts it before a BatchToSpaceND
        readers = graph.readers(node.name)
        if len(readers) != 1:
            return None
        node, = readers
        if node.op == 'BiasAdd' and len(node.input) == 2:
            constant = graph.producer(node.input[1])
            return node if constant.op in {'Const', 'Dequantize'} else None
        if node.op != 'BatchToSpaceND':
            return None
    return None
