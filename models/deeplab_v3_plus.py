"""DeepLabV3+ with an Xception65 backbone, read from top to bottom.

The network of Chen et al., "Encoder-Decoder with Atrous Separable Convolution
for Semantic Image Segmentation" (ECCV 2018), as the official TensorFlow code
builds it, under ChainerCV's parameter names. Layouts are NCHW, float32.

The classes stand in forward order: `Xception65` (with `XceptionBlock` and
`ExitBlock`), `SeparableASPP`, `Decoder`, and `DeepLabV3plusXception65`, which
joins them and turns images into labels.
"""
import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainercv.links import Conv2DBNActiv, SeparableConv2DBNActiv

from models.errors import InputError
from models.pretrained import PRETRAINED_MODELS, pretrained_path
from models.weights import load_weights, read_npz

PAD_VALUE = 127.5  # grey level around small images; becomes 0 in the network
BACKBONE_EPS = 1e-3  # batch norm's epsilon below `xception_65`...
HEAD_EPS = 1e-5  # ...and in ASPP and decoder
BN_DECAY = 0.9997  # of the moving statistics, in training

# What the output stride (input size / ASPP input size) sets: the stride of
# entry flow block 3, and the dilations of what follows it.
OUTPUT_STRIDES = {
    8: {'stride': 1, 'middle': 2, 'exit': 4, 'aspp': (12, 24, 36)},
    16: {'stride': 2, 'middle': 1, 'exit': 2, 'aspp': (6, 12, 18)},
}


def conv_bn(in_channels, out_channels, ksize, stride=1, activ=F.relu, *,
            eps, initialW=None):
    """Convolution -> batch norm -> activation; 'same' padding."""
    return Conv2DBNActiv(
        in_channels, out_channels, ksize, stride, pad=ksize // 2, activ=activ,
        initialW=initialW, bn_kwargs={'decay': BN_DECAY, 'eps': eps})


def separable_conv_bn(in_channels, out_channels, stride=1, dilate=1,
                      activ=F.relu, *, eps, initialW=None):
    """3x3 depthwise -> batch norm -> activation, then 1x1 the same way."""
    return SeparableConv2DBNActiv(
        in_channels, out_channels, 3, stride, pad=dilate, dilate=dilate,
        nobias=True, dw_activ=activ, pw_activ=activ,
        dw_initialW=initialW, pw_initialW=initialW,
        bn_kwargs={'decay': BN_DECAY, 'eps': eps})


class XceptionBlock(chainer.Chain):

    """Three separable convolutions, a ReLU before each, beside a shortcut.

    Args:
        in_channels (int): channels of the input.
        channels (tuple of three ints): channels of the convolutions.
        stride (int): stride of the third convolution and of the shortcut.
        dilate (int): dilation of the three depthwise convolutions.
        shortcut (str): 'conv' (1x1 convolution and batch norm) or 'identity'.
        options: `eps` and `initialW`, passed to every convolution.

    """

    def __init__(self, in_channels, channels, stride=1, dilate=1,
                 shortcut='conv', **options):
        super().__init__()
        c1, c2, c3 = channels
        with self.init_scope():
            self.separable1 = separable_conv_bn(
                in_channels, c1, 1, dilate, F.identity, **options)
            self.separable2 = separable_conv_bn(
                c1, c2, 1, dilate, F.identity, **options)
            self.separable3 = separable_conv_bn(
                c2, c3, stride, dilate, F.identity, **options)
            if shortcut == 'conv':
                self.conv = conv_bn(
                    in_channels, c3, 1, stride, F.identity, **options)
        self.shortcut = shortcut

    def forward(self, x):
        """Return the sum (B, c3, h, w) and separable2's output (B, c2, H, W).

        The second is what the decoder takes from entry flow block 2.
        """
        h = self.separable1(F.relu(x))  # (B, c1, H, W)
        middle = self.separable2(F.relu(h))  # (B, c2, H, W)
        h = self.separable3(F.relu(middle))  # (B, c3, h, w)
        if self.shortcut == 'conv':
            x = self.conv(x)  # (B, c3, h, w)
        return h + x, middle


