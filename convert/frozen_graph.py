"""Read a frozen TensorFlow graph without TensorFlow, with limits.

The GraphDef protos come with tensorboard. What well-known tools do to a graph
is undone: 8-bit weights, other names of weights, and batch norms folded into
convolutions.
"""
import copy
import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.util import tensor_util

from models.constants import BACKBONE_EPS, HEAD_EPS
from models.utils.errors import InputError, shortened

# Far above what such a graph has (in brackets): a damaged or hostile file must
# not take the machine's memory.
MAX_NODES = 100_000  # (3,300)
MAX_NODE_BYTES = 64 << 20  # (13 MB)
MAX_SMALL_BYTES = 32 << 20  # of all nodes below LARGE together (5 MB)
MAX_VALUES = 1 << 24  # in one constant (3.1 million)
MAX_SIDES = 8  # of one constant (4)
LARGE = 1 << 16  # bytes; larger constants are parsed on demand
VARIABLES = {'weights', 'depthwise_weights', 'biases', 'gamma', 'beta',
             'moving_mean', 'moving_variance'}  # last part of their names
FOLDED = 'FoldedBatchNorm'  # op of the nodes of `find_folded`
BATCH_NORMS = ('FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3',
               FOLDED)
KERNELS = {'Conv2D': ['weights'],
           'DepthwiseConv2dNative': ['depthwise_weights']}
