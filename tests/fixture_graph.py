"""Build frozen TensorFlow graphs like the official DeepLab exporter's.

The structure and the names are those of the official DeepLabV3+ Xception65
graphs, at full width; fixture_weights.py has weights for them.
"""
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
          'uint8': DType(types_pb2.DT_UINT8)}
FLOAT = {'T': DTYPES['float32']}
XCEPTION_BLOCKS = [  # scope, units, channels, stride at stride 8 and 16
    ('entry_flow/block1', 1, (128, 128, 128), {8: 2, 16: 2}),
    ('entry_flow/block2', 1, (256, 256, 256), {8: 2, 16: 2}),
    ('entry_flow/block3', 1, (728, 728, 728), {8: 1, 16: 2}),
    ('middle_flow/block1', 16, (728, 728, 728), {8: 1, 16: 1}),
    ('exit_flow/block1', 1, (728, 1024, 1024), {8: 1, 16: 1}),
    ('exit_flow/block2', 1, (1536, 1536, 2048), {8: 1, 16: 1}),
]
RATES = {  # dilation by output stride
    8: {'middle_flow/block1': 2, 'exit_flow/block1': 2, 'exit_flow/block2': 4,
        'aspp': (12, 24, 36)},
    16: {'exit_flow/block2': 2, 'aspp': (6, 12, 18)},
}


