"""Read a frozen TensorFlow graph without TensorFlow.

The GraphDef protos come with tensorboard. Knows how the official DeepLab
exporter lays out convolutions, padding, dilation and batch norm, but nothing
of a particular network.
"""
import dataclasses
import hashlib
import math

import numpy as np

from models.utils.errors import InputError

BATCH_NORMS = ('FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3')
CONVOLUTIONS = ('Conv2D', 'DepthwiseConv2dNative')
# Limits on what is parsed, far above what such a graph has (in brackets): a
# damaged or hostile file must not take the machine's memory.
MAX_NODES = 100_000  # (3,300)
MAX_NODE_BYTES = 64 << 20  # (13 MB)
MAX_SMALL_BYTES = 32 << 20  # of all nodes below LARGE together (5 MB)
MAX_VALUES = 1 << 24  # in one constant (3.1 million)
LARGE = 1 << 16  # bytes; such a node's values stay unparsed in the file's data


@dataclasses.dataclass(frozen=True)
class Convolution:
    """How a graph applies a kernel.

    Attributes:
        node (str): name of the node.
        input, output (str): the tensors before and after it and what belongs
            to it: padding, and SpaceToBatchND and back.
        stride, dilate ((int, int)): vertical, horizontal.
        pad ((int, int)): likewise, the same on both sides; None where the
            graph computes it.

    """

    node: str
    input: str
    output: str
    stride: tuple
    dilate: tuple
    pad: tuple


