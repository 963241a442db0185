"""Read a frozen TensorFlow graph without TensorFlow.

The GraphDef protos come with tensorboard. Knows how the official DeepLab
exporter lays out convolutions, dilations and batch norm, but nothing of a
particular network.
"""
import dataclasses
import hashlib
import pathlib

from models.errors import InputError

SIZE_LIMIT = (1 << 31) - 1  # bytes, protobuf's own
BATCH_NORMS = ('FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3')
CONVOLUTIONS = ('Conv2D', 'DepthwiseConv2dNative')
OTHER_FORMATS = {  # first bytes of what people mistake for a frozen graph
    b'PK': 'a zip archive', b'\x1f\x8b': 'a gzip archive: unpack it first',
    b'\x89HDF': 'an HDF5 file', b'\x93NUMPY': 'a NumPy array',
    b'\x80': 'a Python pickle',
}


@dataclasses.dataclass(frozen=True)
class Convolution:
    """How a graph applies a kernel.

    Attributes:
        node (str): name of the node.
        input (str): name of the tensor it reads.
        stride ((int, int)): vertical, horizontal.
        dilate ((int, int)): likewise, from the surrounding SpaceToBatchND.

    """

    node: str
    input: str
    stride: tuple
    dilate: tuple


class FrozenGraph:
    """A frozen inference graph.

    Args:
        path (str or pathlib.Path): the .pb file.

    Attributes:
        nodes (dict): name to NodeDef.
        weights (dict): name to shape of every variable: the `Const` nodes
            that are read through an `Identity` called `<name>/read`.
        sha256 (str): hexadecimal, of the file.

    Raises:
        InputError: the file is no GraphDef.
        OSError: it cannot be read.

    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        data = _read(self.path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        graph = _parse(self.path, data)
        self.nodes = {node.name: node for node in graph.node}
        if len(self.nodes) != len(graph.node):
            raise InputError(f'{path} has two nodes of the same name')
        self._consumers = {}  # name of a node -> nodes that read it
        for node in graph.node:
            for source in node.input:
                self._consumers.setdefault(_node_name(source), []).append(node)
        self.weights = {
            name: _shape(node) for name, node in self.nodes.items()
            if node.op == 'Const' and self._is_read(name)}

    def array(self, name):
        """Return the values of a constant, in TensorFlow's layout."""
        from tensorboard.util import tensor_util
        node = self.nodes[name]
        try:
            return tensor_util.make_ndarray(node.attr['value'].tensor)
        except (TypeError, ValueError) as error:
            raise InputError(f'{self.path}: the constant {name} is damaged '
                             f'({error})') from None

    def convolution(self, kernel):
        """Return the `Convolution` that applies the weight `kernel`."""
        node = self._only_consumer(kernel, CONVOLUTIONS)
        stride = _sides(node, 'strides')
        dilate = _sides(node, 'dilations') if 'dilations' in node.attr else (
            1, 1)
        source = self.nodes.get(_node_name(node.input[0]))
        if source is not None and source.op == 'SpaceToBatchND':
            block = self.array(_node_name(source.input[1]))
            dilate = tuple(int(a) * b for a, b in
                           zip(block, dilate, strict=True))
            source = self.nodes.get(_node_name(source.input[0]))
        return Convolution(node.name, source.name if source else '',
                           stride, dilate)

    def epsilon(self, gamma):
        """Return epsilon of the batch norm that reads the weight `gamma`."""
        return self._only_consumer(gamma, BATCH_NORMS).attr['epsilon'].f

    def _is_read(self, name):
        read = self.nodes.get(f'{name}/read')
        return (read is not None and read.op == 'Identity'
                and [_node_name(source) for source in read.input] == [name])

    def _only_consumer(self, weight, ops):
        consumers = self._consumers.get(f'{weight}/read', [])
        if len(consumers) != 1 or consumers[0].op not in ops:
            found = ', '.join(f'{node.op} {node.name}' for node in consumers)
            raise InputError(
                f'{self.path}: {weight} is read by {found or "nothing"}, and '
                f'must be by one {" or ".join(ops)}')
        return consumers[0]


def _read(path):
    size = path.stat().st_size
    if size == 0:
        raise InputError(f'{path} is empty: a frozen TensorFlow graph (.pb) '
                         'is needed')
    if size > SIZE_LIMIT:
        raise InputError(f'{path} has {size} bytes, and a frozen graph at '
                         f'most {SIZE_LIMIT}')
    return path.read_bytes()


def _parse(path, data):
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    for start, kind in OTHER_FORMATS.items():
        if data.startswith(start):
            raise InputError(f'{path} is {kind}, not a frozen TensorFlow '
                             'graph (.pb)')
    try:
        graph = GraphDef.FromString(data)
    except DecodeError:
        graph = GraphDef()
    if not graph.node:
        raise InputError(f'{path} is not a frozen TensorFlow graph (.pb), or '
                         'not a whole one: it cannot be parsed')
    return graph


def _node_name(source):
    """'^name' and 'name:0', as inputs are written, to 'name'."""
    return source.removeprefix('^').partition(':')[0]


def _shape(node):
    tensor = node.attr['value'].tensor
    return tuple(dim.size for dim in tensor.tensor_shape.dim)


def _sides(node, attribute):
    """Height and width of an NHWC attribute such as 'strides'."""
    values = tuple(node.attr[attribute].list.i)
    if len(values) != 4 or values[0] != 1 or values[3] != 1:
        raise InputError(f'{node.name} has {attribute} {list(values)}, and '
                         'must be NHWC')
    return values[1:3]