class FixtureGraph:
    """A GraphDef under construction.

    Args:
        weights (callable): maps a weight's name and shape to its values.
        n_output (int): channels of the logits.
        crop_size ((int, int)): height and width the graph works at.
        output_stride (int): 8 or 16.
        era (int): 2018 or 2020, the exporter's year.
        training (bool): batch norm by the batch's own statistics.

    """

    def __init__(self, weights, n_output, crop_size, output_stride=8,
                 era=2018, training=False):
        self.graph = graph_pb2.GraphDef()
        self.weights = weights
        self.n_output = n_output
        self.crop_size = crop_size
        self.output_stride = output_stride
        self.era = era
        self.training = training
        self.batch_norms = []  # scopes, in forward order
        self._build()

    # Nodes

    def node(self, name, op, inputs=(), **attributes):
        node = self.graph.node.add(name=name, op=op, input=inputs)
        for key, value in attributes.items():
            node.attr[key].CopyFrom(_attribute(value))
        return name

    def const(self, name, value, dtype='int32'):
        array = np.asarray(value, dtype)
        tensor = tensor_pb2.TensorProto(
            dtype=DTYPES[dtype], tensor_content=array.tobytes(),
            tensor_shape=_shape(array.shape))
        return self.node(name, 'Const', dtype=DTYPES[dtype], value=tensor)

    def weight(self, name, shape):
        value = self.weights(name, shape)
        assert value.shape == shape, (name, value.shape, shape)
        self.const(name, value, 'float32')
        return self.node(f'{name}/read', 'Identity', [name], **FLOAT)

    def relu(self, scope, x):
        return self.node(f'{scope}/Relu', 'Relu', [x], **FLOAT)

    # Layers

    def batch_norm(self, scope, x, channels):
        scope += '/BatchNorm'
        self.batch_norms.append(scope)
        names = ['gamma', 'beta', 'moving_mean', 'moving_variance']
        statistics = [self.weight(f'{scope}/{name}', (channels,))
                      for name in names]
        if self.training:
            empty = self.const(f'{scope}/Empty', [], 'float32')
            statistics[2:] = [empty, empty]
        version = {2018: '', 2020: 'V3'}[self.era]
        types = {'U': DTYPES['float32']} if version else {}
        epsilon = 1e-3 if scope.startswith('xception_65') else 1e-5
        return self.node(
            f'{scope}/FusedBatchNorm{version}', f'FusedBatchNorm{version}',
            [x, *statistics], epsilon=epsilon, is_training=self.training,
            data_format=b'NHWC', **types, **FLOAT)

    def conv(self, scope, x, in_channels, out_channels, ksize=1, stride=1):
        if ksize > 1 and stride > 1:
            x = self.pad(scope, x)
        kernel = self.weight(f'{scope}/weights',
                             (ksize, ksize, in_channels, out_channels))
        padding = b'VALID' if ksize > 1 and stride > 1 else b'SAME'
        return self.node(f'{scope}/Conv2D', 'Conv2D', [x, kernel],
                         **self._conv_attributes(stride, padding))

    def conv_bn(self, scope, x, in_channels, out_channels, ksize=1, stride=1,
                relu=True):
        x = self.conv(scope, x, in_channels, out_channels, ksize, stride)
        x = self.batch_norm(scope, x, out_channels)
        return self.relu(scope, x) if relu else x

    def depthwise_bn(self, scope, x, channels, size, stride, rate, relu):
        if stride > 1:
            x = self.pad(scope, x)
        kernel = self.weight(f'{scope}/depthwise_weights', (3, 3, channels, 1))
        scope_op = f'{scope}/depthwise'
        if rate > 1:
            extra = [-(side + 2 * rate) % rate for side in size]
            x = self._space_batch(
                'SpaceToBatchND', scope_op, x, rate, 'paddings',
                [[rate, rate + more] for more in extra])
        padding = b'SAME' if stride == rate == 1 else b'VALID'
        x = self.node(scope_op, 'DepthwiseConv2dNative', [x, kernel],
                      **self._conv_attributes(stride, padding))
        if rate > 1:
            x = self._space_batch(
                'BatchToSpaceND', scope_op, x, rate, 'crops',
                [[0, more] for more in extra])
        x = self.batch_norm(scope, x, channels)
        return self.relu(scope, x) if relu else x

    def separable(self, scope, x, in_channels, out_channels, size, stride=1,
                  rate=1, relu=True):
        x = self.depthwise_bn(f'{scope}_depthwise', x, in_channels, size,
                              stride, rate, relu)
        return self.conv_bn(f'{scope}_pointwise', x, in_channels, out_channels,
                            relu=relu)

    def pad(self, scope, x):
        paddings = self.const(f'{scope}/Pad/paddings',
                              [[0, 0], [1, 1], [1, 1], [0, 0]])
        return self.node(f'{scope}/Pad', 'Pad', [x, paddings],
                         Tpaddings=DTYPES['int32'], **FLOAT)

    def resize(self, name, x, size):
        size = self.const(f'{name}/size', size)
        newer = {'half_pixel_centers': False} if self.era == 2020 else {}
        return self.node(name, 'ResizeBilinear', [x, size], align_corners=True,
                         **newer, **FLOAT)

    def concat(self, name, inputs):
        axis = self.const(f'{name}/axis', 3)
        return self.node(name, 'ConcatV2', [*inputs, axis], N=len(inputs),
                         Tidx=DTYPES['int32'], **FLOAT)

    def _conv_attributes(self, stride, padding):
        newer = {'dilations': [1, 1, 1, 1]} if self.era == 2020 else {}
        return {'strides': [1, stride, stride, 1], 'padding': padding,
                'data_format': b'NHWC', **newer, **FLOAT}

    def _space_batch(self, op, scope, x, rate, edges_name, edges):
        block = self.const(f'{scope}/{op}/block_shape', [rate, rate])
        edges = self.const(f'{scope}/{op}/{edges_name}', edges)
        attribute = 'Tpaddings' if edges_name == 'paddings' else 'Tcrops'
        return self.node(
            f'{scope}/{op}', op, [x, block, edges],
            Tblock_shape=DTYPES['int32'], **{attribute: DTYPES['int32']},
            **FLOAT)

    # The network

    def _build(self):
        x = self._preprocess()
        size = _halve(self.crop_size)
        x = self.conv_bn('xception_65/entry_flow/conv1_1', x, 3, 32, 3, 2)
        x = self.conv_bn('xception_65/entry_flow/conv1_2', x, 32, 64, 3)
        channels, low_level = 64, None
        for block, units, depths, strides in XCEPTION_BLOCKS:
            stride = strides[self.output_stride]
            rate = RATES[self.output_stride].get(block, 1)
            for unit in range(1, units + 1):
                scope = f'xception_65/{block}/unit_{unit}/xception_module'
                x, middle = self._xception_module(
                    scope, x, channels, depths, size, stride, rate)
                channels = depths[-1]
            if block == 'entry_flow/block2':
                low_level, low_size = middle, size
            size = _halve(size) if stride == 2 else size
        x = self._aspp(x, channels, size)
        x = self._decoder(x, low_level, low_size)
        self._predictions(x)

    def _preprocess(self):
        """uint8 of any size -> padded to the crop with 127.5 -> [-1, 1]."""
        image = self.node('ImageTensor', 'Placeholder', dtype=DTYPES['uint8'],
                          shape=_shape([1, -1, -1, 3]))
        size = self.node('Shape', 'Shape', [image], T=DTYPES['uint8'],
                         out_type=DTYPES['int32'])
        crop = self.const('crop', [1, *self.crop_size, 3])
        missing = self.node('sub', 'Sub', [crop, size], T=DTYPES['int32'])
        before = self.const('zeros', [0, 0, 0, 0])
        paddings = self.node('stack', 'Pack', [before, missing], N=2, axis=1,
                             T=DTYPES['int32'])
        x = self.node('Cast', 'Cast', [image], SrcT=DTYPES['uint8'],
                      DstT=DTYPES['float32'])
        grey = self.const('pad_value', 127.5, 'float32')
        x = self.node('PadV2', 'PadV2', [x, paddings, grey],
                      Tpaddings=DTYPES['int32'], **FLOAT)
        scale = self.const('mul/x', 2 / 255, 'float32')
        x = self.node('mul', 'Mul', [scale, x], **FLOAT)
        one = self.const('sub/y', 1, 'float32')
        name = {2018: 'sub_7', 2020: 'sub_2'}[self.era]
        return self.node(name, 'Sub', [x, one], **FLOAT)

    def _xception_module(self, scope, x, channels, depths, size, stride, rate):
        exit_block2 = 'exit_flow/block2' in scope
        block_input, tapped = x, None
        for i, depth in enumerate(depths, start=1):
            if not exit_block2:
                x = self.relu(f'{scope}/separable_conv{i}', x)
            x = self.separable(
                f'{scope}/separable_conv{i}', x,
                depths[i - 2] if i > 1 else channels, depth, size,
                stride if i == 3 else 1, rate, relu=exit_block2)
            tapped = x if i == 2 else tapped
        if exit_block2:
            return x, tapped
        if 'middle_flow' not in scope:
            block_input = self.conv_bn(f'{scope}/shortcut', block_input,
                                       channels, depths[-1], 1, stride,
                                       relu=False)
        add = {2018: 'Add', 2020: 'AddV2'}[self.era]
        x = self.node(f'{scope}/add', add, [x, block_input], **FLOAT)
        return x, tapped

    def _aspp(self, x, channels, size):
        pooled = self.node(
            'AvgPool2D/AvgPool', 'AvgPool', [x], ksize=[1, *size, 1],
            strides=[1, 1, 1, 1], padding=b'VALID', data_format=b'NHWC',
            **FLOAT)
        pooled = self.conv_bn('image_pooling', pooled, channels, 256)
        pooled = self.resize('ResizeBilinear', pooled, size)
        branches = [pooled, self.conv_bn('aspp0', x, channels, 256)]
        for i, rate in enumerate(RATES[self.output_stride]['aspp'], start=1):
            branches.append(self.separable(f'aspp{i}', x, channels, 256, size,
                                           rate=rate))
        x = self.concat('concat', branches)
        x = self.conv_bn('concat_projection', x, 5 * 256, 256)
        return self.node('concat_projection_dropout/Identity', 'Identity', [x],
                         **FLOAT)

    def _decoder(self, x, low_level, size):
        low = self.conv_bn('decoder/feature_projection0', low_level, 256, 48)
        x = self.resize('decoder/ResizeBilinear', x, size)
        x = self.concat('decoder/concat', [x, low])
        x = self.separable('decoder/decoder_conv0', x, 304, 256, size)
        x = self.separable('decoder/decoder_conv1', x, 256, 256, size)
        x = self.conv('logits/semantic', x, 256, self.n_output)
        bias = self.weight('logits/semantic/biases', (self.n_output,))
        return self.node('logits/semantic/BiasAdd', 'BiasAdd', [x, bias],
                         data_format=b'NHWC', **FLOAT)

    def _predictions(self, logits):
        """Resize, take the best class, cut the padding off again."""
        logits = self.resize('ResizeBilinear_1', logits, self.crop_size)
        if self.era == 2020:
            self.node('Softmax', 'Softmax', [logits], **FLOAT)
            self.node('SemanticProbabilities', 'Identity', ['Softmax'],
                      **FLOAT)
        dtype = DTYPES[{2018: 'int64', 2020: 'int32'}[self.era]]
        axis = self.const('ArgMax/dimension', 3)
        labels = self.node('ArgMax', 'ArgMax', [logits, axis],
                           Tidx=DTYPES['int32'], output_type=dtype, **FLOAT)
        begin = self.const('Slice/begin', [0, 0, 0])
        start, stop = (self.const(f'size/{key}', [value])
                       for key, value in [('start', 0), ('stop', 3)])
        step = self.const('size/step', [1])
        size = self.node('size', 'StridedSlice', ['Shape', start, stop, step],
                         T=DTYPES['int32'], Index=DTYPES['int32'])
        self.node('SemanticPredictions', 'Slice', [labels, begin, size],
                  T=dtype, Index=DTYPES['int32'])