class ExitBlock(chainer.Chain):

    """Three separable convolutions, a ReLU after each half; no shortcut."""

    def __init__(self, in_channels, channels, dilate, **options):
        super().__init__()
        c1, c2, c3 = channels
        with self.init_scope():
            self.separable1 = separable_conv_bn(
                in_channels, c1, dilate=dilate, **options)
            self.separable2 = separable_conv_bn(
                c1, c2, dilate=dilate, **options)
            self.separable3 = separable_conv_bn(
                c2, c3, dilate=dilate, **options)

    def forward(self, x):
        return self.separable3(self.separable2(self.separable1(x)))


class Xception65(chainer.Chain):

    """The backbone: image in, a fine and a coarse feature map out.

    Args:
        output_stride (int): 8 or 16.
        initialW: Chainer's initializer of the convolution weights.

    """

    def __init__(self, output_stride, initialW=None):
        super().__init__()
        strides = OUTPUT_STRIDES[output_stride]
        options = {'eps': BACKBONE_EPS, 'initialW': initialW}
        with self.init_scope():
            self.entryflow_conv1 = conv_bn(3, 32, 3, stride=2, **options)
            self.entryflow_conv2 = conv_bn(32, 64, 3, **options)
            self.entryflow_block1 = XceptionBlock(
                64, (128, 128, 128), stride=2, **options)
            self.entryflow_block2 = XceptionBlock(
                128, (256, 256, 256), stride=2, **options)
            self.entryflow_block3 = XceptionBlock(
                256, (728, 728, 728), strides['stride'], **options)
            for i in range(1, 17):
                setattr(self, f'middleflow_block{i}', XceptionBlock(
                    728, (728, 728, 728), dilate=strides['middle'],
                    shortcut='identity', **options))
            self.exitflow_block1 = XceptionBlock(
                728, (728, 1024, 1024), dilate=strides['middle'], **options)
            self.exitflow_block2 = ExitBlock(
                1024, (1536, 1536, 2048), strides['exit'], **options)

    def forward(self, x):
        """Extract features; s is the output stride.

        Args:
            x (B, 3, H, W): images in [-1, 1], RGB.

        Returns:
            low level (B, 256, H/4, W/4), high level (B, 2048, H/s, W/s).

        """
        h = self.entryflow_conv1(x)  # (B, 32, H/2, W/2)
        h = self.entryflow_conv2(h)  # (B, 64, H/2, W/2)
        h, _ = self.entryflow_block1(h)  # (B, 128, H/4, W/4)
        h, low_level = self.entryflow_block2(h)  # (B, 256, H/8, W/8)
        h, _ = self.entryflow_block3(h)  # (B, 728, H/s, W/s)
        for i in range(1, 17):
            h, _ = self[f'middleflow_block{i}'](h)  # (B, 728, H/s, W/s)
        h, _ = self.exitflow_block1(h)  # (B, 1024, H/s, W/s)
        h = self.exitflow_block2(h)  # (B, 2048, H/s, W/s)
        return low_level, h


class SeparableASPP(chainer.Chain):

    """Atrous spatial pyramid pooling: one place seen at five scales.

    Args:
        in_channels (int): channels of the input.
        out_channels (int): channels of each branch and of the output.
        rates (tuple of three ints): dilations of the atrous branches.
        initialW: Chainer's initializer of the convolution weights.

    """

    def __init__(self, in_channels, out_channels, rates, initialW=None):
        super().__init__()
        options = {'eps': HEAD_EPS, 'initialW': initialW}
        with self.init_scope():
            self.image_pooling_conv = conv_bn(
                in_channels, out_channels, 1, **options)
            self.conv1x1 = conv_bn(in_channels, out_channels, 1, **options)
            self.atrous1 = separable_conv_bn(
                in_channels, out_channels, dilate=rates[0], **options)
            self.atrous2 = separable_conv_bn(
                in_channels, out_channels, dilate=rates[1], **options)
            self.atrous3 = separable_conv_bn(
                in_channels, out_channels, dilate=rates[2], **options)
            self.proj = conv_bn(5 * out_channels, out_channels, 1, **options)

    def forward(self, x):
        pooled = F.average(x, axis=(2, 3), keepdims=True)  # (B, C, 1, 1)
        pooled = self.image_pooling_conv(pooled)  # (B, 256, 1, 1)
        h = F.concat((
            F.broadcast_to(pooled, pooled.shape[:2] + x.shape[2:]),
            self.conv1x1(x),
            self.atrous1(x),
            self.atrous2(x),
            self.atrous3(x),
        ))  # (B, 5 * 256, H, W)
        return F.dropout(self.proj(h), 0.1)  # (B, 256, H, W)


