"""The head of DeepLabV3+, in forward order: pyramid pooling, then decoder.

Layouts are NCHW, float32.
"""
import chainer
import chainer.functions as F
import chainer.links as L

from .constants import HEAD_EPS, OUTPUT_STRIDE, OUTPUT_STRIDES
from .xception import conv_bn, separable_conv_bn


class SeparableASPP(chainer.Chain):
    """Atrous spatial pyramid pooling: features at five scales, joined.

    Args:
        in_channels (int): channels of the input.
        out_channels (int): channels of each branch and of the output.
        dilate_list (tuple of three ints): dilations of the atrous branches.
        initialW: Chainer's initializer of the convolution weights.
    """

    def __init__(self, in_channels, out_channels,
                 dilate_list=OUTPUT_STRIDES[OUTPUT_STRIDE]['aspp'],
                 initialW=None):
        super().__init__()
        options = {'eps': HEAD_EPS, 'initialW': initialW}
        with self.init_scope():
            self.image_pooling_conv = conv_bn(
                in_channels, out_channels, 1, **options)
            self.conv1x1 = conv_bn(in_channels, out_channels, 1, **options)
            for i, dilate in enumerate(dilate_list, 1):
                setattr(self, f'atrous{i}', separable_conv_bn(
                    in_channels, out_channels, dilate=dilate, **options))
            self.proj = conv_bn(5 * out_channels, out_channels, 1, **options)

    def forward(self, x):
        """Return (B, out_channels, H, W) of x (B, in_channels, H, W)."""
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
    """Join high level features with low level ones and classify each pixel.

    Args:
        in_channels (int): channels of the high level features.
        n_class (int): number of classes.
        low_channels (int): channels of the low level features.
        proj_channels (int): channels to which these are reduced.
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
        """Return logits (B, n_class, H/4, W/4).

        Args:
            low_level (B, low_channels, H/4, W/4): fine features.
            high_level (B, in_channels, H/s, W/s): coarse features; s is the
                output stride.
        """
        low = self.feature_proj(low_level)  # (B, 48, H/4, W/4)
        high = F.resize_images(
            high_level, low.shape[2:])  # (B, 256, H/4, W/4), align_corners
        h = F.concat((high, low))  # (B, 304, H/4, W/4)
        h = self.conv2(self.conv1(h))  # (B, 256, H/4, W/4)
        return self.conv_logits(h)  # (B, n_class, H/4, W/4)
