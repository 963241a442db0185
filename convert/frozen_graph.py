"""Read a frozen TensorFlow graph without TensorFlow, with limits.

The GraphDef protos come with tensorboard. Weights of 8 bits, as a well-known
tool makes them, are widened.
"""
import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.util import tensor_util

from models.utils.errors import InputError

# Far above what such a graph has (in brackets): a damaged or hostile file must
# not take the machine's memory.
MAX_NODES = 100_000  # (3,300)
MAX_NODE_BYTES = 64 << 20  # (13 MB)
MAX_SMALL_BYTES = 32 << 20  # of all nodes below LARGE together (5 MB)
MAX_VALUES = 1 << 24  # in one constant (3.1 million)
MAX_SIDES = 8  # of one constant (4)
LARGE = 1 << 16  # bytes; larger constants are parsed on demand
BATCH_NORMS = 'FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3'
LAYERS = {'Conv2D', 'DepthwiseConv2dNative', 'BiasAdd', *BATCH_NORMS}


class FrozenGraph:
    """A frozen inference graph.

    Args:
        data (bytes or bytearray): a serialized GraphDef.
        file_name (str): of the file that it is from.
        path (str): its name in messages; by default the same.

    Attributes:
        nodes (dict): name -> NodeDef; large constants without their values.
            Inputs are not `Identity` nodes, but what these read.
        names (list of str): of the layers: they tell what network it is.
        sha256 (str): of the data, in hexadecimal.
        ignored (list of str): layers of no effect on labels, once `check` has
            found them.
        files (list): see `checkpoint.Checkpoint`.

    Raises:
        InputError: the data is no GraphDef.
    """

    is_graph = True

    def __init__(self, data, file_name, path=None):
        self.path = path = path or file_name
        self.files = [path]
        self.data, self.file_name, self.ignored = data, file_name, []
        thread = ThreadPoolExecutor(1)  # half a second, beside all else
        self._sha256 = thread.submit(hashlib.sha256, data)
        thread.shutdown(wait=False)
        self._large = {}  # constant -> where its node begins and ends
        try:
            self.nodes = self._parse()
        except (DecodeError, IndexError, UnicodeDecodeError):
            raise InputError(f'{path} is not a frozen TensorFlow graph (.pb), '
                             'or not a whole one: it cannot be parsed'
                             ) from None
        for node in self.nodes.values():
            for i, tensor in enumerate(node.input):
                if tensor != (source := self._past_identities(tensor)):
                    node.input[i] = source
        self.names = [name for name, node in self.nodes.items()
                      if node.op in LAYERS]

    @property
    def sha256(self):
        return self._sha256.result().hexdigest()

    def _parse(self):
        nodes, small = {}, 0
        for start, end in _node_ranges(self.data):
            is_large = end - start > LARGE
            small += 0 if is_large else end - start
            if (len(nodes) == MAX_NODES or end - start > MAX_NODE_BYTES
                    or small > MAX_SMALL_BYTES):
                raise InputError(
                    f'{self.path} is far larger than a graph of this network: '
                    f'at most {MAX_NODES} nodes of {MAX_NODE_BYTES >> 20} MiB '
                    'are read')
            node = _node(self.data, start, end)
            if not node.name or node.name in nodes:
                raise InputError(f'{self.path} has two nodes of the same '
                                 f'name, or one of none: {node.name!r}')
            if is_large:
                if node.op != 'Const':
                    self.refuse(node.name[:80], 'is too large for a node that '
                                'is no constant')
                self._large[node.name] = start, end
                self.shape(node)  # refuses too many sides
                node = _without_values(node)
            nodes[node.name] = node
        if not nodes:
            raise DecodeError
        return nodes

    def _past_identities(self, tensor):
        for _ in self.nodes:
            tensor = tensor.removesuffix(':0')
            node = self.nodes.get(tensor)
            if node is None or node.op != 'Identity' or not node.input:
                return tensor
            tensor = node.input[0]
        return self.refuse(tensor, 'reads itself')

    # Values

    def array(self, node):
        """Return the values of a constant, in TensorFlow's layout."""
        read = self._dequantized if node.op == 'Dequantize' else self._read
        return read(node)

    def _read(self, node):
        shape = self.shape(node)
        if math.prod(shape) > MAX_VALUES:
            self.refuse(node.name, f'has the absurd shape {shape}')
        if node.name in self._large:
            node = _node(self.data, *self._large[node.name])
        try:
            return _values(node.attr['value'].tensor, shape)
        except (TypeError, ValueError) as error:
            return self.refuse(node.name, f'is a damaged constant ({error})')

    def weight(self, node):
        """Return the values of a weight as float32, widened from half."""
        array = self.array(node)
        if array.dtype not in (np.float32, np.float16):
            self.refuse(node.name, f'is {array.dtype}, and must be float32 or '
                        'float16')
        return array.astype(np.float32, copy=False)

    def filled(self, like, value):
        """Return a constant of the shape of another, with one value for all."""
        node = NodeDef(op='Const')
        node.attr['value'].tensor.CopyFrom(TensorProto(
            dtype=DT_FLOAT, float_val=[value], tensor_shape={
                'dim': [{'size': side} for side in self.shape(like)]}))
        return node

    def _dequantized(self, node):
        """Return what a Dequantize of 8 bits makes of constants, as TensorFlow
        does (core/kernels/quantization_utils.h, MIN_FIRST).
        """
        mode = node.attr['mode'].s or b'MIN_COMBINED'
        self.compare(node.name, 'mode', mode, b'MIN_FIRST')
        steps, low, high = (self._read(self.input_node(node, i))
                            for i in range(3))
        if steps.dtype.names != ('quint8',) or low.size != 1 or high.size != 1:
            self.refuse(node.name, 'must have 8 bits and one range')
        low, high = float(low.item()), float(high.item())
        steps, scale = steps.view(np.uint8), (high - low) / 255
        if scale == 0:
            return np.full(steps.shape, low, np.float32)
        first = np.float32(round(low / scale) * scale)
        return steps.astype(np.float32) * np.float32(scale) + first

    def integers(self, node, shape):
        """Return a constant of just this shape, as lists of int."""
        array = self.array(node)
        self.compare(node.name, 'type and shape',
                     (array.dtype.kind, array.shape), ('i', shape))
        return array.tolist()

    def sides(self, node, attribute):
        """Return height and width of an NHWC attribute such as 'strides'."""
        values = tuple(node.attr[attribute].list.i)
        self.compare(node.name, f'{attribute} of batch and channels',
                     values[:1] + values[3:], (1, 1))
        return values[1:3]

    def shape(self, node):
        """Return the shape of the constant that a node is or dequantises."""
        constant = node
        if node.op == 'Dequantize':
            constant = self.input_node(node, 0)
        if constant.op != 'Const':
            self.refuse(node.name, 'is not a constant')
        tensor = constant.attr['value'].tensor
        shape = tuple(side.size for side in tensor.tensor_shape.dim)
        if len(shape) > MAX_SIDES or any(side < 0 for side in shape):
            self.refuse(node.name, f'has the shape {shape[:MAX_SIDES + 1]}')
        return shape

    # Connections

    def input_node(self, node, index):
        """Return the node that makes an input of a node."""
        if not 0 <= index < len(node.input):
            self.refuse(node.name, f'reads {len(node.input)} tensors, which '
                        'are too few')
        if node.input[index] not in self.nodes:
            self.refuse(node.input[index], f'is missing, and {node.name} reads '
                        'it')
        return self.nodes[node.input[index]]

    def way_back(self, node):
        """Yield a node, what its first input comes from, and so on to the
        image.
        """
        for _ in self.nodes:
            yield node
            if node.op == 'Placeholder':
                return
            node = self.input_node(node, 0)
        self.refuse(node.name, 'reads itself')

    def past(self, node, *ops):
        """Return the first node, going back from this one, of another op."""
        return next(each for each in self.way_back(node) if each.op not in ops)

    def ancestors(self, name):
        """Return the nodes that a node depends on, itself among them: a dict,
        name -> node.
        """
        found, left = {}, [name]
        while left:
            node = self.nodes.get(left.pop().lstrip('^').partition(':')[0])
            if node is not None and node.name not in found:
                found[node.name] = node
                left += node.input
        return found

    def before(self, node, op):
        """Return the node that makes the first input of a node of an op."""
        self.check_op(node, op)
        return self.input_node(node, 0)

    # Refusals

    def refuse(self, node, reason):
        """Raise InputError about a node."""
        raise InputError(f'{self.path}: {node} {reason}')

    def compare(self, node, what, found, wanted):
        """Refuse a node where what it has is not what it must have."""
        if found != wanted:
            self.refuse(node, f'has {what} {found}, and must have {wanted}')

    def check_op(self, node, *ops):
        """Refuse a node that has none of these ops."""
        if node.op not in ops:
            self.refuse(node.name, f'is a {node.op}, and must be a '
                        f'{" or ".join(ops)}')


