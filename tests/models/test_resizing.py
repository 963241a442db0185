"""Labels by rows, against Chainer's resize and argmax of whole arrays."""
import tracemalloc

import chainer.functions as F
import numpy as np
import pytest

from models.resizing import label_map


def random_logits(n_class, *sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n_class, *size)).astype(np.float32)
            for size in sizes]


def whole_scores(logits, size):
    resized = [F.resize_images(each[np.newaxis], size) for each in logits]
    if len(resized) > 1:
        resized = [F.softmax(each) for each in resized]
    return sum(each.array[0] for each in resized)


@pytest.mark.parametrize(('n_class', 'sizes', 'size', 'crop'), [
    (21, [(33, 33)], (129, 129), (129, 129)),
    (3, [(26, 18)], (101, 71), (77, 71)),
    (5, [(9, 7), (17, 13), (5, 4)], (33, 25), (33, 20)),
    (2, [(1, 1)], (4, 3), (4, 3)),
    (2, [(2, 1)], (5, 1), (5, 1)),
    (4, [(5, 6)], (1, 1), (1, 1)),
    (4, [(40, 30)], (11, 7), (10, 7)),  # fewer rows than there were
])
def test_equals_resize_and_argmax(n_class, sizes, size, crop):
    logits = random_logits(n_class, *sizes)
    label = label_map(logits, size, crop)
    scores = whole_scores(logits, size)[:, :crop[0], :crop[1]]
    assert label.shape == crop
    assert label.dtype == np.int32
    chosen = np.take_along_axis(scores, label[np.newaxis], 0)[0]
    # Equal but where rounding decides between two classes.
    np.testing.assert_allclose(chosen, scores.max(axis=0), rtol=0, atol=1e-5)
    assert (label == scores.argmax(axis=0)).mean() > .99


@pytest.mark.parametrize('n_class', [1, 4])
def test_channels_that_are_no_classes(n_class):
    logits = random_logits(5, (9, 7), (17, 13))
    label = label_map(logits, (33, 25), (33, 25), n_class)
    scores = whole_scores(logits, (33, 25))[:n_class]
    assert (label == scores.argmax(axis=0)).mean() > .99
    assert label.max() == n_class - 1


def test_takes_the_lowest_of_equal_classes():
    logits = np.zeros((3, 4, 4), np.float32)
    assert (label_map([logits], (9, 9), (9, 9)) == 0).all()


def test_holds_no_full_size_scores():
    size = 257, 513
    logits = random_logits(150, (65, 129))
    tracemalloc.start()
    try:
        label_map(logits, size, size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.2 * 150 * size[0] * size[1] * 4
