"""What TensorFlow's tools make of a frozen graph, with their names of nodes.

Each function returns a changed copy of a GraphDef.
"""
import numpy as np
from fixture_nodes import (
    DTYPES,
    FLOAT,
    DType,
    const_attributes,
    set_attributes,
)
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.types_pb2 import DT_QUINT8
from tensorboard.util.tensor_util import make_ndarray

QUINT8 = DType(DT_QUINT8)


def _const(name, value):
    value = np.asarray(value)
    if value.dtype != np.uint8:
        value = value.astype(np.float32)
    dtype = QUINT8 if value.dtype == np.uint8 else DTYPES['float32']
    node = GraphDef().node.add(name=name, op='Const')
    set_attributes(node, **const_attributes(value, dtype))
    return node


def without_identities(graph, keep=('SemanticPredictions',)):
    """remove_nodes(op=Identity); the first step of optimize_for_inference."""
    source = {node.name: node.input[0] for node in graph.node
              if node.op == 'Identity' and node.name not in keep}
    result = GraphDef()
    for node in graph.node:
        if node.name in source:
            continue
        new = result.node.add()
        new.CopyFrom(node)
        for i in range(len(new.input)):
            while new.input[i] in source:
                new.input[i] = source[new.input[i]]
    return result


MAX_FOLDED = 10 << 20  # bytes of a constant that graph_transforms makes


def constants_folded(graph, by_grappler=False):
    """fold_constants, and what it does to weights: a constant of another name
    for what an Identity reads. TensorFlow's grappler keeps the Identity's name.
    """
    nodes = {node.name: node for node in graph.node}
    result, new_names = GraphDef(), {}
    for node in graph.node:
        source = nodes.get(node.input[0]) if node.input else None
        new = result.node.add()
        new.CopyFrom(node)
        if node.op != 'Identity' or source is None or source.op != 'Const' or (
                source.ByteSize() > MAX_FOLDED and not by_grappler):
            continue
        number = len(new_names)
        new.CopyFrom(source)
        new.name = node.name if by_grappler else (
            f'{node.name}/_{number}__cf__{number}')
        new_names[node.name] = new.name
    read = set()
    for node in result.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        read |= {*node.input}
    for node in list(result.node):
        if node.op == 'Const' and node.name not in read and not by_grappler:
            result.node.remove(node)
    return result


def transformed(graph, transforms):
    """graph_transforms itself, of the TensorFlow that is installed."""
    from tensorflow.python.util import _pywrap_transform_graph as tool
    return GraphDef.FromString(tool.TransformGraphWithStringInputs(
        graph.SerializeToString(), b'ImageTensor', b'SemanticPredictions',
        transforms.encode()))


def grappled(graph):
    """Constant folding by grappler itself."""
    import tensorflow as tf
    from tensorflow.python.grappler import tf_optimizer
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(tf.compat.v1.GraphDef.FromString(
            graph.SerializeToString()), name='')
        imported.add_to_collection('train_op', imported.get_operation_by_name(
            'SemanticPredictions'))
        meta_graph = tf.compat.v1.train.export_meta_graph()
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.optimizers.append('constfold')
    return GraphDef.FromString(tf_optimizer.OptimizeGraph(
        config, meta_graph).SerializeToString())


def folded(graph, everywhere=False):
    """optimize_for_inference; `everywhere`: fold_old_batch_norms, which folds
    those behind a BatchToSpaceND as well, and keeps the kernel's name.
    """
    graph = without_identities(graph)
    nodes = {node.name: node for node in graph.node}
    dropped, added, renamed = set(), [], {}
    for node in graph.node:
        if not node.op.startswith('FusedBatchNorm'):
            continue
        space = conv = nodes[node.input[0]]
        if conv.op == 'BatchToSpaceND':
            if not everywhere:
                continue
            conv = nodes[conv.input[0]]
        kernel = nodes[conv.input[1]]
        gamma, beta, mean, variance = (
            make_ndarray(nodes[name].attr['value'].tensor)
            for name in node.input[1:5])
        scale = gamma / np.sqrt(variance + node.attr['epsilon'].f)
        W = make_ndarray(kernel.attr['value'].tensor)
        by_input = conv.op == 'DepthwiseConv2dNative'
        W = W * (scale[:, np.newaxis] if by_input else scale)
        dropped |= {kernel.name, node.name, *node.input[1:5]}
        name = kernel.name if everywhere else f'{conv.name}_weights'
        added += [_const(name, W), _const(f'{conv.name}_bn_offset',
                                          beta - mean * scale)]
        conv.input[1] = name
        bias_add = GraphDef().node.add(
            name=node.name, op='BiasAdd',
            input=[conv.name, f'{conv.name}_bn_offset'])
        set_attributes(bias_add, data_format=b'NHWC', **FLOAT)
        if space is not conv:
            bias_add.name = f'{conv.name}_biased'
            space.input[0] = bias_add.name
            renamed[space.name] = node.name
        added.append(bias_add)
    result = GraphDef()
    for node in [*graph.node, *added]:
        if node in added or node.name not in dropped:
            result.node.add().CopyFrom(node)
            last = result.node[-1]
            last.name = renamed.get(last.name, last.name)
    return result


def quantized(graph):
    """quantize_weights: 8 bits and a range for each larger constant."""
    result = GraphDef()
    for node in graph.node:
        values = node.op == 'Const' and make_ndarray(node.attr['value'].tensor)
        if values is False or values.dtype != np.float32 or values.size < 1024:
            result.node.add().CopyFrom(node)
            continue
        low, high = min(values.min(), 0), max(values.max(), 0)
        steps = np.round((values - low) * (255 / ((high - low) or 1)))
        parts = [f'{node.name}_quantized_{part}'
                 for part in ('const', 'min', 'max')]
        for name, value in zip(parts, (steps.astype(np.uint8), low, high),
                               strict=True):
            result.node.add().CopyFrom(_const(name, value))
        set_attributes(
            result.node.add(name=node.name, op='Dequantize', input=parts),
            T=QUINT8, mode=b'MIN_FIRST')
    return result
