"""Read a frozen TensorFlow graph without TensorFlow, with limits.

The GraphDef protos come with tensorboard. What well-known tools do to a graph
is undone: 8-bit weights, and batch norms folded into convolutions.
"""
import copy
import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from models.constants import BACKBONE_EPS, HEAD_EPS
from models.utils.errors import InputError, shortened

# Far above what such a graph has (in brackets): a damaged or hostile file must
# not take the machine's memory.
MAX_NODES = 100_000  # (3,300)
MAX_NODE_BYTES = 64 << 20  # (13 MB)
MAX_SMALL_BYTES = 32 << 20  # of all nodes below LARGE together (5 MB)
MAX_VALUES = 1 << 24  # in one constant (3.1 million)
LARGE = 1 << 16  # bytes; larger constants are parsed on demand
VARIABLES = {'weights', 'depthwise_weights', 'biases', 'gamma', 'beta',
             'moving_mean', 'moving_variance'}  # last part of their names
BATCH_NORM = 'BatchNorm'
KERNELS = {'Conv2D': 'weights', 'DepthwiseConv2dNative': 'depthwise_weights'}


class FrozenGraph:
    """A frozen inference graph.

    Args:
        data (bytes or bytearray): a serialized GraphDef.
        file_name (str): of the file that it is from.
        path (str): its name in messages; by default the same.

    Attributes:
        nodes (dict): name -> NodeDef; large constants without their values.
        weights (dict): name -> shape of every variable: a `Const` (or
            dequantised) node that an `Identity` called `<name>/read` reads, or
            that is named as one of `VARIABLES`.
        folded (dict): scope of a layer -> name of the `BiasAdd` that stands
            for its batch norm; see `folded_layers.find_folded`.
        sha256 (str): of the data, in hexadecimal.
        ignored (list of str), files (list): see `checkpoint.Checkpoint`.

    Raises:
        InputError: the data is no GraphDef.
    """

    is_graph = True

    def __init__(self, data, file_name, path=None):
        from google.protobuf.message import DecodeError
        self.path = path = path or file_name
        self.files = [path]
        self.data, self.file_name, self.ignored = data, file_name, []
        thread = ThreadPoolExecutor(1)  # half a second, beside all else
        self._sha256 = thread.submit(hashlib.sha256, data)
        thread.shutdown(wait=False)
        self.nodes, self._large = {}, {}
        try:
            self._parse()
        except (DecodeError, IndexError, UnicodeDecodeError):
            self.nodes = {}
        if not self.nodes:
            raise InputError(f'{path} is not a frozen TensorFlow graph (.pb), '
                             'or not a whole one: it cannot be parsed')
        self._readers = {}  # name of a tensor -> nodes that read it
        for node in self.nodes.values():
            for source in node.input:
                self._readers.setdefault(_tensor(source), []).append(node)
        self.folded, self._sources, self._given = {}, {}, {}
        self.weights = {
            name: self._shape(self._constant(node))
            for name, node in self.nodes.items() if self._is_weight(node)}

    @property
    def sha256(self):
        return self._sha256.result().hexdigest()

    def _parse(self):
        small = 0
        for start, end in _node_ranges(self.data):
            large = end - start > LARGE
            small += 0 if large else end - start
            if (len(self.nodes) == MAX_NODES or end - start > MAX_NODE_BYTES
                    or small > MAX_SMALL_BYTES):
                raise InputError(
                    f'{self.path} is far larger than a graph of this network: '
                    f'at most {MAX_NODES} nodes of {MAX_NODE_BYTES >> 20} MiB '
                    'are read')
            node = _node(memoryview(self.data)[start:end])
            if not node.name or node.name in self.nodes:
                raise InputError(f'{self.path} has two nodes of the same '
                                 f'name, or one of none: {node.name!r}')
            if large:
                self._large[node.name] = start, end
                node = self._without_values(node)
            self.nodes[node.name] = node

    def _without_values(self, node):
        if node.op != 'Const' or 'value' not in node.attr:
            self.refuse(node.name[:80],
                        'is too large for a node that is no constant')
        tensor = node.attr['value'].tensor
        self._shape(node)  # refuses too many sides
        result = type(node)(name=node.name, op=node.op)
        value = result.attr['value'].tensor
        value.dtype = tensor.dtype
        value.tensor_shape.CopyFrom(tensor.tensor_shape)
        return result

    def part(self, name):
        """Return this graph without the readers on which a node does not
        depend.
        """
        result = copy.copy(self)
        kept = {node.name for node in self.ancestors(name)}
        result._readers = {
            tensor: [node for node in readers if node.name in kept]
            for tensor, readers in self._readers.items()}
        return result

    # Values

    def array(self, name):
        """Return the values of a constant, in TensorFlow's layout."""
        from tensorboard.util import tensor_util
        node = self.nodes.get(_tensor(name))
        if node is not None and node.op == 'Dequantize':
            return self._dequantized(node)
        if node is None or node.op != 'Const':
            self.refuse(name, 'is not a constant')
        shape = self._shape(node)
        if math.prod(shape) > MAX_VALUES:
            self.refuse(name, f'has the absurd shape {shape}')
        if name in self._large:
            start, end = self._large[name]
            node = _node(memoryview(self.data)[start:end])
        try:
            return tensor_util.make_ndarray(node.attr['value'].tensor)
        except (TypeError, ValueError) as error:
            return self.refuse(name, f'is a damaged constant ({error})')

    def weight(self, name):
        """Return the values of a weight as float32, widened from half."""
        if name in self._given:
            return np.full(self.weights[name], self._given[name])
        array = self.array(self._sources.get(name, name))
        if array.dtype not in (np.float32, np.float16):
            self.refuse(name, f'is {array.dtype}, and must be float32 or '
                        'float16')
        return array.astype(np.float32, copy=False)

    def rename_weight(self, node, name):
        """Take the constant that a node is or dequantises for a weight."""
        constant = self._constant(node)
        if constant is None:
            self.refuse(node.name, f'is a {node.op}, and must be a constant')
        self.weights.pop(node.name, None)
        self.weights[name] = self._shape(constant)
        self._sources[name] = node.name

    def give_weight(self, name, shape, value):
        """Add a weight that has this value everywhere, float32."""
        self.weights[name], self._given[name] = shape, value

    def _dequantized(self, node):
        """Return what a Dequantize of 8 bits makes of constants, as TensorFlow
        does (core/kernels/quantization_utils.h, MIN_FIRST).
        """
        mode = node.attr['mode'].s or b'MIN_COMBINED'
        if mode != b'MIN_FIRST' or len(node.input) != 3:
            self.refuse(node.name, f'is dequantised by {mode}, and must be by '
                        'MIN_FIRST')
        steps, low, high = (self.array(self.producer(each).name)
                            for each in node.input)
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
        array = self.array(node.name)
        if array.shape != shape or array.dtype.kind != 'i':
            self.refuse(node.name, f'is {array.dtype} of shape {array.shape}, '
                        f'and must be integers of shape {shape}')
        return array.tolist()

    def sides(self, node, attribute):
        """Return height and width of an NHWC attribute such as 'strides'."""
        values = tuple(node.attr[attribute].list.i)
        if len(values) != 4 or values[0] != 1 or values[3] != 1:
            self.refuse(node.name, f'has {attribute} {list(values)}, and must '
                        'be NHWC')
        return values[1:3]

    def _shape(self, node):
        tensor = node.attr['value'].tensor
        if len(tensor.tensor_shape.dim) > 8:
            self.refuse(node.name, 'has too many sides')
        shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
        if any(side < 0 for side in shape):
            self.refuse(node.name, f'has the shape {shape}')
        return shape

    # Connections; an `Identity` is passed over.

    def producer(self, tensor):
        """Return the node that makes a tensor."""
        for _ in range(len(self.nodes)):
            node = self.nodes.get(_tensor(tensor))
            if node is None:
                self.refuse(tensor, 'is read by a node, and is missing')
            if node.op != 'Identity' or not node.input:
                return node
            tensor = node.input[0]
        return self.refuse(tensor, 'reads itself')

    def input_node(self, node, index):
        """Return the node that makes an input of a node."""
        if index >= len(node.input):
            self.refuse(node.name, f'reads {len(node.input)} tensors, which '
                        'are too few')
        return self.producer(node.input[index])

    def past(self, node, *ops):
        """Return the first node, going back from this one, of another op."""
        for _ in self.nodes:
            if node.op not in ops:
                return node
            node = self.input_node(node, 0)
        return self.refuse(node.name, 'reads itself')

    def ancestors(self, name):
        """Return the nodes that a node depends on, itself among them."""
        found, left = {}, [name]
        while left:
            node = self.nodes.get(left.pop().lstrip('^').partition(':')[0])
            if node is not None and node.name not in found:
                found[node.name] = node
                left += node.input
        return list(found.values())

    def readers(self, name):
        """Return the nodes that read a node."""
        found, left = {}, [name]
        while left:
            for node in self._readers.get(left.pop(), []):
                if node.name not in found:
                    found[node.name] = node
                    if node.op == 'Identity':
                        left.append(node.name)
        return [node for node in found.values() if node.op != 'Identity']

    def only_reader(self, name, *ops):
        """Return the one node that reads a node; it has one of these ops."""
        readers = self.readers(name)
        if len(readers) != 1 or readers[0].op not in ops:
            found = shortened(f'{node.op} {node.name}' for node in readers)
            self.refuse(name,
                        f'feeds {found or "nothing"}, and should feed exactly '
                        f'one {" or ".join(ops)}')
        return readers[0]

    def reader_of_weight(self, weight, *ops):
        """Return the one node that reads a weight."""
        if weight not in self.weights:
            raise InputError(f'{self.path} has no weight {weight}')
        return self.only_reader(self._sources.get(weight, weight), *ops)

    def _is_weight(self, node):
        name, read = node.name, self.nodes.get(f'{node.name}/read')
        return self._constant(node) is not None and (
            name.rpartition('/')[2] in VARIABLES
            or (read is not None and read.op == 'Identity'
                and [_tensor(source) for source in read.input] == [name]))

    def _constant(self, node):
        """Return the constant that a node is or dequantises, else None."""
        if node.op == 'Dequantize' and node.input:
            node = self.nodes.get(_tensor(node.input[0]), node)
        return node if node.op == 'Const' else None

    # Refusals

    def refuse(self, node, reason):
        """Raise InputError about a node."""
        raise InputError(f'{self.path}: {node} {reason}')

    def compare(self, node, what, found, wanted):
        """Refuse a node where what it has is not what the link has."""
        if found != wanted:
            self.refuse(node, f'has {what} {found}, and the link has {wanted}')


def _node(data):
    from tensorboard.compat.proto.node_def_pb2 import NodeDef
    return NodeDef.FromString(bytes(data))


def _node_ranges(data):
    """Yield where each node begins and ends: GraphDef's fields number 1.

    The wire format is that of https://protobuf.dev/programming-guides/encoding
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            _, position = _varint(data, position)
            continue
        if kind == 2:
            size, position = _varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(kind, len(data))
        if position + size > len(data):
            raise IndexError
        if key >> 3 == 1 and kind == 2:
            yield position, position + size
        position += size


def _varint(data, position):
    value = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7f) << shift
        if byte < 0x80:
            return value, position
    raise IndexError


def _tensor(source):
    """'name:0', as inputs may be written, to 'name'."""
    return source.removesuffix(':0')


def find_folded(graph):
    """Name the weights of folded layers as before; return the graph.

    Kernel and bias keep their values; gamma, mean and variance are given.
    """
    for node in list(graph.nodes.values()):
        if node.op not in KERNELS or len(node.input) != 2:
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
