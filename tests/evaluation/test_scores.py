"""Scores, compared with ChainerCV and cityscapesScripts."""
import importlib

import numpy as np
import pytest
from chainercv.evaluations import eval_semantic_segmentation
from fixture_images import VALUES
from PIL import Image

from evaluation.labelled_images import write_prediction
from evaluation.scores import (
    CITYSCAPES_CATEGORIES,
    category_iou,
    confusion_matrix,
    scores,
)
from models.classes import label_colors, label_names


def random_labels(n_class, n_images, absent=()):
    rng = np.random.default_rng(0)
    present = np.setdiff1d(np.arange(n_class), absent)
    truth = rng.choice([-1, *present], (n_images, 30, 40))
    guess = np.where(rng.random(truth.shape) < 0.7, truth.clip(present[0]),
                     rng.choice(present, truth.shape))
    return truth.astype(np.int32), guess.astype(np.int32)


@pytest.mark.parametrize('absent', [(), (2, 7)])
def test_scores_are_chainercvs(absent):
    truth, guess = random_labels(19, 6, absent)
    matrix = sum(confusion_matrix(t, g, 19)
                 for t, g in zip(truth, guess, strict=True))
    with np.errstate(invalid='ignore'):
        expected = eval_semantic_segmentation(guess, truth)
    assert matrix.dtype == np.int64
    found = scores(matrix)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, name)


def test_scores_of_nothing():
    found = scores(np.zeros((3, 3), np.int64))
    assert np.isnan(found['miou'])


def test_cityscapes_scripts_agree(tmp_path):
    """On the written predictions; the official evaluator reads those."""
    official = importlib.import_module(
        'cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling')
    truth, guess = random_labels(19, 3, absent=[6])
    paths = []
    for i in range(3):
        label_path = tmp_path / f'a_{i}_0_gtFine_labelIds.png'
        ids = np.where(truth[i] < 0, 9, VALUES['cityscapes'][truth[i]])
        Image.fromarray(ids.astype(np.uint8)).save(label_path)
        path = tmp_path / f'a_{i}_0.png'
        write_prediction(path, guess[i], 'cityscapes',
                         label_colors('cityscapes'))
        paths.append((str(path), str(label_path)))
    official.args.evalInstLevelScore = official.args.JSONOutput = False
    official.args.quiet = True
    expected = official.evaluateImgLists(
        *map(list, zip(*paths, strict=True)), official.args)

    matrix = sum(confusion_matrix(t, g, 19)
                 for t, g in zip(truth, guess, strict=True))
    found = scores(matrix)
    for name, iou in zip(label_names('cityscapes'), found['iou'],
                         strict=True):
        np.testing.assert_equal(iou, expected['classScores'][name])
    np.testing.assert_equal(category_iou(matrix), {
        name: expected['categoryScores'][name]
        for name in CITYSCAPES_CATEGORIES})
    assert found['miou'] == pytest.approx(expected['averageScoreClasses'],
                                          abs=1e-15)
