"""From logits to labels.

`_whole_label_map` is the definition; it holds (n_class, H, W) numbers at once,
which suits a GPU. On a CPU, `label_map` makes one row at a time, which stays in
the processor's cache.
"""
import chainer.functions as F
import numpy as np
from chainer.backends.cuda import get_array_module, to_cpu


def label_map(logits, size, crop):
    """Resize logits (bilinear, corners aligned) and take the best class.

    Args:
        logits (list of numpy or cupy arrays, (n_class, h, w), float32): of
            one image; several, of any sizes, are averaged after softmax.
        size ((int, int)): height and width H, W to resize to.
        crop ((int, int)): height and width of the top left part to return.

    Returns:
        numpy.ndarray, crop, int32: the class of each pixel; of equally good
        classes the lowest.
    """
    if get_array_module(logits[0]) is not np:
        return to_cpu(_whole_label_map(logits, size, crop))
    resized = [_ResizedRows(each, size, crop) for each in logits]
    label = np.empty(crop, np.int32)
    for y in range(crop[0]):
        rows = [each[y] for each in resized]  # each (crop W, n_class)
        scores = rows[0] if len(rows) == 1 else sum(map(_softmax, rows))
        label[y] = scores.argmax(axis=1)
    return label


def _whole_label_map(logits, size, crop):
    """Return the same, from all pixels at once."""
    resized = [F.resize_images(each[np.newaxis], size) for each in logits]
    scores = resized[0] if len(resized) == 1 else sum(map(F.softmax, resized))
    return scores.array[0, :, :crop[0], :crop[1]].argmax(axis=0).astype('i')


def _softmax(scores):
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


class _ResizedRows:
    """Rows of resized logits; fast when read from top to bottom.

    A row between two rows of the logits, both resized to width W, is `above`
    + fraction * `below`, where `below` is the difference of the two.
    """

    def __init__(self, logits, size, crop):
        self.logits = np.ascontiguousarray(logits.transpose(1, 2, 0))  # HWC
        h, w, n_class = self.logits.shape
        self.ys, self.y_fractions = _corners(h, size[0], crop[0])
        self.xs, x_fractions = _corners(w, size[1], crop[1])
        shape = crop[1], n_class
        self.x_fractions = np.repeat(x_fractions, n_class).reshape(shape)
        self.above, self.next, self.below, self.row = np.empty(
            (4, *shape), np.float32)
        self.y = None  # row of the logits that `above` was made from

    def __getitem__(self, y):
        """Return row y, (crop W, n_class); overwritten by the next call."""
        if self.ys[y] != self.y:
            self._move_to(self.ys[y])
        np.multiply(self.below, self.y_fractions[y], out=self.row)
        self.row += self.above
        return self.row

    def _move_to(self, y):
        self.above, self.next = self.next, self.above
        if self.y is None or y != self.y + 1:
            self._widen(y, self.above)
        self._widen(y + 1, self.next)
        np.subtract(self.next, self.above, out=self.below)
        self.y = y

    def _widen(self, y, out):
        line = self.logits[min(y, len(self.logits) - 1)]  # (w, n_class)
        steps = np.diff(line, axis=0, append=line[-1:])
        # mode='clip' writes to `out` directly; no index is out of range.
        steps.take(self.xs, axis=0, out=out, mode='clip')
        out *= self.x_fractions
        line.take(self.xs, axis=0, out=self.row, mode='clip')
        out += self.row


def _corners(n, resized, count):
    """Return where the first `count` resized pixels are among the n: the
    pixel before, and the distance from it in [0, 1).
    """
    position = np.arange(count) * ((n - 1) / max(resized - 1, 1))
    before = position.astype(np.int64)
    return before, (position - before).astype(np.float32)
