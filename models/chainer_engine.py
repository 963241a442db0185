"""Run a link as it is, on Chainer; and what such engines have in common.

An engine computes what `predict` returns. The link takes one that suits its
device: OpenVINOEngine on a CPU, CuPyEngine on a GPU, and ChainerEngine where it
is told to, or where the others cannot run it.
"""
import math

import chainer
import chainer.functions as F
import numpy as np

from .constants import LOGITS_STRIDE
from .memory import chainer_memory, check_memory, logits_memory
from .resizing import label_map
from .utils.errors import InputError


class Engine:
    """Computes labels of an image from the logits of a child, which has

    - update(link): take the link's weights; quick when they have not changed;
      raise BackendError where it cannot run the link (ChainerEngine has none);
    - a call: logits (1, n_class, ceil(H/4), ceil(W/4)) of a prepared image
      (1, 3, H, W), both arrays where the link is, float32;
    - memory_needed(link, height, width): about how many more bytes `label_map`
      takes for an image that is padded to this size;
    - precision, and in_float32(): an engine with the same weights.
    """

    precision = 'float32'

    def label_map(self, link, image):
        """Segment an image (3, H, W), RGB in [0, 255].

        Return numpy.ndarray, int32, of the image's `link.resized_size`. Of
        several scales, and of the mirrored image, softmax is averaged.
        """
        x = link.xp.asarray(link.prepare(image)[np.newaxis])  # (1, 3, h, w)
        logits = list(self._logits(x, link.scales, link.flip))
        return label_map(logits, x.shape[2:],
                         link.resized_size(*image.shape[1:]), link.n_class)

    def _logits(self, x, scales, flip):
        """Yield logits (C, h, w) at each scale, also of x mirrored."""
        for size, logits_size in sizes_at(scales, x.shape[2:]):
            scaled = resized(x, size)
            for step in (1, -1) if flip else (1,):
                y = self(scaled[:, :, :, ::step])[:, :, :, ::step]
                yield resized(y, logits_size or y.shape[2:])[0]


def sizes_at(scales, size):
    """Yield the size of an image at each scale, and the one to which its logits
    are resized: below scale 1 to those at scale 1, as officially, else None.
    """
    for scale in scales:
        yield (tuple(int((side - 1) * scale + 1) for side in size),
               None if scale >= 1 else tuple(
                   math.ceil(side / LOGITS_STRIDE) for side in size))


def resized(x, size):
    """Resize an array (1, C, H, W): bilinear, corners aligned."""
    return x if x.shape[2:] == size else F.resize_images(x, size).array


class ChainerEngine(Engine):
    """Calls a link, on a CPU or GPU, never in training mode."""

    def __init__(self, link):
        self._link = link

    def __call__(self, x):
        """Raise InputError where weights are not float32, or a CPU's memory is
        too small.
        """
        for name, param in self._link.namedparams():
            if param.dtype != x.dtype:
                raise InputError(f'{name} is {param.dtype}, which predict only '
                                 'takes on OpenVINO: create the link while '
                                 'chainer.config.dtype is float32')
        if self._link.xp is np:
            height, width = x.shape[2:]
            check_memory(f'an image of {height} x {width} pixels',
                         chainer_memory(self._link, height, width))
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            return self._link(x).array

    def memory_needed(self, link, height, width):
        scaled = [int(side * max(link.scales)) for side in (height, width)]
        return (chainer_memory(link, *scaled)
                + logits_memory(link, height, width))
