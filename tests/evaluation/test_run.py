"""Evaluations that are resumed."""
import os
import shutil

import numpy as np
import pytest
from conftest import ROOT
from fixture_images import patches, write_tree

from evaluation.labelled_images import LabelledImages
from evaluation.run import (
    State,
    code_sha256,
    evaluate,
    load_state,
    save_state,
)
from models.classes import label_colors
from models.utils.errors import InputError


class Guess:

    """Predicts the patch colours' classes, without a network."""

    n_class = 19

    def predict(self, imgs):
        colors = label_colors('cityscapes').astype(np.float32)
        return [np.argmin(np.abs(
            img.transpose(1, 2, 0)[:, :, np.newaxis] - colors).sum(-1), -1)
            for img in imgs]


def test_goes_on_with_the_same_matrix(tmp_path):
    truth = patches('cityscapes', 5)
    images = LabelledImages(
        'cityscapes', write_tree('cityscapes', tmp_path, truth, 10), 'val')
    path = tmp_path / 'state.npz'
    whole = evaluate(images, Guess(), State.new(19), lambda state: None)
    assert whole.matrix.sum() == truth.size

    by_four = evaluate(images, Guess(), State.new(19), lambda state: None,
                       n_threads=4)
    np.testing.assert_array_equal(by_four.matrix, whole.matrix)
    assert by_four.images == whole.images

    images.label_paths[3].rename(tmp_path / 'kept.png')
    with pytest.raises(FileNotFoundError):  # the run ends in the middle
        evaluate(images, Guess(), State.new(19),
                 lambda state: save_state(path, state, {
                     'a': 1, 'data_dir': 'here'}))
    (tmp_path / 'kept.png').rename(images.label_paths[3])
    with pytest.raises(InputError, match='of a run with a 1, and this one has '
                       '2'):
        load_state(path, {'a': 2}, images)
    again = load_state(path, {'a': 1, 'data_dir': 'there'}, images)
    assert len(again.images) == 3
    again = evaluate(images, Guess(), again, lambda state: None)
    np.testing.assert_array_equal(again.matrix, whole.matrix)
    assert again.image_miou == whole.image_miou


def state_of(root, path):
    """Evaluate two images; return them with the file of the state."""
    images = LabelledImages(
        'cityscapes',
        write_tree('cityscapes', root, patches('cityscapes', 2)), 'val')
    state = evaluate(images, Guess(), State.new(19),
                     lambda state: save_state(path, state, {}))
    assert state.finished
    return images


def test_code_that_affects_scores(tmp_path):
    for name in 'models', 'media', 'evaluation':
        shutil.copytree(ROOT / name, tmp_path / name)
    before = code_sha256(tmp_path)

    def replaced(name, old, new):
        path = tmp_path / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return code_sha256(tmp_path)

    assert replaced('models/head.py', '"""', '"""Also. ') == before
    assert replaced('models/head.py', '\nclass', '\n# Here.\nclass') == before
    assert replaced('media/video.py', 'import', 'import sys, ') == before
    for name in 'models/head.py', 'media/images.py', 'evaluation/scores.py':
        last, before = before, replaced(name, '    return', '    return 1 + ')
        assert before != last


@pytest.mark.parametrize('which', ['image_paths', 'label_paths'])
def test_never_an_old_score(tmp_path, which):
    """Not even where the size and the time of a file are the same."""
    images = state_of(tmp_path, tmp_path / 'state.npz')
    state = load_state(tmp_path / 'state.npz', {}, images)
    assert len(state.images) == 2
    changed = getattr(images, which)[1]
    before, data = changed.stat(), bytearray(changed.read_bytes())
    data[-14] ^= 1
    changed.write_bytes(data)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match=f'{changed} has changed since'):
        load_state(tmp_path / 'state.npz', {}, images)


def test_never_the_score_of_another_list(tmp_path):
    images = state_of(tmp_path, tmp_path / 'state.npz')
    images.names = images.names[::-1]
    with pytest.raises(InputError, match='the list of images has changed'):
        load_state(tmp_path / 'state.npz', {}, images)
