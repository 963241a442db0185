"""From logits to labels.

`_whole_label_map` is the definition; it holds (n_class, H, W) numbers at once,
which suits a GPU. On a CPU, `label_map` makes one row at a time, which stays in
the processor's cache.
"""
import chainer.functions as F
import numpy as np
from chainer.backends.cuda import get_array_module, to_cpu


def label_map(logits, size, crop, n_class=None):
    """Resize logits (bilinear, corners aligned) and take the best class.

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
    if get_array_module(logits[0]) is not np:
        return to_cpu(_whole_label_map(logits, size, crop, n_class))
    label = np.empty(crop, np.int32)
    resized = [_resized_rows(each, size, crop) for each in logits]
    for y, rows in enumerate(zip(*resized, strict=True)):
        scores = rows[0] if len(rows) == 1 else sum(map(_softmax, rows))
        label[y] = scores[:, :n_class].argmax(axis=1)
    return label


def _whole_label_map(logits, size, crop, n_class=None):
    """Return the same, from all pixels at once."""
    resized = [F.resize_images(each[np.newaxis], size) for each in logits]
    scores = resized[0] if len(resized) == 1 else sum(map(F.softmax, resized))
    scores = scores.array[0, :n_class, :crop[0], :crop[1]]
    return scores.argmax(axis=0).astype('i')


def _softmax(scores):
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def _resized_rows(logits, size, crop):
    """Yield each row (crop W, n_class), which the next one overwrites."""
    logits = np.ascontiguousarray(logits.transpose(1, 2, 0))  # (h, w, n_class)
    h, w, n_class = logits.shape
    xs, x_fractions = _corners(w, size[1], crop[1])
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
    for y, y_fraction in zip(*_corners(h, size[0], crop[0]), strict=True):
        if y != last:  # else between the same two rows of the logits
            above = below if y == last + 1 else widened(y)
            below = widened(y + 1)
            step, last = below - above, y
        np.multiply(step, y_fraction, out=row)
        row += above
        yield row


def _corners(n, resized, count):
    """Return where the first `count` resized pixels are among the n: the
    pixel before, and the distance from it in [0, 1).
    """
    position = np.arange(count) * ((n - 1) / max(resized - 1, 1))
    before = position.astype(np.int64)
    return before, (position - before).astype(np.float32)
