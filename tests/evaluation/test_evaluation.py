"""The scores, and runs of the evaluation scripts."""
import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chainer.iterators import SerialIterator
from chainercv import datasets
from chainercv.evaluations import eval_semantic_segmentation
from chainercv.utils import apply_to_iterator
from conftest import ROOT, start_script
from fixture_images import VALUES, patches, write_image, write_tree
from PIL import Image

from command_line.evaluation import check_outputs, own_state_path
from command_line.processes import Processes
from evaluation.labelled_images import LabelledImages, write_prediction
from evaluation.report import (
    PUBLISHED,
    example,
    result_of,
    verdict,
    write_report,
)
from evaluation.run import (
    State,
    code_sha256,
    evaluate,
    load_state,
    save_state,
)
from evaluation.scores import (
    CITYSCAPES_CATEGORIES,
    category_iou,
    confusion_matrix,
    scores,
)
from models import DeepLabV3plusXception65
from models.classes import label_colors, label_names
from models.utils.errors import InputError


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
    state = State.new(2).add('a', ('', ''), np.array(truth), np.array(guess))
    settings = {'dataset': 'custom', 'split': 'val', 'images': 1,
                'images_of_split': 1, 'output_stride': 8, 'scales': [1.0],
                'flip': False}
    result = result_of(state.matrix, state.ignored, 'ab', settings, 'a.npz',
                       0.)
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
    settings = {'dataset': 'custom', 'split': None, 'images': 1,
                'images_of_split': 1, 'output_stride': 8, 'scales': [1.],
                'flip': False}
    result = result_of(matrix, 0, ['car, bus', 'a "b"', '$5 \\frac{ $6'],
                       settings, 'a', 0.)
    write_report(tmp_path, result, matrix, label_colors('voc')[:3], [])
    with open(tmp_path / 'confusion_matrix.csv', newline='') as file:
        assert list(csv.reader(file)) == [
            ['true \\ predicted', 'car, bus', 'a "b"', '$5 \\frac{ $6'],
            ['car, bus', '1', '2', '0'], ['a "b"', '3', '4', '0'],
            ['$5 \\frac{ $6', '0', '0', '1']]


def test_nothing_is_overwritten(tmp_path):
    """Inputs never; a folder's own files with --force, or to go on."""
    folders = tmp_path / 'images', tmp_path / 'labels'
    (tmp_path / 'report').mkdir()
    (tmp_path / 'report/predictions').symlink_to(tmp_path / 'labels')
    for folder in folders:
        write_image(folder / 'a.png')
    images = LabelledImages('voc', folders=folders)
    npz = tmp_path / 'report/result.json'
    (tmp_path / 'model.npz').touch()

    def check(npz=tmp_path / 'model.npz', predictions=False, force=False):
        check_outputs(tmp_path / 'report', images, (), [npz], predictions,
                      force)

    check()
    for force in False, True:
        with pytest.raises(InputError, match=r'predictions/a\.png is read and'):
            check(predictions=True, force=force)
    npz.touch()
    with pytest.raises(InputError, match=r'result\.json is read and would be'):
        check(npz, force=True)
    with pytest.raises(InputError, match=r'result\.json exists: give --force'):
        check()
    check(force=True)
    mine = tmp_path / 'report/state_of_the_art.npz'
    mine.touch()
    with pytest.raises(InputError, match=r'result\.json exists: give --force'):
        check()
    state = tmp_path / 'report/state_0_of_2.npz'
    state.touch()
    check()
    with pytest.raises(InputError, match=r'state_0_of_2\.npz is read and wou'):
        check(state, force=True)
    with pytest.raises(InputError, match=r'is in .*images, and what is wr'):
        check_outputs(folders[0] / 'report', images, folders, [], False, True)
    own_state_path(tmp_path / 'report', Processes(), force=True)
    assert mine.exists()
    assert not state.exists()


