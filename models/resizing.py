"""Sizes of images and labels: from logits to labels, and the resize that some
exported graphs do by themselves.

The official exporter's --min_resize_value, --max_resize_value and
--resize_factor write a resize in front of the network, and one of the labels
behind it (`ResizeRange`). It is computed as in TensorFlow, in float32.
"""
import typing

import numpy as np


def label_map(logits, size, crop, n_class=None):
    """Resize logits (bilinear, corners aligned) and take the best class.

    On a CPU one row at a time, which stays in the processor's cache; on a GPU
    all (n_class, H, W) numbers at once.

    Args:
        logits (list of numpy or cupy arrays, (C, h, w), float32): of one
            image; several, of any sizes, are averaged after softmax.
        size ((int, int)): height and width H, W to resize to.
        crop ((int, int)): height and width of the top left part to return.
        n_class (int): the first so many channels are classes, others have a
            part in the softmax alone; by default all are classes.

    Returns:
        numpy.ndarray, crop, int32: the class of each pixel; of equally good
        classes the lowest.
    """
    if type(logits[0]) is not np.ndarray:  # a GPU's
        return _label_map_at_once(logits, size, crop, n_class)
    label = np.empty(crop, np.int32)
    resized = [_resized_rows(each, size, crop) for each in logits]
    for y, rows in enumerate(zip(*resized, strict=True)):
        scores = rows[0] if len(rows) == 1 else sum(map(_softmax, rows))
        label[y] = scores[:, :n_class].argmax(axis=1)
    return label


def _label_map_at_once(logits, size, crop, n_class):
    import chainer.functions as F
    resized = [F.resize_images(each[np.newaxis], size) for each in logits]
    scores = resized[0] if len(resized) == 1 else sum(map(F.softmax, resized))
    scores = scores.array[0, :n_class, :crop[0], :crop[1]]
    return scores.argmax(axis=0).astype(np.int32).get()


def _softmax(scores):
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def _resized_rows(logits, size, crop):
    """Yield each row (crop W, n_class), which the next one overwrites."""
    logits = np.ascontiguousarray(logits.transpose(1, 2, 0))  # (h, w, n_class)
    h, w, n_class = logits.shape
    xs, x_fractions = (each[:crop[1]] for each in _corners(w, size[1], float))
    x_fractions = np.repeat(x_fractions, n_class).reshape(-1, n_class)
    row = np.empty_like(x_fractions)

    def widened(y):
        line = logits[min(y, h - 1)]  # (w, n_class)
        steps = np.diff(line, axis=0, append=line[-1:])
        result = steps.take(xs, axis=0)
        result *= x_fractions
        result += line.take(xs, axis=0, out=row, mode='clip')
        return result

    last, below = -1, widened(0)
    ys, y_fractions = (each[:crop[0]] for each in _corners(h, size[0], float))
    for y, y_fraction in zip(ys, y_fractions, strict=True):
        if y != last:  # else between the same two rows of the logits
            above = below if y == last + 1 else widened(y)
            below = widened(y + 1)
            step, last = below - above, y
        np.multiply(step, y_fraction, out=row)
        row += above
        yield row


def _corners(n, resized, dtype=np.float32):
    """Return where the resized pixels are among the n, computed in a type: the
    pixel before, and the distance from it in [0, 1), float32.
    """
    position = np.arange(resized, dtype=dtype) * (
        dtype(n - 1) / dtype(max(resized - 1, 1)))
    before = position.astype(np.int64)
    return before, (position - before).astype(np.float32)


class ResizeRange(typing.NamedTuple):
    """The range, as an npz holds it: four integers.

    An image is resized to a shorter side of `shortest` pixels, or to a longer
    side of `longest` (0: no limit) where it would be longer than that.
    """

    shortest: int
    longest: int = 0
    factor: int = 0  # both sides become a multiple of it, plus 1 (0: any)
    rounds_up: int = 0  # 1 for the exporter of early 2018, which rounds up

    def size(self, height, width):
        """Return the height and width of a resized image, as numpy.int64.

        The sides may be arrays. Source: `resize_to_range` of the official
        code, deeplab/core/preprocess_utils.py.
        """
        sides = np.stack(np.broadcast_arrays(height, width)).astype(np.float32)
        factor = self.factor or 1
        size = self._scaled(sides, np.float32(self.shortest) / sides.min(0))
        if self.longest:
            longest = np.float32(self.longest - (self.longest - 1) % factor)
            smaller = self._scaled(sides, longest / sides.max(0))
            too_long = size.max(0).astype(np.float32) > longest
            size = np.where(too_long, smaller, size)
        return np.maximum(size + (1 - size) % factor, 1)

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
        before, fraction = _corners(n, size[axis - 1])
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
    rows, columns = (before + (fraction >= 0.5) for before, fraction
                     in map(_corners, label.shape, size))
    return label[rows[:, np.newaxis], columns]
