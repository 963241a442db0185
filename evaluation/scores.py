"""Scores of a segmentation, from the confusion matrix of a whole dataset."""
import numpy as np

from models.utils.errors import shortened

IGNORED = -1  # value in a label map of pixels that do not count
# Cityscapes' categories and their classes (cityscapesScripts,
# helpers/labels.py).
CITYSCAPES_CATEGORIES = {
    'flat': (0, 1), 'construction': (2, 3, 4), 'object': (5, 6, 7),
    'nature': (8, 9), 'sky': (10,), 'human': (11, 12),
    'vehicle': (13, 14, 15, 16, 17, 18)}


def confusion_matrix(label: np.ndarray, prediction: np.ndarray,
                     n_class: int) -> np.ndarray:
    """Count the pixels of an image by true and predicted class.

    Args:
        label (numpy.ndarray, (H, W), int): true classes, or `IGNORED`.
        prediction (numpy.ndarray, (H, W), int): predicted classes.
        n_class (int): number of classes.

    Returns:
        numpy.ndarray, (n_class, n_class), int64: row true, column predicted.
    """
    pairs = n_class * (label.astype(np.int64) - IGNORED) + prediction
    counts = np.bincount(pairs.ravel(), minlength=n_class * (n_class + 1))
    return counts.reshape(-1, n_class)[1:]  # row 0 has the ignored pixels


def scores(matrix: np.ndarray) -> dict:
    """Compute what `chainercv.evaluations.eval_semantic_segmentation` does.

    Args:
        matrix (numpy.ndarray, (n_class, n_class), int64): see
            `confusion_matrix`.

    Returns:
        dict: 'iou' and 'class_accuracy' (n_class,), nan for an absent class;
        'miou' and 'mean_class_accuracy', their means over the other classes;
        and 'pixel_accuracy'. All in [0, 1].
    """
    right = np.diag(matrix)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = right / (matrix.sum(axis=1) + matrix.sum(axis=0) - right)
        class_accuracy = right / matrix.sum(axis=1)
        pixel_accuracy = right.sum() / matrix.sum()
    return {
        'iou': iou, 'miou': _mean(iou), 'pixel_accuracy': pixel_accuracy,
        'class_accuracy': class_accuracy,
        'mean_class_accuracy': _mean(class_accuracy)}


def _mean(values):
    return np.nan if np.isnan(values).all() else np.nanmean(values)


def warnings(matrix: np.ndarray, ignored: int, names) -> list[str]:
    """Return what makes a score suspect, a line each.

    Args:
        matrix (numpy.ndarray, (n_class, n_class), int64): see
            `confusion_matrix`.
        ignored (int): number of pixels that do not count.
        names (sequence of str): of the classes.
    """
    lines, counted = [], int(matrix.sum())
    if counted == 0:
        return [f'all {ignored} pixels are ignored: there is no score']
    if ignored > counted:
        lines.append(f'{ignored / (ignored + counted):.1%} of the pixels are '
                     'ignored')
    absent = [name for name, n in zip(names, matrix.sum(axis=1), strict=True)
              if n == 0]
    if absent:
        lines.append(f'{len(absent)} of {len(names)} classes are in no label: '
                     f'{shortened(absent)}')
    predicted = matrix.sum(axis=0)
    if predicted.max() == counted and len(names) > 1:
        lines.append(f'{names[predicted.argmax()]} is predicted everywhere')
    return lines


def category_iou(matrix: np.ndarray) -> dict[str, float]:
    """Return Cityscapes' category -> IoU, of the matrix of its 19 classes."""
    members = np.zeros((len(CITYSCAPES_CATEGORIES), len(matrix)), np.int64)
    for row, classes in zip(members, CITYSCAPES_CATEGORIES.values(),
                            strict=True):
        row[list(classes)] = 1
    iou = scores(members @ matrix @ members.T)['iou']
    return dict(zip(CITYSCAPES_CATEGORIES, iou, strict=True))
