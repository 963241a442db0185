"""Runs of the evaluation scripts."""
import json
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

from command_line.evaluation import check_outputs
from command_line.evaluation_options import parse_args
from evaluation.labelled_images import LabelledImages
from evaluation.run import states_in
from evaluation.scores import scores
from models import DeepLabV3plusXception65
from models.classes import label_colors, label_names
from models.utils.errors import InputError


@pytest.mark.parametrize('output', ['images', 'labels/report'])
def test_predictions_are_not_written_among_inputs(output, tmp_path, capsys):
    args = ['--images', str(tmp_path / 'images'), '--labels', str(
        tmp_path / 'labels'), '--output', str(tmp_path / output)]
    parse_args('voc', '', args)
    parse_args('voc', '', ['--save-predictions', *args[:-1], str(tmp_path)])
    with pytest.raises(SystemExit):
        parse_args('voc', '', ['--save-predictions', *args])
    assert 'a later run would read the predictions' in capsys.readouterr().err


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
        check_outputs(tmp_path / 'report', images, [npz], predictions, force)

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
    assert states_in(tmp_path / 'report') == [state]  # what --force removes


def run_eval(script, root, output, *options):
    return [sys.executable, ROOT / script, '--data-dir', root, '--output',
            output, '--input-size', '65', *map(str, options)]


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