class Decoder(chainer.Chain):

    """Sharpen coarse features with fine ones and classify each place.

    Args:
        in_channels (int): channels of the high level features.
        n_class (int): number of classes.
        low_channels (int): channels of the low level features.
        proj_channels (int): channels they are reduced to.
        channels (int): channels of the two convolutions.
        initialW: Chainer's initializer of the convolution weights.

    """

    def __init__(self, in_channels, n_class, low_channels=256,
                 proj_channels=48, channels=256, initialW=None):
        super().__init__()
        options = {'eps': HEAD_EPS, 'initialW': initialW}
        with self.init_scope():
            self.feature_proj = conv_bn(
                low_channels, proj_channels, 1, **options)
            self.conv1 = separable_conv_bn(
                in_channels + proj_channels, channels, **options)
            self.conv2 = separable_conv_bn(channels, channels, **options)
            self.conv_logits = L.Convolution2D(
                channels, n_class, 1, initialW=initialW)

    def forward(self, low_level, high_level):
        low = self.feature_proj(low_level)  # (B, 48, H/4, W/4)
        high = F.resize_images(
            high_level, low.shape[2:])  # (B, 256, H/4, W/4), align_corners
        h = F.concat((high, low))  # (B, 304, H/4, W/4)
        h = self.conv2(self.conv1(h))  # (B, 256, H/4, W/4)
        return self.conv_logits(h)  # (B, n_class, H/4, W/4)


