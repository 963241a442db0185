"""Write a GraphDef node by node, named as TensorFlow names them; run one."""
import os
import pathlib

import numpy as np
from tensorboard.compat.proto import (
    attr_value_pb2,
    graph_pb2,
    tensor_pb2,
    tensor_shape_pb2,
    types_pb2,
)


class DType(int):
    """A TensorFlow type in an attribute, told from a plain number."""


DTYPES = {'float32': DType(types_pb2.DT_FLOAT),
          'int32': DType(types_pb2.DT_INT32),
          'int64': DType(types_pb2.DT_INT64),
          'uint8': DType(types_pb2.DT_UINT8),
          'bool': DType(types_pb2.DT_BOOL)}
FLOAT, INT = {'T': DTYPES['float32']}, {'T': DTYPES['int32']}
FIELDS = {bool: 'b', DType: 'type', int: 'i', float: 'f', bytes: 's',
          tensor_shape_pb2.TensorShapeProto: 'shape',
          tensor_pb2.TensorProto: 'tensor'}  # of an AttrValue


class Nodes:
    """A GraphDef under construction; tensors are their nodes' names."""

    def __init__(self):
        self.graph = graph_pb2.GraphDef()
        self._used = {}  # name -> how often it was asked for

    def node(self, name, op, inputs=(), **attributes):
        """Add a node of just this name."""
        set_attributes(self.graph.node.add(name=name, op=op, input=inputs),
                       **attributes)
        return name

    def op(self, op, inputs, name=None, **attributes):
        """Add a node; names are made unique: 'Pad', 'Pad_1', ..."""
        return self.node(self._unique(name or op), op, inputs, **attributes)

    def const(self, name, value, dtype='int32'):
        return self.node(name, 'Const', **const_attributes(
            np.asarray(value, dtype), DTYPES[dtype]))

    def arithmetic(self, op, x, y, name, dtype='int32'):
        """Add a node that works on two tensors, or on one and a number."""
        name = self._unique(name)
        inputs = [value if isinstance(value, str) else
                  self.const(f'{name}/{place}', value, dtype)
                  for place, value in zip('xy', (x, y), strict=True)]
        return self.node(name, op, inputs, T=DTYPES[dtype])

    def cast(self, x, source, target, name='Cast'):
        return self.op('Cast', [x], name, SrcT=DTYPES[source],
                       DstT=DTYPES[target])

    def shape(self, x, dtype):
        return self.op('Shape', [x], T=DTYPES[dtype],
                       out_type=DTYPES['int32'])

    def slice(self, x, begin, end=None):
        """x[begin:end]; without an end, x[begin]."""
        name = self._unique('strided_slice')
        edges = [begin], [begin + 1 if end is None else end], [1]
        inputs = [self.const(f'{name}/{edge}', value) for edge, value in zip(
            ('stack', 'stack_1', 'stack_2'), edges, strict=True)]
        return self.node(name, 'StridedSlice', [x, *inputs],
                         Index=DTYPES['int32'],
                         shrink_axis_mask=int(end is None), **INT)

    def pack(self, values, name='stack'):
        name = self._unique(name)
        inputs = [value if isinstance(value, str) else
                  self.const(f'{name}/{i}', value)
                  for i, value in enumerate(values)]
        return self.node(name, 'Pack', inputs, N=len(inputs), axis=0, **INT)

    def expand(self, x, axis, dtype):
        name = self._unique('ExpandDims')
        return self.node(name, 'ExpandDims',
                         [x, self.const(f'{name}/dim', axis)],
                         T=DTYPES[dtype], Tdim=DTYPES['int32'])

    def squeeze(self, x, axis, dtype):
        return self.op('Squeeze', [x], T=DTYPES[dtype], squeeze_dims=[axis])

    def _unique(self, name):
        count = self._used[name] = self._used.get(name, -1) + 1
        return f'{name}_{count}' if count else name


def set_attributes(node, **attributes):
    for key, value in attributes.items():
        is_list = isinstance(value, list)
        field = FIELDS[type(value[0] if is_list else value)]
        node.attr[key].CopyFrom(attr_value_pb2.AttrValue(
            list=attr_value_pb2.AttrValue.ListValue(**{field: value}))
            if is_list else attr_value_pb2.AttrValue(**{field: value}))


def const_attributes(array, dtype):
    return {'dtype': dtype, 'value': tensor_pb2.TensorProto(
        dtype=dtype, tensor_content=array.tobytes(),
        tensor_shape=shape_proto(array.shape))}


def shape_proto(shape):
    return tensor_shape_pb2.TensorShapeProto(
        dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in shape])


def run_tensorflow(graph, fetches, image, feed='ImageTensor'):
    """Run a GraphDef, or one in a file, in TensorFlow.

    Args:
        graph (GraphDef or pathlib.Path): the frozen graph.
        fetches (list of str): names of nodes or tensors.
        image (numpy.ndarray, (H, W, 3)): of the type that `feed` has.
        feed (str): name of the node that it is fed to.

    Returns:
        list of numpy.ndarray: the values fetched.

    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow as tf
    data = (graph.read_bytes() if isinstance(graph, pathlib.Path)
            else graph.SerializeToString())
    names = [name if ':' in name else f'{name}:0' for name in fetches]
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(
            tf.compat.v1.GraphDef.FromString(data), name='')
        with tf.compat.v1.Session(graph=imported) as session:
            return session.run(names, {f'{feed}:0': image[np.newaxis]})
