"""What a report says of the scores."""
import csv
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from fixture_images import patches, write_tree

from evaluation.labelled_images import LabelledImages
from evaluation.report import (
    PUBLISHED,
    examples,
    result_of,
    verdict,
    write_report,
)
from evaluation.run import State
from evaluation.scores import confusion_matrix
from models.classes import label_colors, label_names

SETTINGS = {'dataset': 'custom', 'split': 'val', 'images': 1,
            'images_of_split': 1, 'output_stride': 8, 'scales': [1.0],
            'flip': False, 'resize_range': None, 'precision': 'float32'}


@pytest.mark.parametrize(('truth', 'guess', 'words'), [
    ([[0, 1], [1, 0]], [[0, 1], [1, 0]], []),
    ([[0, 1], [-1, 0]], [[0, 1], [1, 0]], []),
    ([[-1, -1], [-1, 0]], [[0, 1], [1, 0]], [
        '75.0% of the pixels are ignored', '1 of 2 classes are in no label: b',
        'a is predicted everywhere']),
    ([[-1, -1], [-1, -1]], [[0, 1], [1, 0]], [
        'all 4 pixels are ignored: there is no score']),
    ([[0, 1], [1, 0]], [[1, 1], [1, 1]], ['b is predicted everywhere']),
])
def test_warns_of_suspect_scores(tmp_path, truth, guess, words):
    state = State.of_image(2, 'a', ('', ''), np.array(truth), np.array(guess))
    result = result_of(state, 'ab', SETTINGS, 'a.npz')
    assert result['warnings'] == words
    assert sum(result['true_pixels'].values()) == 4 - result['ignored_pixels']
    assert list(result['predicted_pixels'].values()) == [
        np.sum((np.array(guess) == i) & (np.array(truth) >= 0)) for i in (0, 1)]
    assert 'published' not in result['verdict'].replace('was published', '')
    write_report(tmp_path, result, state.matrix, label_colors('voc')[:2], [])
    page = (tmp_path / 'report.html').read_text()
    assert page.count('<p class=warning>') == len(words)


def test_class_names_with_commas(tmp_path):
    matrix = np.array([[1, 2, 0], [3, 4, 0], [0, 0, 1]])
    result = result_of(State(matrix), ['car, bus', 'a "b"', '$5 \\frac{ $6'],
                       SETTINGS, 'a')
    write_report(tmp_path, result, matrix, label_colors('voc')[:3], [])
    with open(tmp_path / 'confusion_matrix.csv', newline='') as file:
        assert list(csv.reader(file)) == [
            ['true \\ predicted', 'car, bus', 'a "b"', '$5 \\frac{ $6'],
            ['car, bus', '1', '2', '0'], ['a "b"', '3', '4', '0'],
            ['$5 \\frac{ $6', '0', '0', '1']]


CHECK_REPORT = '''<script>onload = () => document.title =
    [...document.images].filter(image => image.naturalWidth).length
    + ' images; fits: '
    + (document.documentElement.scrollWidth <= innerWidth)</script>'''


@pytest.mark.parametrize('dataset', ['voc', 'ade20k'])
def test_report_in_a_browser(browse, tmp_path, dataset):
    names, colors = label_names(dataset), label_colors(dataset)
    truth = patches(dataset, 1)
    images = LabelledImages(dataset, write_tree(dataset, tmp_path, truth))
    matrix = confusion_matrix(truth[0], truth[0], len(names))
    settings = {**SETTINGS, 'dataset': dataset, 'images_of_split': 9}
    perfect = SimpleNamespace(predict=lambda imgs: truth)
    write_report(
        tmp_path, result_of(State(matrix), names, settings, 'a.npz'), matrix,
        colors, list(examples(images, [1.], perfect, colors)))
    n_images = (tmp_path / 'report.html').read_text().count('<img')
    assert n_images == 3
    assert browse(tmp_path / 'report.html', CHECK_REPORT, 600) == (
        f'{n_images} images; fits: true')


@pytest.mark.parametrize(('miou', 'changes', 'words'), [
    (0.7919, {}, 'published 79.14 %, difference +0.05: within 0.1'),
    (0.7890, {}, 'difference -0.24: NOT within 0.1'),
    (0.7919, {'precision': 'bfloat16'}, 'difference +0.05 in bfloat16'),
    (0.7919, {'images': 20}, 'not comparable'),
    (0.7880, {'output_stride': 16}, 'published 78.79'),
    (0.7919, {'resize_range': [1, 513]}, 'no figure was published'),
])
def test_verdict(miou, changes, words):
    assert words in verdict(miou, {
        **SETTINGS, 'dataset': 'cityscapes', 'images': 500,
        'images_of_split': 500, **changes})


def test_readme_has_the_published_scores():
    table = (ROOT / 'README.md').read_text()
    for (_, _, stride, scales, _), miou in PUBLISHED.items():
        if (stride, scales) == (8, (1.0,)):
            assert f'| {miou:.2f} % |' in table
