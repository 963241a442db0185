"""Build frozen TensorFlow graphs like the official DeepLab exporter's.

Structure and names are those of the official DeepLabV3+ Xception65 graphs, at
full width, with what such a graph also has and does not need: an image scaled
by 1 (2018), and features and logits resized to the size they have. Only some
of its assertions are left out. fixture_weights.py has weights.
"""
from fixture_nodes import DTYPES, FLOAT, INT, Nodes, shape_proto

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


class FixtureGraph(Nodes):
    """A frozen graph.

    Args:
        weights (callable): maps a weight's name and shape to its values.
        n_output (int): channels of the logits.
        crop_size ((int, int)): height and width the graph works at.
        output_stride (int): 8 or 16.
        era (int): 2018 or 2020, the exporter's year.
        atrous_rates (three ints): of the ASPP; by default the official ones.
        scales (tuple of float), flip (bool): what the graph averages over;
            scales of None: one, without a mean.
        resize_range (three ints): shorter and longer side of the image and a
            factor; 0 for none.

    Attributes:
        graph (GraphDef): it.

    """

    def __init__(self, weights, n_output, crop_size, output_stride=8,
                 era=2018, atrous_rates=None, scales=None, flip=False,
                 resize_range=None):
        super().__init__()
        self.weights = weights
        self.n_output = n_output
        self.crop_size = crop_size
        self.output_stride = output_stride
        self.era = era
        self.rates = atrous_rates or RATES[output_stride]['aspp']
        self.scales, self.flip = scales, flip
        self.resize_range = resize_range
        self.tower = 0  # number of the network that is being built
        self._build()

    def node(self, name, op, inputs=(), **attributes):
        """Nodes of further towers are named as TensorFlow does."""
        if self.tower:
            first, *rest = name.split('/')
            name = '/'.join([f'{first}_{self.tower}', *rest])
        return super().node(name, op, inputs, **attributes)

    # Layers

    def weight(self, name, shape):
        if self.tower:  # all read the first one's
            return f'{name}/read'
        value = self.weights(name, shape)
        assert value.shape == shape, (name, value.shape, shape)
        self.const(name, value, 'float32')
        return self.node(f'{name}/read', 'Identity', [name], **FLOAT)

    def relu(self, scope, x):
        return self.op('Relu', [x], f'{scope}/Relu', **FLOAT)

    def batch_norm(self, scope, x, channels):
        scope += '/BatchNorm'
        names = ['gamma', 'beta', 'moving_mean', 'moving_variance']
        statistics = [self.weight(f'{scope}/{name}', (channels,))
                      for name in names]
        version = {2018: '', 2020: 'V3'}[self.era]
        types = {'U': DTYPES['float32']} if version else {}
        epsilon = 1e-3 if scope.startswith('xception_65') else 1.001e-5
        return self.node(
            f'{scope}/FusedBatchNorm{version}', f'FusedBatchNorm{version}',
            [x, *statistics], epsilon=epsilon, is_training=False,
            data_format=b'NHWC', **types, **FLOAT)

    def conv(self, scope, x, in_channels, out_channels, ksize=1, stride=1):
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
        """Pad by 1, as before each 3x3 convolution of stride 2."""
        name = self._unique(f'{scope}/Pad')
        paddings = self.const(f'{name}/paddings',
                              [[0, 0], [1, 1], [1, 1], [0, 0]])
        return self.node(name, 'Pad', [x, paddings],
                         Tpaddings=DTYPES['int32'], **FLOAT)

    def resize(self, x, size, name='ResizeBilinear'):
        name = self._unique(name)
        if not isinstance(size, str):
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
        image = self._preprocess()
        if self.scales is None:
            self._predictions(self._network(image, self.crop_size))
            return
        scores = []
        for scale in self.scales:
            for mirrored in (False, True) if self.flip else (False,):
                scores.append(self._tower_scores(image, scale, mirrored))
                self.tower += 1
        self.tower = 0
        self._mean_predictions(scores)

    def _tower_scores(self, image, scale, mirrored):
        """Softmax at the size of the image, with a fifth axis."""
        axis = self.const('ReverseV2/axis', [2]) if mirrored else None
        x = self._reverse(image, axis) if mirrored else image
        size = tuple(int((side - 1) * scale + 1) for side in self.crop_size)
        if scale != 1:
            x = self.resize(x, size, 'scaled/ResizeBilinear')
        logits = self._network(x, size, [int((side - 1) * max(1, scale) / 4 + 1)
                                         for side in self.crop_size])
        logits = self._reverse(logits, axis) if mirrored else logits
        logits = self.resize(logits, self._crop_as_shape())
        softmax = self.op('Softmax', [logits], **FLOAT)
        return self.expand(softmax, 4, 'float32')

    def _reverse(self, x, axis):
        return self.op('ReverseV2', [x, axis], Tidx=DTYPES['int32'], **FLOAT)

    def _network(self, image, crop_size, logits_size=None):
        """Logits of a padded image, resized to the size that they have."""
        x = self.arithmetic('Mul', 2 / 255, image, 'mul', 'float32')
        x = self.arithmetic('Sub', x, 1, 'sub', 'float32')
        x = self.pad('xception_65', x)
        size = _halve(crop_size)
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
        return self.resize(x, logits_size or low_size)

    def _preprocess(self):
        """uint8 of any size -> float32, padded to the crop with 127.5."""
        image = self.node('ImageTensor', 'Placeholder', dtype=DTYPES['uint8'],
                          shape=shape_proto([1, -1, -1, 3]))
        self.image_size = self.slice(self.shape(image, 'uint8'), 1, 3)
        image = self.squeeze(image, 0, 'uint8')
        x, dtype = self.cast(image, 'uint8', 'float32'), 'uint8'
        if self.resize_range is not None:
            x = image = self._resize_to_range(x)
            dtype = 'float32'
        if self.era == 2018:
            x = self._scale_by_one(x)
        x = self._pad_to_crop(x)
        self.resized_size = self.slice(self.shape(image, dtype), 0, 2)
        return self.expand(x, 0, 'float32')

    def _resize_to_range(self, x):
        """--min_resize_value and --max_resize_value, in their own scope."""
        scope, bool_type = 'resize_to_range/', {'T': DTYPES['bool']}
        shortest, longest, factor = self.resize_range
        size = self.shape(x, 'float32')
        sides = [self.cast(self.slice(size, i), 'int32', 'float32',
                           f'{scope}ToFloat') for i in (0, 1)]
        size = self._sides_in_range(scope, sides, shortest, 'Minimum')
        if longest:
            most = self.const(f'{scope}max_size', longest, 'float32')
            if factor:
                most = self._lowered(scope, most, factor)
            smaller = self._sides_in_range(scope, sides, most, 'Maximum')
            larger = self.op('Max', [size, self.const(f'{scope}Const', [0])],
                             f'{scope}Max', Tidx=DTYPES['int32'],
                             keep_dims=False, **INT)
            larger = self.cast(larger, 'int32', 'float32', f'{scope}ToFloat')
            truth = self.node(f'{scope}cond/pred_id', 'Identity', [
                self.arithmetic('Greater', larger, most, f'{scope}Greater',
                                'float32')], **bool_type)
            branches = [self.op('Switch', [each, truth], f'{scope}cond/Switch',
                                **INT) for each in (size, smaller)]
            branches = [branches[0], f'{branches[1]}:1']
            size = self.op('Merge', branches, f'{scope}cond/Merge', N=2, **INT)
        if factor:
            extra = self.arithmetic('FloorMod', self.arithmetic(
                'Sub', size, 1, f'{scope}sub'), factor, f'{scope}mod')
            extra = self.arithmetic('FloorMod', self.arithmetic(
                'Sub', factor, extra, f'{scope}sub'), factor, f'{scope}mod')
            size = self.arithmetic(self._add(), size, extra, f'{scope}add')
        x = self.resize(self.expand(x, 0, 'float32'), size,
                        f'{scope}resize/ResizeBilinear')
        return self.squeeze(x, 0, 'float32')

    def _lowered(self, scope, most, factor):
        """To a multiple of the factor plus 1; in 2018 to one less if it is."""
        def number(op, x, y, name):
            return self.arithmetic(op, x, y, f'{scope}{name}', 'float32')

        over = number('FloorMod', number('Sub', most, 1, 'sub'), factor, 'mod')
        if self.era == 2020:
            return number('Sub', most, over, 'sub')
        missing = number('FloorMod', number('Sub', factor, over, 'sub'), factor,
                         'mod')
        most = number('Add', most, missing, 'add')
        return number('Sub', most, factor, 'sub')

    def _sides_in_range(self, scope, sides, number, least_or_most):
        """Height and width where the shorter or longer side is a number."""
        scale = self.arithmetic('RealDiv', number, self.arithmetic(
            least_or_most, *sides, f'{scope}{least_or_most}', 'float32'),
            f'{scope}div', 'float32')
        op = {2018: 'Ceil', 2020: 'Floor'}[self.era]
        return self.pack([self.cast(self.op(op, [self.arithmetic(
            'Mul', side, scale, f'{scope}mul', 'float32')], f'{scope}{op}',
            **FLOAT), 'float32', 'int32', f'{scope}ToInt32')
            for side in sides], f'{scope}stack')

    def _scale_by_one(self, x):
        """What is left of the scaling at random, which is for training."""
        one = self.const('ToFloat/x', 1, 'float32')
        size = self.shape(x, 'float32')
        sides = self.pack([self.slice(size, i) for i in (0, 1)], 'ToFloat_1/x')
        size = self.cast(sides, 'int32', 'float32', 'ToFloat_1')
        size = self.arithmetic('Mul', size, one, 'mul', 'float32')
        size = self.cast(size, 'float32', 'int32', 'ToInt32')
        x = self.resize(self.expand(x, 0, 'float32'), size)
        return self.squeeze(x, 0, 'float32')

    def _pad_to_crop(self, x):
        scope = {2018: '', 2020: 'pad_to_bounding_box/'}[self.era]
        size, wanted = self.shape(x, 'float32'), []
        for i, crop in enumerate(self.crop_size):
            side = self.slice(size, i)
            missing = self.arithmetic(
                'Maximum', self.arithmetic('Sub', crop, side, 'sub'), 0,
                'Maximum')
            wanted.append(self.arithmetic(self._add(), side, missing, 'add'))
        mean = self.op('Reshape', [
            self.const('Reshape/tensor', 3 * [127.5], 'float32'),
            self.const('Reshape/shape', [1, 1, 3])], Tshape=DTYPES['int32'],
            **FLOAT)
        check = self._assert_rank(scope)
        x = self.node(self._unique(f'{scope}sub'), 'Sub',
                      [x, mean, f'^{check}'], **FLOAT)
        x = self.expand(x, 0, 'float32')
        sides = self.op('Unpack', [self.shape(x, 'float32')],
                        f'{scope}unstack', num=4, **INT)
        after = [self.arithmetic(
            'Sub', self.arithmetic('Sub', wanted[i], 0, f'{scope}sub'),
            f'{sides}:{i + 1}', f'{scope}sub') for i in (1, 0)]
        none = self.const(self._unique(f'{scope}stack'), [0, 0])
        edges = [self.pack([0, side], f'{scope}stack') for side in after[::-1]]
        x = self.op('Pad', [x, self.pack([none, *edges, none],
                                         f'{scope}stack')], f'{scope}Pad',
                    Tpaddings=DTYPES['int32'], **FLOAT)
        x = self.squeeze(x, 0, 'float32')
        return self.arithmetic(self._add(), x, mean, f'{scope}add', 'float32')

    def _assert_rank(self, scope):
        rank = self.const(f'{scope}Rank', 3)
        equal = self.arithmetic('Equal', rank, 3, f'{scope}Equal')
        return self.op('Assert', [equal, rank], f'{scope}Assert/Assert',
                       T=[DTYPES['int32']])

    def _add(self):
        return {2018: 'Add', 2020: 'AddV2'}[self.era]

    def _xception_module(self, scope, x, channels, depths, size, stride, rate):
        exit_block2 = 'exit_flow/block2' in scope
        block_input, tapped = x, None
        for i, depth in enumerate(depths, start=1):
            if not exit_block2:
                x = self.relu(scope, x)
            if i == 3 and stride > 1:
                x = self.pad(scope, x)
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
        x = self.op(self._add(), [x, block_input], f'{scope}/add', **FLOAT)
        return x, tapped

    def _aspp(self, x, channels, size):
        pooled = self.node(
            'AvgPool2D/AvgPool', 'AvgPool', [x], ksize=[1, *size, 1],
            strides=[1, *size, 1], padding=b'VALID', data_format=b'NHWC',
            **FLOAT)
        pooled = self.conv_bn('image_pooling', pooled, channels, 256)
        pooled = self.resize(pooled, size)
        branches = [pooled, self.conv_bn('aspp0', x, channels, 256)]
        for i, rate in enumerate(self.rates, start=1):
            branches.append(self.separable(f'aspp{i}', x, channels, 256, size,
                                           rate=rate))
        x = self.concat('concat', branches)
        x = self.conv_bn('concat_projection', x, 5 * 256, 256)
        return self.node('concat_projection_dropout/Identity', 'Identity', [x],
                         **FLOAT)

    def _decoder(self, x, low_level, size):
        low = self.conv_bn('decoder/feature_projection0', low_level, 256, 48)
        x, low = (self.resize(each, size, 'decoder/ResizeBilinear')
                  for each in (x, low))  # the second has this size
        x = self.concat('decoder/concat', [x, low])
        x = self.separable('decoder/decoder_conv0', x, 304, 256, size)
        x = self.separable('decoder/decoder_conv1', x, 256, 256, size)
        x = self.conv('logits/semantic', x, 256, self.n_output)
        bias = self.weight('logits/semantic/biases', (self.n_output,))
        return self.node('logits/semantic/BiasAdd', 'BiasAdd', [x, bias],
                         data_format=b'NHWC', **FLOAT)

    def _predictions(self, logits):
        """Resize, take the best class, cut the padding off again."""
        self._labels(self.resize(logits, self._crop_as_shape()))

    def _crop_as_shape(self):
        return self.slice(self.const(self._unique('Shape'),
                                     [1, *self.crop_size, 3]), 1, 3)

    def _mean_predictions(self, scores):
        axis = self.const('scales/axis', 4)
        joined = scores[0] if len(scores) == 1 else self.node(
            'scales', 'ConcatV2', [*scores, axis], N=len(scores),
            Tidx=DTYPES['int32'], **FLOAT)
        axis = self.const('Mean/reduction_indices', 4)
        self._labels(self.node('Mean', 'Mean', [joined, axis],
                               Tidx=DTYPES['int32'], **FLOAT))

    def _labels(self, logits):
        dtype = {2018: 'int64', 2020: 'float32'}[self.era]
        labels = self.op('ArgMax', [logits, self.const('ArgMax/dimension', 3)],
                         Tidx=DTYPES['int32'], output_type=DTYPES['int64'],
                         **FLOAT)
        if self.era == 2020:
            softmax = self.op('Softmax', [logits], **FLOAT)
            self.node('SemanticProbabilities', 'Identity', [softmax],
                      **FLOAT)
            labels = self.cast(labels, 'int64', 'float32')
        size = self.pack([1, *(self.slice(self.resized_size, i)
                               for i in (0, 1))], 'Slice/size')
        labels = self.op('Slice', [
            labels, self.const('Slice/begin', [0, 0, 0]), size],
            T=DTYPES[dtype], Index=DTYPES['int32'])
        labels = self.op(
            'ResizeNearestNeighbor', [self.expand(labels, 3, dtype),
                                      self.image_size],
            'resize/ResizeNearestNeighbor', T=DTYPES[dtype],
            align_corners=True)
        labels = self.squeeze(labels, 3, dtype)
        if self.era == 2020:
            labels = self.cast(labels, dtype, 'int32')
            dtype = 'int32'
        self.node('SemanticPredictions', 'Identity', [labels],
                  T=DTYPES[dtype])


def _halve(size):
    return tuple((side + 1) // 2 for side in size)