def _attribute(value):
    if isinstance(value, bool):
        return attr_value_pb2.AttrValue(b=value)
    if isinstance(value, DType):
        return attr_value_pb2.AttrValue(type=value)
    if isinstance(value, int):
        return attr_value_pb2.AttrValue(i=value)
    if isinstance(value, float):
        return attr_value_pb2.AttrValue(f=value)
    if isinstance(value, bytes):
        return attr_value_pb2.AttrValue(s=value)
    if isinstance(value, tensor_shape_pb2.TensorShapeProto):
        return attr_value_pb2.AttrValue(shape=value)
    if isinstance(value, tensor_pb2.TensorProto):
        return attr_value_pb2.AttrValue(tensor=value)
    return attr_value_pb2.AttrValue(
        list=attr_value_pb2.AttrValue.ListValue(i=value))


def _shape(shape):
    return tensor_shape_pb2.TensorShapeProto(
        dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in shape])


def _halve(size):
    return tuple((side + 1) // 2 for side in size)


def run_tensorflow(graph, fetches, image):
    """Run a GraphDef, or one in a file, in TensorFlow.

    Args:
        graph (GraphDef or pathlib.Path): the frozen graph.
        fetches (list of str): names of nodes or tensors.
        image (numpy.ndarray, (H, W, 3), uint8): fed to `ImageTensor`.

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
            return session.run(names, {'ImageTensor:0': image[np.newaxis]})
