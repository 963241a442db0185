"""The exported file, in ONNX Runtime."""
import json
import shutil

import chainer
import chainer.functions as F
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import SMALL, needs_tensorflow
from fixture_nodes import run_tensorflow
from fixture_weights import smooth_image

from models import DeepLabV3plusXception65
from models.weights import named_arrays, write_npz


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(
        path, providers=['CPUExecutionProvider'])
    return session.run(None, {'image': x})[0]


def prepared(model, height, width):
    image = smooth_image(height, width).transpose(2, 0, 1)
    return model.prepare(image.astype(np.float32))[np.newaxis]


@pytest.mark.slow
@pytest.mark.parametrize('output_stride', [8, 16])
def test_gives_the_links_logits(random_graphs, run_script, output_stride):
    _, npz = random_graphs('voc', 8)
    result = run_script('npz2onnx.py', npz, 'a model.onnx',
                        '--output-stride', output_stride)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('a model.onnx: 21 classes, output stride')
    path, = run_script.folder.iterdir()
    model = DeepLabV3plusXception65(
        pretrained_model=npz, output_stride=output_stride, min_input_size=1)
    for size in (65, 65), (100, 71), (129, 257):
        x = prepared(model, *size)
        x = np.concatenate([x, x[:, ::-1]])  # two images
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            expected = model(x).array
        np.testing.assert_allclose(run_onnx(path, x), expected, rtol=0,
                                   atol=1e-3 * np.abs(expected).max())

    metadata = {prop.key: prop.value
                for prop in onnx.load(path).metadata_props}
    assert metadata['task'] == 'voc'
    assert json.loads(metadata['class_names'])[15] == 'person'
    assert metadata['output_stride'] == str(output_stride)
    assert json.loads(metadata['min_input_size']) == [513, 513]
    grey = np.full((3, 600, 600), 200, np.float32)
    np.testing.assert_allclose(
        model.prepare(grey),
        grey * float(metadata['scale']) + float(metadata['offset']), atol=1e-6)


@pytest.mark.slow
def test_gives_probabilities(random_graphs, run_script):
    _, npz = random_graphs('ade20k', 8)
    result = run_script('npz2onnx.py', npz, 'model.onnx', '--probabilities')
    assert result.returncode == 0, result.stderr
    model = DeepLabV3plusXception65(pretrained_model=npz, min_input_size=1)
    x = prepared(model, 70, 101)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        expected = F.softmax(F.resize_images(model(x), (70, 101))).array
    found = run_onnx(run_script.folder / 'model.onnx', x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_refuses(random_graphs, fails, tmp_path):
    pb, npz = random_graphs('voc', 8)
    np.savez(tmp_path / 'other.npz', a=np.zeros(3))
    fails('does not hold a DeepLabV3+', 'npz2onnx.py', tmp_path / 'other.npz',
          'a.onnx')
    fails('an archive: convert it with tf2npz.py', 'npz2onnx.py', pb, 'a.onnx')
    fails('No such file or directory', 'npz2onnx.py', npz, 'no/a.onnx')
    fails('is a folder', 'npz2onnx.py', npz, '.')
    same = shutil.copy(npz, tmp_path / 'same.npz')
    fails('input and output are the same file', 'npz2onnx.py', same, same,
          '--force')
    fails('exists: give --force to overwrite it', 'npz2onnx.py', npz, same)
    assert same.read_bytes() == npz.read_bytes()
    model = DeepLabV3plusXception65(pretrained_model=npz)
    model.decoder.conv_logits.b.array[0] = np.finfo('f').max
    model.decoder.conv_logits.W.array[0] = np.finfo('f').max
    write_npz(tmp_path / 'huge.npz', named_arrays(model).items(), {})
    fails('too large for finite outputs', 'npz2onnx.py',
          tmp_path / 'huge.npz', 'a.onnx')


@pytest.mark.slow
def test_own_classes_without_a_task(run_script, tmp_path):
    model = DeepLabV3plusXception65(n_class=2)
    write_npz(tmp_path / 'a.npz', named_arrays(model).items(), {
        'class_names': ['cat', 'dog'],
        'class_colors': np.array([[0, 0, 9], [9, 0, 0]], np.uint8)})
    result = run_script('npz2onnx.py', tmp_path / 'a.npz', 'a.onnx')
    assert result.returncode == 0, result.stderr
    metadata = {prop.key: prop.value for prop in onnx.load(
        run_script.folder / 'a.onnx').metadata_props}
    assert json.loads(metadata['class_names']) == ['cat', 'dog']
    assert 'task' not in metadata


def labels_of(path, pixels):
    session = onnxruntime.InferenceSession(
        path, providers=['CPUExecutionProvider'])
    assert [(each.name, each.type) for each in (
        *session.get_inputs(), *session.get_outputs())] == [
            ('ImageTensor', 'tensor(uint8)'),
            ('SemanticPredictions', 'tensor(int64)')]
    label, = session.run(None, {'ImageTensor': pixels[np.newaxis]})
    return label[0]


@needs_tensorflow
@pytest.mark.slow
def test_replaces_the_frozen_graph(random_graphs, run_script):
    pb, npz = random_graphs('voc', crop=SMALL)
    result = run_script('npz2onnx.py', npz, 'a.onnx', '--end-to-end')
    assert result.returncode == 0, result.stderr
    assert 'labels 100.000 % equal to those of the npz' in result.stdout
    path = run_script.folder / 'a.onnx'
    pixels = smooth_image(97, 110)
    expected, = run_tensorflow(pb, ['SemanticPredictions'], pixels)
    found = labels_of(path, pixels)
    assert found.shape == (97, 110)
    assert (found == expected[0]).mean() >= 0.9999
    model = DeepLabV3plusXception65(pretrained_model=npz)
    for size in (150, 70), (200, 211):  # beyond the graph's crop
        pixels = smooth_image(*size)
        label, = model.predict([pixels.transpose(2, 0, 1)])
        np.testing.assert_array_equal(labels_of(path, pixels), label)


@pytest.mark.slow
def test_end_to_end_at_several_scales(random_graphs, tmp_path):
    _, npz = random_graphs('voc', crop=SMALL)
    model = DeepLabV3plusXception65(
        pretrained_model=npz, output_stride=16, min_input_size=65,
        scales=(0.75, 1, 1.3), flip=True)
    path = tmp_path / 'a.onnx'
    path.write_bytes(model.onnx_model(end_to_end=True))
    pixels = smooth_image(110, 60)
    label, = model.predict([pixels.transpose(2, 0, 1)])
    assert (labels_of(path, pixels) == label).mean() >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize('output_stride', [8, 16])
def test_a_fixed_size(random_graphs, run_script, output_stride):
    _, npz = random_graphs('voc', crop=SMALL)
    result = run_script('npz2onnx.py', npz, 'a.onnx', '--size', '70x101',
                        '--output-stride', output_stride)
    assert result.returncode == 0, result.stderr
    graph = onnx.load(run_script.folder / 'a.onnx').graph
    constants = {each.name for each in graph.initializer}
    for node in graph.node:
        assert node.op_type != 'Shape'
        if node.op_type in {'Resize', 'Expand'}:
            assert node.input[-1] in constants
    assert [side.dim_value for side in graph.output[
        0].type.tensor_type.shape.dim] == [1, 21, 18, 26]
    onnx.shape_inference.infer_shapes(
        onnx.load(run_script.folder / 'a.onnx'), strict_mode=True)