def run_eval(script, root, output, *options):
    return [sys.executable, ROOT / script, '--data-dir', root, '--output',
            output, '--input-size', '65', *map(str, options)]


CHECK_REPORT = '''<script>onload = () => document.title =
    [...document.images].filter(image => image.naturalWidth).length
    + ' images; fits: '
    + (document.documentElement.scrollWidth <= innerWidth)</script>'''


@pytest.mark.parametrize('dataset', ['voc', 'ade20k'])
def test_report_in_a_browser(browse, tmp_path, dataset):
    names, colors = label_names(dataset), label_colors(dataset)
    truth, = patches(dataset, 1)
    matrix = confusion_matrix(truth, truth, len(names))
    settings = {'dataset': dataset, 'split': 'val', 'images': 1,
                'images_of_split': 9, 'output_stride': 8, 'scales': [1.],
                'flip': False}
    write_report(
        tmp_path, result_of(matrix, 0, names, settings, 'a.npz', 0.), matrix,
        colors, [example('Best', 'a', 1., np.zeros((3, 72, 96), 'f'), truth,
                         truth, colors)])
    n_images = (tmp_path / 'report.html').read_text().count('<img')
    assert n_images == 4
    assert browse(tmp_path / 'report.html', CHECK_REPORT, 600) == (
        f'{n_images} images; fits: true')


def chainercvs_scores(dataset, root, model):
    """Do what ChainerCV's example of an evaluation does."""
    data = {
        'voc': lambda: datasets.VOCSemanticSegmentationDataset(
            str(root / 'VOCdevkit/VOC2012'), 'val'),
        'ade20k': lambda: datasets.ADE20KSemanticSegmentationDataset(
            str(root), 'val'),
        'cityscapes': lambda: datasets.CityscapesSemanticSegmentationDataset(
            str(root), 'fine', 'val')}[dataset]()
    iterator = SerialIterator(data, 1, repeat=False, shuffle=False)
    _, predictions, labels = apply_to_iterator(model.predict, iterator)
    with np.errstate(invalid='ignore'):
        return eval_semantic_segmentation(*predictions, *labels)


