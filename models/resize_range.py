"""Resize images to a range of sizes, as some exported graphs do by themselves.

The official exporter's --min_resize_value, --max_resize_value and
--resize_factor write this in front of the network, and resize the labels back
behind it. All is computed as in TensorFlow, in float32.
"""
import typing

import numpy as np


class ResizeRange(typing.NamedTuple):
    """The range, as an npz holds it: four integers.

    An image is resized to a shorter side of `shortest` pixels, or to a longer
    side of `longest` (0: no limit) where it would be longer than that.
    """

    shortest: int
    longest: int = 0
    factor: int = 0  # both sides become a multiple of it, plus 1 (0: any)
    rounds_up: int = 0  # 1 for the exporter of early 2018, which rounds up

    def __str__(self):
        return (f'a shorter side of {self.shortest} pixels'
                + (f', a longer one of at most {self.longest}'
                   if self.longest else '')
                + (f', sides a multiple of {self.factor} plus 1'
                   if self.factor else ''))

    def size(self, height, width):
        """Return the height and width of a resized image, as numpy.int64.

        The sides may be arrays. Source: `resize_to_range` of the official
        code, deeplab/core/preprocess_utils.py.
        """
        sides = np.stack(np.broadcast_arrays(height, width)).astype(np.float32)
        size = self._scaled(sides, np.float32(self.shortest) / sides.min(0))
        if self.longest:
            longest = np.float32(
                self.longest - (self.longest - 1) % self.factor
                if self.factor else self.longest)
            smaller = self._scaled(sides, longest / sides.max(0))
            too_long = size.max(0).astype(np.float32) > longest
            size = np.where(too_long, smaller, size)
        if self.factor:
            size += (self.factor - (size - 1) % self.factor) % self.factor
        return np.maximum(size, 1)

    def _scaled(self, sides, scale):
        rounded = (np.ceil if self.rounds_up else np.floor)(sides * scale)
        return rounded.astype(np.int64)


def resize_image(image, size):
    """Resize an image (C, H, W) to a size (H, W): bilinear, corners aligned,
    each number as TensorFlow's `ResizeBilinear` has it; float32. One of this
    size stays as it is.
    """
    if image.shape[1:] == tuple(size):
        return image
    image = image.astype(np.float32)
    for axis in (2, 1):
        n = image.shape[axis]
        position = _positions(n, size[axis - 1])
        before = position.astype(int)
        fraction = position - before.astype(np.float32)
        low = image.take(before, axis)
        high = image.take(np.minimum(before + 1, n - 1), axis)
        image = low + (high - low) * (
            fraction if axis == 2 else fraction[:, np.newaxis])
    return image


def resize_labels(label, size):
    """Resize a label map to a size (H, W): nearest, corners aligned, halves
    away from zero, as TensorFlow's `ResizeNearestNeighbor`.
    """
    if label.shape == tuple(size):
        return label
    rows, columns = (
        np.minimum((_positions(*sides).astype(float) + 0.5).astype(int),
                   sides[0] - 1)
        for sides in zip(label.shape, size, strict=True))
    return label[rows[:, np.newaxis], columns]


def _positions(n, resized):
    """Return where the resized pixels are among the n, float32."""
    scale = np.float32(n - 1) / np.float32(max(resized - 1, 1))
    return np.arange(resized, dtype=np.float32) * scale