class DeepLabV3plusXception65(chainer.Chain):

    """DeepLabV3+ with Xception65, with ChainerCV's interface and names.

    Args:
        n_class (int): number of classes; a pretrained model knows its own.
        pretrained_model (str or pathlib.Path): 'voc', 'cityscapes' or
            'ade20k' (downloaded at the first use), or the path of an npz.
        min_input_size (int or (int, int)): height and width in pixels to
            which smaller images are padded. The default is the pretrained
            model's, else 513.
        scales (tuple of floats): scales whose softmax outputs are averaged;
            by default (1.0,).
        flip (bool): also average over the mirrored image; by default not.
        output_stride (int): 8 or 16. Weights fit both; 16 is three times as
            fast and costs 0.2 to 0.3 mIoU. The default is the one the
            pretrained model was exported with, else 8.
        initialW: Chainer's initializer of the convolution weights, where no
            pretrained model gives them.

    Attributes:
        metadata (dict): what the npz says of itself, see `models.weights`;
            empty for one that says nothing.

    Raises:
        InputError: an argument has no meaning, or the pretrained model is
            not to be had or does not fit.

    """

    def __init__(self, n_class=None, pretrained_model=None,
                 min_input_size=None, scales=None, flip=None,
                 output_stride=None, initialW=None):
        super().__init__()
        path, defaults = None, {}
        if pretrained_model is not None:
            path = pretrained_path(pretrained_model)
            defaults = _read_settings(path, pretrained_model)
            initialW = _leave_unset
        self.metadata = defaults.get('metadata', {})
        self.n_class = _one_class_count(n_class, defaults.get('n_class'))
        self.min_input_size = _as_size(
            min_input_size or defaults.get('min_input_size', 513))
        self.scales = (1.0,) if scales is None else tuple(scales)
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f'scales are {self.scales}, and must be one or '
                             'more positive numbers')
        self.flip = bool(flip)
        self.output_stride = output_stride or defaults.get('output_stride', 8)
        if self.output_stride not in OUTPUT_STRIDES:
            raise InputError(f'output_stride is {self.output_stride}, and '
                             'must be 8 or 16')
        with self.init_scope():
            self.feature_extractor = Xception65(self.output_stride, initialW)
            self.aspp = SeparableASPP(
                2048, 256, OUTPUT_STRIDES[self.output_stride]['aspp'],
                initialW)
            self.decoder = Decoder(256, self.n_class, initialW=initialW)
        if path is not None:
            load_weights(path, self)

    def forward(self, x):
        """Compute logits.

        Args:
            x (array or Variable, (B, 3, H, W), float32): prepared images.

        Returns:
            Variable, (B, n_class, ceil(H/4), ceil(W/4)), float32.

        """
        low_level, high_level = self.feature_extractor(x)
        return self.decoder(low_level, self.aspp(high_level))

    def prepare(self, image):
        """Pad an image to `min_input_size` and scale it for the network.

        Args:
            image (numpy.ndarray, (3, H, W)): RGB in [0, 255].

        Returns:
            numpy.ndarray, (3, max(H, min H), max(W, min W)), float32 in
            [-1, 1]. The image is at the top left; the padding is 0.

        """
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise InputError(f'an image has shape {image.shape}, and must be '
                             'CHW with three channels (RGB)')
        _, H, W = image.shape
        padded = np.full((3, max(H, self.min_input_size[0]),
                          max(W, self.min_input_size[1])),
                         PAD_VALUE, np.float32)
        padded[:, :H, :W] = image
        return padded * np.float32(2 / 255) - np.float32(1)

    def predict(self, imgs):
        """Segment images.

        Args:
            imgs (iterable of numpy.ndarray, (3, H, W)): RGB in [0, 255],
                each of any size.

        Returns:
            list of numpy.ndarray, (H, W), int32: the class of each pixel.

        """
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            return [self._predict_one(img) for img in imgs]

    def _predict_one(self, img):
        _, H, W = img.shape
        x = self.xp.asarray(self.prepare(img)[np.newaxis])  # (1, 3, h, w)
        if self.scales == (1.0,) and not self.flip:
            # Logits, not probabilities, are resized: as the frozen graph does.
            score = F.resize_images(self(x), x.shape[2:])
        else:
            score = self._mean_probability(x)
        label = score.array[0, :, :H, :W].argmax(axis=0)  # (H, W)
        return chainer.cuda.to_cpu(label.astype(np.int32))

    def _mean_probability(self, x):
        """Average softmax over scales and mirrored copies, at full size."""
        size = x.shape[2:]
        total = 0
        for scale in self.scales:
            scaled = x if scale == 1.0 else F.resize_images(
                x, [int((side - 1) * scale + 1) for side in size]).array
            for step in (1, -1) if self.flip else (1,):
                logits = self(scaled[:, :, :, ::step])[:, :, :, ::step]
                total += F.softmax(F.resize_images(logits, size))
        return total / (len(self.scales) * (2 if self.flip else 1))


def _read_settings(path, pretrained_model):
    """Return what is known of a pretrained model before it is loaded."""
    metadata, shapes = read_npz(path)
    logits = shapes.get('decoder/conv_logits/W', ())
    if len(logits) != 4:
        raise InputError(f'{path} does not hold a DeepLabV3+ Xception65: it '
                         'has no decoder/conv_logits/W with four axes')
    settings = {'n_class': logits[0], 'metadata': metadata}
    if pretrained_model in PRETRAINED_MODELS:
        settings['min_input_size'] = (
            PRETRAINED_MODELS[pretrained_model]['min_input_size'])
    for key in 'min_input_size', 'output_stride':
        if key in metadata:
            settings[key] = metadata[key]
    return settings


def _one_class_count(given, known):
    if given is None and known is None:
        raise InputError('n_class is needed where no pretrained model is given')
    if given is not None and known is not None and given != known:
        raise InputError(f'n_class is {given}, but the pretrained model has '
                         f'{known} classes: leave n_class out')
    return known if given is None else given


def _as_size(size):
    height, width = (size, size) if np.ndim(size) == 0 else size
    if height < 1 or width < 1:
        raise InputError(f'min_input_size is {size}, and must be positive')
    return int(height), int(width)


def _leave_unset(array):
    """Initialize nothing: the weights are about to be loaded."""