def _node(data, start, end):
    return NodeDef.FromString(bytes(memoryview(data)[start:end]))


def _values(tensor, shape):
    """Return the values of a tensor, which may lack the last ones where these
    repeat, or all where these are 0 (TensorFlow's tensor_util.cc).
    """
    if tensor.tensor_content:
        return tensor_util.make_ndarray(tensor)
    given = TensorProto()
    given.CopyFrom(tensor)
    given.tensor_shape.Clear()
    count = sum(len(values) for field, values in tensor.ListFields()
                if field.name.endswith('_val'))
    given.tensor_shape.dim.add(size=count)
    return np.pad(
        tensor_util.make_ndarray(given), (0, math.prod(shape) - count),
        'edge' if count else 'constant').reshape(shape)


def _without_values(constant):
    tensor = constant.attr['value'].tensor
    result = NodeDef(name=constant.name, op='Const')
    result.attr['value'].tensor.CopyFrom(TensorProto(
        dtype=tensor.dtype, tensor_shape=tensor.tensor_shape))
    return result


def _node_ranges(data):
    """Yield where each node begins and ends: GraphDef's fields number 1.

    Its other fields are numbers or begin with their length as well; the wire
    format is that of https://protobuf.dev/programming-guides/encoding.
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, position = _varint(data, position)
        if key & 7 == 0:
            continue
        if key & 7 != 2 or position + number > len(data):
            raise IndexError
        if key >> 3 == 1:
            yield position, position + number
        position += number


def _varint(data, position):
    value = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7f) << shift
        if byte < 0x80:
            return value, position
    raise IndexError