class FrozenGraph:
    """A frozen inference graph.

    Args:
        data (bytes or bytearray): a serialized GraphDef.
        file_name (str): of the file that it is from.
        path (str): what to call it in messages; by default the same.

    Attributes:
        nodes (dict): name to NodeDef; large constants without their values.
        weights (dict): name to shape of every variable: the `Const` nodes
            that are read through an `Identity` called `<name>/read`.
        sha256 (str): hexadecimal, of the data.
        ignored (list of str): empty; a `Checkpoint` has some.

    Raises:
        InputError: the data is no GraphDef.

    """

    def __init__(self, data, file_name, path=None):
        from google.protobuf.message import DecodeError
        self.path = path = path or file_name
        self.data, self.file_name, self.ignored = data, file_name, []
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.nodes, self._large = {}, {}
        try:
            self._parse()
        except (DecodeError, IndexError, UnicodeDecodeError):
            self.nodes = {}
        if not self.nodes:
            raise InputError(f'{path} is not a frozen TensorFlow graph (.pb), '
                             'or not a whole one: it cannot be parsed')
        self._consumers = {}  # name of a tensor -> nodes that read it
        for node in self.nodes.values():
            for source in node.input:
                self._consumers.setdefault(_tensor(source), []).append(node)
        self.weights = {
            name: self._shape(node) for name, node in self.nodes.items()
            if node.op == 'Const' and self._is_read(name)}

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
            node = _node(self.data[start:end])
            if not node.name or node.name in self.nodes:
                raise InputError(f'{self.path} has two nodes of the same '
                                 f'name, or one of none: {node.name!r}')
            if large:
                self._large[node.name] = start, end
                node = self._without_values(node)
            self.nodes[node.name] = node

    def _without_values(self, node):
        if node.op != 'Const' or 'value' not in node.attr:
            raise InputError(f'{self.path}: {node.name[:80]} is no constant, '
                             'and as large as one')
        tensor = node.attr['value'].tensor
        self._shape(node)  # refuses too many sides
        result = type(node)(name=node.name, op=node.op)
        value = result.attr['value'].tensor
        value.dtype = tensor.dtype
        value.tensor_shape.CopyFrom(tensor.tensor_shape)
        return result

    def array(self, name):
        """Return the values of a constant, in TensorFlow's layout."""
        from tensorboard.util import tensor_util
        node = self.nodes.get(_tensor(name))
        if node is None or node.op != 'Const':
            raise InputError(f'{self.path}: {name} is not a constant')
        shape = self._shape(node)
        if math.prod(shape) > MAX_VALUES:
            raise InputError(f'{self.path}: the constant {name} has the '
                             f'absurd shape {shape}')
        if name in self._large:
            start, end = self._large[name]
            node = _node(self.data[start:end])
        try:
            return tensor_util.make_ndarray(node.attr['value'].tensor)
        except (TypeError, ValueError) as error:
            raise InputError(f'{self.path}: the constant {name} is damaged '
                             f'({error})') from None

    def weight(self, name):
        """Return the values of a weight as float32, widened from half."""
        array = self.array(name)
        if array.dtype not in (np.float32, np.float16):
            raise InputError(f'{self.path}: the weight {name} is '
                             f'{array.dtype}, and must be float32 or float16')
        return array.astype(np.float32, copy=False)

    def convolution(self, kernel):
        """Return the `Convolution` that applies the weight `kernel`."""
        node = self._only_consumer(kernel, CONVOLUTIONS)
        stride = self._sides(node, 'strides')
        dilate = self._sides(node, 'dilations') if (
            'dilations' in node.attr) else (1, 1)
        before, output, pad = self.input_node(node, 0), node.name, (0, 0)
        padding = node.attr['padding'].s
        allowed = {b'VALID'} if before.op in {'SpaceToBatchND', 'Pad'} else {
            b'VALID', b'SAME'}
        if padding not in allowed:
            raise InputError(f'{self.path}: {node.name} has padding {padding} '
                             f'after {before.op}, and must have '
                             f'{" or ".join(map(str, sorted(allowed)))}')
        if before.op == 'SpaceToBatchND':
            after = self._only_reader(node.name, 'BatchToSpaceND')
            block, other = (self.integers(self.input_node(each, 1), (2,))
                            for each in (before, after))
            if block != other:
                raise InputError(f'{self.path}: {before.name} has the block '
                                 f'{block}, and {after.name} {other}')
            pad = self._space_padding(before, after)
            dilate = tuple(a * b for a, b in zip(block, dilate, strict=True))
            before, output = self.input_node(before, 0), after.name
        elif before.op == 'Pad':
            pad = self._explicit_padding(before)
            before = self.input_node(before, 0)
        if padding == b'SAME':
            pad = self._same_padding(node, self.weights[kernel], stride, dilate)
        return Convolution(node.name, before.name, output, stride, dilate, pad)

    def _same_padding(self, node, kernel, stride, dilate):
        if stride != (1, 1) and kernel[:2] != (1, 1):
            raise InputError(f'{self.path}: {node.name} pads by SAME at '
                             f'stride {stride}, which depends on the size')
        return tuple(rate * (side - 1) // 2
                     for rate, side in zip(dilate, kernel[:2], strict=True))

    def _explicit_padding(self, node):
        pad = self.integers(self.input_node(node, 1), (4, 2))
        if any(a != b for a, b in pad) or pad[0] != [0, 0] or pad[3] != [0, 0]:
            raise InputError(f'{self.path}: {node.name} pads by {pad}, and '
                             'must pad alike on opposite sides')
        return pad[1][0], pad[2][0]

    def _space_padding(self, before, after):
        sources = [self.input_node(node, 2) for node in (before, after)]
        if any(node.op != 'Const' for node in sources):
            return None
        paddings, crops = (self.integers(node, (2, 2)) for node in sources)
        if crops[0][0] or crops[1][0]:
            raise InputError(f'{self.path}: {after.name} crops at the top or '
                             'left')
        for (start, end), (_, crop) in zip(paddings, crops, strict=True):
            if start != end - crop:
                raise InputError(f'{self.path}: {before.name} pads by '
                                 f'{paddings}, and must pad alike on opposite '
                                 'sides')
        return paddings[0][0], paddings[1][0]

    def batch_norm(self, gamma):
        """Return the node of the batch norm that reads the weight `gamma`."""
        return self._only_consumer(gamma, BATCH_NORMS)

    def producer(self, tensor):
        """Return the node that makes a tensor; an `Identity` is passed over.

        Raises:
            InputError: there is none.

        """
        for _ in range(len(self.nodes)):
            node = self.nodes.get(_tensor(tensor))
            if node is None:
                raise InputError(f'{self.path} has no node {tensor}, and '
                                 'another reads it')
            if node.op != 'Identity' or not node.input:
                return node
            tensor = node.input[0]
        raise InputError(f'{self.path}: {tensor} reads itself')

    def integers(self, node, shape):
        """Return a constant of just this shape, as lists of int."""
        array = self.array(node.name)
        if array.shape != shape or array.dtype.kind != 'i':
            raise InputError(f'{self.path}: {node.name} is {array.dtype} of '
                             f'shape {array.shape}, and must be integers of '
                             f'shape {shape}')
        return array.tolist()

    def input_node(self, node, index):
        """Return the node that makes what a node reads in one place."""
        if index >= len(node.input):
            raise InputError(f'{self.path}: {node.name} reads '
                             f'{len(node.input)} tensors, which are too few')
        return self.producer(node.input[index])

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
        """Return the nodes that read a node, past any `Identity`."""
        found, left = {}, [name]
        while left:
            for node in self._consumers.get(left.pop(), []):
                if node.name not in found:
                    found[node.name] = node
                    if node.op == 'Identity':
                        left.append(node.name)
        return [node for node in found.values() if node.op != 'Identity']

    def _is_read(self, name):
        read = self.nodes.get(f'{name}/read')
        return (read is not None and read.op == 'Identity'
                and [_tensor(source) for source in read.input] == [name])

    def _only_consumer(self, weight, ops):
        if weight not in self.weights:
            raise InputError(f'{self.path} has no weight {weight}')
        return self._only_reader(f'{weight}/read', *ops)

    def _only_reader(self, name, *ops):
        readers = self.readers(name)
        if len(readers) != 1 or readers[0].op not in ops or (
                readers[0].op != 'BatchToSpaceND' and len(
                    readers[0].input) < 2):
            found = ', '.join(f'{node.op} {node.name}' for node in readers[:2])
            more = f' and {len(readers) - 2} more' if readers[2:] else ''
            raise InputError(
                f'{self.path}: {name.removesuffix("/read")} is read by '
                f'{found or "nothing"}{more}, and must be by one '
                f'{" or ".join(ops)}')
        return readers[0]

    def _shape(self, node):
        tensor = node.attr['value'].tensor
        if len(tensor.tensor_shape.dim) > 8:
            raise InputError(f'{self.path}: {node.name} has too many sides')
        shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
        if any(side < 0 for side in shape):
            raise InputError(f'{self.path}: {node.name} has the shape {shape}')
        return shape

    def _sides(self, node, attribute):
        """Height and width of an NHWC attribute such as 'strides'."""
        values = tuple(node.attr[attribute].list.i)
        if len(values) != 4 or values[0] != 1 or values[3] != 1:
            raise InputError(f'{self.path}: {node.name} has {attribute} '
                             f'{list(values)}, and must be NHWC')
        return values[1:3]


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
