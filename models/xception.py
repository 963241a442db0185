"""Xception65, the backbone of DeepLabV3+, in forward order.

Layers are built by `conv_bn` and `separable_conv_bn`, which head.py uses as
well. Layouts are NCHW, float32.
"""
import chainer
import chainer.functions as F

from . import constants
from .chainer_compat import chainercv_module

LINKS = 'chainercv.links.connection'
Conv2DBNActiv = chainercv_module(
    f'{LINKS}.conv_2d_bn_activ').Conv2DBNActiv
SeparableConv2DBNActiv = chainercv_module(
    f'{LINKS}.separable_conv_2d_bn_activ').SeparableConv2DBNActiv
BN_DECAY = 0.9997  # of the moving statistics, in training


def conv_bn(in_channels, out_channels, ksize, stride=1, activ=F.relu, *,
            eps, initialW=None):
    """Convolution -> batch norm -> activation; 'same' padding."""
    return _without_grads(Conv2DBNActiv(
        in_channels, out_channels, ksize, stride, pad=ksize // 2, activ=activ,
        initialW=initialW, bn_kwargs={'decay': BN_DECAY, 'eps': eps}))


def separable_conv_bn(in_channels, out_channels, stride=1, dilate=1,
                      activ=F.relu, *, eps, initialW=None):
    """3x3 depthwise -> batch norm -> activation, then 1x1 the same way."""
    return _without_grads(SeparableConv2DBNActiv(
        in_channels, out_channels, 3, stride, pad=dilate, dilate=dilate,
        nobias=True, dw_activ=activ, pw_activ=activ,
        dw_initialW=initialW, pw_initialW=initialW,
        bn_kwargs={'decay': BN_DECAY, 'eps': eps}))


def _without_grads(link):
    """Drop the NaN gradients that Chainer starts with: half of the memory."""
    link.cleargrads()
    return link


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
        widths = in_channels, *channels
        with self.init_scope():
            for i, step in (1, 1), (2, 1), (3, stride):
                setattr(self, f'separable{i}', separable_conv_bn(
                    widths[i - 1], widths[i], step, dilate, F.identity,
                    **options))
            if shortcut == 'conv':
                self.conv = conv_bn(
                    in_channels, widths[3], 1, stride, F.identity, **options)
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
    """Three separable convolutions, a ReLU after each half; no shortcut.

    The arguments are those of `XceptionBlock`.
    """

    def __init__(self, in_channels, channels, dilate, **options):
        super().__init__()
        widths = in_channels, *channels
        with self.init_scope():
            for i in 1, 2, 3:
                setattr(self, f'separable{i}', separable_conv_bn(
                    widths[i - 1], widths[i], dilate=dilate, **options))

    def forward(self, x):
        """Return (B, c3, H, W) of x (B, in_channels, H, W)."""
        return self.separable3(self.separable2(self.separable1(x)))


class Xception65(chainer.Chain):
    """The backbone: image in, low and high level features out.

    Args:
        output_stride (int): 8 or 16.
        initialW: Chainer's initializer of the convolution weights.
    """

    def __init__(self, output_stride=constants.OUTPUT_STRIDE, initialW=None):
        super().__init__()
        strides = constants.OUTPUT_STRIDES[output_stride]
        options = {'eps': constants.BACKBONE_EPS, 'initialW': initialW}
        with self.init_scope():
            self.entryflow_conv1 = conv_bn(3, 32, 3, stride=2, **options)
            self.entryflow_conv2 = conv_bn(32, 64, 3, **options)
            self.entryflow_block1 = XceptionBlock(
                64, (128, 128, 128), stride=2, **options)
            self.entryflow_block2 = XceptionBlock(
                128, (256, 256, 256), stride=2, **options)
            self.entryflow_block3 = XceptionBlock(
                256, (728, 728, 728), strides['stride'], **options)
            for i in constants.MIDDLE_BLOCKS:
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
        # h is (B, 256, H/8, W/8), low_level (B, 256, H/4, W/4)
        h, low_level = self.entryflow_block2(h)
        h, _ = self.entryflow_block3(h)  # (B, 728, H/s, W/s)
        for i in constants.MIDDLE_BLOCKS:
            h, _ = self[f'middleflow_block{i}'](h)  # (B, 728, H/s, W/s)
        h, _ = self.exitflow_block1(h)  # (B, 1024, H/s, W/s)
        h = self.exitflow_block2(h)  # (B, 2048, H/s, W/s)
        return low_level, h