@pytest.mark.slow
@pytest.mark.parametrize('dataset', ['cityscapes', 'voc', 'ade20k'])
def test_whole_run(palette_graphs, tmp_path, dataset):
    _, npz = palette_graphs(dataset)
    root = write_tree(dataset, tmp_path / 'data', patches(dataset, 3), 30)
    output = tmp_path / 'out'
    result = subprocess.run(
        run_eval(f'eval_{dataset}.py', root, output, '--pretrained-model',
                 npz, '--save-predictions'),
        capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr

    images = LabelledImages(dataset, root, 'val')
    model = DeepLabV3plusXception65(pretrained_model=npz, min_input_size=65)
    expected = chainercvs_scores(dataset, root, model)
    found = json.loads((output / 'result.json').read_text())
    assert found['miou'] == expected['miou']
    assert 0.1 < found['miou'] < 0.9  # a part of the labels was made wrong
    assert found['pixel_accuracy'] == expected['pixel_accuracy']
    np.testing.assert_array_equal(
        np.array(list(found['iou'].values()), float), expected['iou'])
    assert list(found['iou']) == list(label_names(dataset))
    assert f'mean IoU : {found["miou"]:.4f}' in result.stdout
    matrix = np.loadtxt(output / 'confusion_matrix.csv', delimiter=',',
                        skiprows=1, usecols=range(1, model.n_class + 1))
    np.testing.assert_array_equal(
        scores(matrix.astype(np.int64))['miou'], expected['miou'])
    page = (output / 'report.html').read_text()
    assert 'http' not in page  # needs nothing from elsewhere
    assert page.count('<figure>') == 3
    prediction = Image.open(output / f'predictions/{images.names[0]}.png')
    assert prediction.mode == ('P' if dataset == 'voc' else 'L')
    label = model.predict([images[0][0]])[0]
    np.testing.assert_array_equal(prediction, VALUES[dataset][label])
    if dataset == 'voc':
        check_run_again(run_eval('eval_voc.py', root, output,
                                 '--pretrained-model', npz,
                                 '--save-predictions'), images, result.stdout)
        np.testing.assert_array_equal(
            prediction.convert('RGB'), label_colors(dataset)[label])


@pytest.mark.slow
@pytest.mark.parametrize('dataset', ['cityscapes', 'ade20k'])
def test_splits_without_labels(palette_graphs, tmp_path, dataset):
    """Cityscapes' labels are all ignored there, and ADE20K has none."""
    _, npz = palette_graphs(dataset)
    truth = patches(dataset, 2)
    root = write_tree(dataset, tmp_path / 'data', truth)
    if dataset == 'ade20k':
        (root / 'release_test').mkdir()
        (root / 'ADEChallengeData2016/images/validation').rename(
            root / 'release_test/testing')
    else:
        for folder in 'leftImg8bit', 'gtFine':
            (root / folder / 'val').rename(root / folder / 'test')
        for path in root.glob('gtFine/test/*/*.png'):
            Image.fromarray(np.zeros((72, 96), np.uint8)).save(path)
    result = subprocess.run(
        run_eval(f'eval_{dataset}.py', root, tmp_path / 'out', '--split',
                 'test', '--pretrained-model', npz, '--save-predictions'),
        capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f'warning: all {truth.size} pixels are ignored: there is no score',
        f'2 label images: {tmp_path}/out/predictions']
    assert not (tmp_path / 'out/result.json').exists()
    paths = sorted((tmp_path / 'out/predictions').glob('*.png'))
    equal = [np.asarray(Image.open(path)) == VALUES[dataset][label]
             for path, label in zip(paths, truth, strict=True)]
    assert np.mean(equal) > 0.8


def check_run_again(command, images, before):
    """A finished run says so; changed labels are never scored as before."""

    def run(*options):
        return subprocess.run([*command, *options], capture_output=True,
                              text=True, check=False, timeout=300)

    first, _, rest = run().stdout.partition('\n')
    assert 'all 3 images were evaluated by 20' in first
    assert first.endswith('; --force evaluates anew')
    assert rest == before
    label = np.asarray(Image.open(images.label_paths[1])).copy()
    label[:] = 255
    Image.fromarray(label).save(images.label_paths[1])
    result = run()
    assert result.returncode == 1
    assert f'error: {images.label_paths[1]} has changed since' in result.stderr
    result = run('--force')
    assert result.returncode == 0, result.stderr
    assert result.stdout != before


def same_matrix(*folders):
    one, other = ((folder / 'confusion_matrix.csv').read_bytes()
                  for folder in folders)
    assert one == other


def images_done(state):
    return len(json.loads(str(np.load(state)['images'])))


def end_early(command, state, number):
    """Send a signal once the state has changed; return done, and stderr."""
    before = state.stat().st_mtime_ns if state.exists() else None
    process = start_script(*command[1:], '--save-interval', 0)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (
            not state.exists() or state.stat().st_mtime_ns == before):
        time.sleep(0.01)
    process.send_signal(number)
    _, text = process.communicate(timeout=120)
    assert process.returncode == (
        -number if number == signal.SIGKILL else 128 + number)
    return images_done(state), text


@pytest.mark.slow
def test_killed_and_taken_up_again(palette_graphs, tmp_path):
    _, npz = palette_graphs('voc')
    root = write_tree('voc', tmp_path / 'data', patches('voc', 24), 30)
    options = ('--pretrained-model', npz, '--threads', 1)
    whole = run_eval('eval_voc.py', root, tmp_path / 'whole', *options)
    subprocess.run(whole, check=True, capture_output=True, timeout=300)
    broken = run_eval('eval_voc.py', root, tmp_path / 'broken', *options)
    state = tmp_path / 'broken/state.npz'
    done = end_early(broken, state, signal.SIGKILL)[0]
    assert 0 < done < 24
    before, (done, text) = done, end_early(broken, state, signal.SIGTERM)
    assert before < done < 24
    assert f'interrupted after {done} of 24 images; the same command' in text
    assert 'Traceback' not in text
    result = subprocess.run(broken, check=True, capture_output=True,
                            text=True, timeout=300)
    assert f'resuming after {done} of 24 images' in result.stdout
    same_matrix(tmp_path / 'whole', tmp_path / 'broken')
    other = subprocess.run([*broken, '--flip'], capture_output=True,
                           text=True, check=False, timeout=300)
    assert other.returncode == 1
    assert 'of a run with flip False, and this one has True' in other.stderr
    assert other.stderr.count('\n') == 1


@pytest.mark.parametrize(('miou', 'images', 'stride', 'words'), [
    (0.7919, 500, 8, 'published 79.14 %, difference +0.05: within 0.1'),
    (0.7890, 500, 8, 'difference -0.24: NOT within 0.1'),
    (0.7919, 20, 8, 'not comparable'),
    (0.7880, 500, 16, 'published 78.79'),
])
def test_verdict(miou, images, stride, words):
    settings = {'dataset': 'cityscapes', 'split': 'val', 'images': images,
                'images_of_split': 500, 'output_stride': stride,
                'scales': [1.0], 'flip': False}
    assert words in verdict(miou, settings)


def test_readme_has_the_published_scores():
    table = (ROOT / 'README.md').read_text()
    for (_, _, stride, scales, _), miou in PUBLISHED.items():
        if (stride, scales) == (8, (1.0,)):
            assert f'| {miou:.2f} % |' in table


@pytest.mark.slow
def test_shared_out_among_processes(palette_graphs, tmp_path):
    _, npz = palette_graphs('voc')
    root = write_tree('voc', tmp_path / 'data', patches('voc', 5), 30)

    def run(n, script='eval_voc.py', n_images=5):
        output = tmp_path / f'{n}_{n_images}'
        mpiexec = [Path(sys.executable).parent / 'mpiexec', '-n', str(n)]
        return output, subprocess.run(
            (mpiexec if n > 1 else []) + run_eval(
                script, root, output, '--pretrained-model', npz, '--limit',
                n_images),
            capture_output=True, text=True, check=False, timeout=300)

    folders = {}
    for n, n_images in (1, 5), (2, 5), (1, 2), (3, 2):
        folders[n, n_images], result = run(n, n_images=n_images)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count('mean IoU') == 1
    same_matrix(folders[1, 5], folders[2, 5])
    same_matrix(folders[1, 2], folders[3, 2])

    images = LabelledImages('voc', root, 'val')
    images.label_paths[3].write_bytes(b'no picture')
    shutil.rmtree(tmp_path / '2_5')
    _, result = run(2)
    assert result.returncode != 0
    assert f'error: {images.label_paths[3]} cannot be read' in result.stderr


@pytest.mark.slow
def test_a_signal_to_processes_of_which_one_is_done(palette_graphs, tmp_path):
    """The others save what they have, before all end."""
    _, npz = palette_graphs('voc')
    root = write_tree('voc', tmp_path / 'data', patches('voc', 8), 30)
    for path in sorted((root / 'VOCdevkit/VOC2012').glob('*/*.*'))[1::2]:
        with Image.open(path) as image:  # of the second process
            image.resize((900, 800), 0).save(path, 'PNG')
    mpiexec = Path(sys.executable).parent / 'mpiexec'
    with subprocess.Popen(
            [mpiexec, '-n', '2', *run_eval(
                'eval_voc.py', root, tmp_path / 'out', '--pretrained-model',
                npz, '--save-interval', '1000')],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (
                tmp_path / 'out/state_0_of_2.npz').exists():
            time.sleep(0.01)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert images_done(tmp_path / 'out/state_0_of_2.npz') == 4
    assert images_done(tmp_path / 'out/state_1_of_2.npz') < 4