# Op of a layer -> the weights that it reads behind its first input.
READ = {**KERNELS, 'BiasAdd': ['biases']}
for _op in BATCH_NORMS:
    READ[_op] = ['gamma', 'beta', 'moving_mean', 'moving_variance']


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
        sha256 (str): of the data, in hexadecimal.
        ignored (list of str), files (list): see `checkpoint.Checkpoint`.

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
        self.index()

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

    def index(self):
        """Find weights and readers, after nodes have changed; let inputs pass
        over `Identity` nodes.
        """
        self.nodes = {node.name: node for node in self.nodes.values()}
        self._readers = {}  # name of a tensor -> nodes that read it
        for node in self.nodes.values():
            for i, tensor in enumerate(node.input):
                if tensor != (source := self._past_identities(tensor)):
                    node.input[i] = source
            for tensor in set(node.input) if node.op != 'Identity' else ():
                self._readers.setdefault(tensor, []).append(node)
        self.weights = {name: self.shape(node)
                        for name, node in self.nodes.items()
                        if self._is_weight(node)}

    def _past_identities(self, tensor):
        for _ in self.nodes:
            tensor = tensor.removesuffix(':0')
            node = self.nodes.get(tensor)
            if node is None or node.op != 'Identity' or not node.input:
                return tensor
            tensor = node.input[0]
        return self.refuse(tensor, 'reads itself')

    def _is_weight(self, node):
        read = self.nodes.get(f'{node.name}/read')
        return self.constant(node) is not None and (
            node.name.rpartition('/')[2] in VARIABLES
            or (read is not None and read.op == 'Identity'
                and read.input == [node.name]))

    def add_constant(self, name, like, value=None):
        """Copy a constant, perhaps with one value for all; return its name."""
        if value is None:
            node = NodeDef()
            node.CopyFrom(like)
        else:
            node = _without_values(self.constant(like), DT_FLOAT)
            node.attr['value'].tensor.float_val.append(value)
        if value is None and like.name in self._large:
            self._large[name] = self._large[like.name]
        node.name, self.nodes[name] = name, node
        return name

    def part(self, name):
        """Return the graph of the nodes on which a node depends."""
        result = copy.copy(self)
        result.nodes = self.ancestors(name)
        result.index()
        return result

    # Values

    def array(self, name):
        """Return the values of a constant, in TensorFlow's layout."""
        node = self.nodes.get(name)
        if node is not None and node.op == 'Dequantize':
            return self._dequantized(node)
        if node is None or node.op != 'Const':
            self.refuse(name, 'is not a constant')
        shape = self.shape(node)
        if math.prod(shape) > MAX_VALUES:
            self.refuse(name, f'has the absurd shape {shape}')
        if name in self._large:
            node = _node(self.data, *self._large[name])
        try:
            return _values(node.attr['value'].tensor, shape)
        except (TypeError, ValueError) as error:
            return self.refuse(name, f'is a damaged constant ({error})')

    def weight(self, name):
        """Return the values of a weight as float32, widened from half."""
        array = self.array(name)
        if array.dtype not in (np.float32, np.float16):
            self.refuse(name, f'is {array.dtype}, and must be float32 or '
                        'float16')
        return array.astype(np.float32, copy=False)

    def _dequantized(self, node):
        """Return what a Dequantize of 8 bits makes of constants, as TensorFlow
        does (core/kernels/quantization_utils.h, MIN_FIRST).
        """
        mode = node.attr['mode'].s or b'MIN_COMBINED'
        self.compare(node.name, 'mode', mode, b'MIN_FIRST')
        steps, low, high = (self.array(self.input_node(node, i).name)
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
        array = self.array(node.name)
        self.compare(node.name, 'type and shape',
                     (array.dtype.kind, array.shape), ('i', shape))
        return array.tolist()

    def sides(self, node, attribute):
        """Return height and width of an NHWC attribute such as 'strides'."""
        values = tuple(node.attr[attribute].list.i)
        self.compare(node.name, f'{attribute} of batch and channels',
                     values[:1] + values[3:], (1, 1))
        return values[1:3]

    def constant(self, node):
        """Return the constant that a node is or dequantises, else None."""
        if node.op == 'Dequantize' and node.input:
            node = self.nodes.get(node.input[0], node)
        return node if node.op == 'Const' else None

    def shape(self, node):
        """Return the shape of the constant that a node is or dequantises."""
        tensor = self.constant(node).attr['value'].tensor
        shape = tuple(side.size for side in tensor.tensor_shape.dim)
        if len(shape) > MAX_SIDES or any(side < 0 for side in shape):
            self.refuse(node.name, f'has the shape {shape[:MAX_SIDES + 1]}')
        return shape

    # Connections

    def producer(self, tensor):
        """Return the node that makes a tensor."""
        if tensor not in self.nodes:
            self.refuse(tensor, 'is read by a node, and is missing')
        return self.nodes[tensor]

    def input_node(self, node, index):
        """Return the node that makes an input of a node."""
        if not 0 <= index < len(node.input):
            self.refuse(node.name, f'reads {len(node.input)} tensors, which '
                        'are too few')
        return self.producer(node.input[index])

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

    def readers(self, name):
        """Return the nodes that read a node."""
        return self._readers.get(name, [])

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
            raise InputError(f'{self.path}: no label depends on the weight '
                             f'{weight}')
        return self.only_reader(weight, *ops)

    # Refusals

    def refuse(self, node, reason):
        """Raise InputError about a node."""
        raise InputError(f'{self.path}: {node} {reason}')

    def compare(self, node, what, found, wanted):
        """Refuse a node where what it has is not what it must have."""
        if found != wanted:
            self.refuse(node, f'has {what} {found}, and must have {wanted}')

    def check_op(self, reader, node, op):
        """Refuse the node `reader` where what it reads has another op."""
        if node.op != op:
            self.refuse(reader, f'reads {node.op} {node.name}, and must read a '
                        f'{op}')


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


def _without_values(constant, dtype=None):
    tensor = constant.attr['value'].tensor
    result = NodeDef(name=constant.name, op='Const')
    result.attr['value'].tensor.CopyFrom(TensorProto(
        dtype=dtype or tensor.dtype, tensor_shape=tensor.tensor_shape))
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


def find_folded(graph):
    """Undo what tools do to weights; return the graph.

    Weights get their old names, see `_restore_names`. A folded layer's BiasAdd
    becomes a batch norm again, of op `FOLDED`. Kernel and bias keep their
    values: gamma is 1, the mean 0 and the variance 1 - epsilon.
    """
    _restore_names(graph)
    for node in list(graph.nodes.values()):
        bias_add = _bias_add(graph, node) if node.op in KERNELS else None
        if bias_add is None:
            continue
        kernel, bias = (graph.input_node(each, 1) for each in (node, bias_add))
        scope = kernel.name.rpartition('/')[0]
        norm = f'{scope}/BatchNorm'
        if f'{norm}/gamma' in graph.weights or bias.name in graph.weights or (
                None in map(graph.constant, (kernel, bias))):
            continue  # not folded, or with a bias of its own
        after = graph.readers(bias_add.name)
        if [each.op for each in after] == ['BatchToSpaceND']:
            # The batch norm comes last: they swap names, which are read.
            bias_add.name, after[0].name = after[0].name, bias_add.name
            bias_add.input[0], after[0].input[0] = after[0].name, node.name
        epsilon = BACKBONE_EPS if scope.startswith('xception') else HEAD_EPS
        bias_add.op = FOLDED
        bias_add.attr['epsilon'].f = epsilon
        bias_add.input[1:] = [
            graph.add_constant(f'{norm}/{name}', bias, value)
            for name, value in (('gamma', 1), ('beta', None),
                                ('moving_mean', 0),
                                ('moving_variance', 1 - epsilon))]
    graph.index()
    return graph


def _restore_names(graph):
    """Name weights that a tool renamed as before: it kept the name up to
    '/read' (aspp0/weights/read/_6__cf__6), or the layer that reads it has it.
    """
    restored = {}
    for node in list(graph.nodes.values()):
        kinds = zip(node.input[1:], READ.get(node.op, ()), strict=False)
        for i, (tensor, kind) in enumerate(kinds, start=1):
            weight = graph.nodes.get(tensor)
            if weight is None or tensor in graph.weights or (
                    graph.constant(weight) is None):
                continue
            name = tensor.partition('/read')[0]
            if not name.endswith(f'/{kind}'):
                if node.op == 'BiasAdd':
                    continue  # mostly of a folded batch norm
                name = f'{node.name.rpartition("/")[0]}/{kind}'
            if not (tensor in restored or name in restored.values()
                    or graph.readers(name)):
                restored[tensor] = graph.add_constant(name, weight)
            node.input[i] = restored.get(tensor, tensor)
    if restored:
        graph.index()


def _bias_add(graph, node):
    """Return the BiasAdd after a convolution, or after the BatchToSpaceND
    behind it; else None.
    """
    for _ in range(2):
        readers = graph.readers(node.name)
        if len(readers) != 1:
            return None
        node, = readers
        if node.op != 'BatchToSpaceND':
            break
    return node if node.op == 'BiasAdd' and len(node.input) == 2 else None
