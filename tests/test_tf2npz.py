"""The script: conversions against TensorFlow on the same graph, and files."""
import json
import os
import subprocess
import sys
import time

import chainer
import numpy as np
import pytest
from conftest import ROOT, convert, needs_tensorflow
from fixture_graph import FixtureGraph
from fixture_nodes import run_tensorflow
from fixture_weights import palette_weights, smooth_image
from tensorboard.compat.proto.graph_pb2 import GraphDef

from convert.name_table import weight_table
from models import DeepLabV3plusXception65
from models.classes import label_colors
from models.utils.errors import InputError
from models.weights import WeightsFile

LOGITS = 'logits/semantic/BiasAdd'


# What the graph takes the best class of, by era.
SIZED_LOGITS = {2018: 'ResizeBilinear_3', 2020: 'ResizeBilinear_2'}


def forward(model, image):
    x = model.prepare(image.transpose(2, 0, 1).astype(np.float32))
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return model(x[np.newaxis]).array


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize(('task', 'output_stride', 'era', 'crop', 'size'), [
    ('voc', 8, 2018, (513, 513), (513, 513)),
    ('voc', 16, 2020, (257, 257), (150, 211)),  # padded to the crop
    ('ade20k', 8, 2020, (257, 257), (211, 150)),
])
def test_equals_tensorflow(random_graphs, task, output_stride, era, crop,
                           size):
    pb, npz = random_graphs(task, output_stride, era, crop)
    model = DeepLabV3plusXception65(pretrained_model=npz)
    assert model.output_stride == output_stride
    image = smooth_image(*size, seed=5)

    logits, sized, label = run_tensorflow(
        pb, [LOGITS, SIZED_LOGITS[era], 'SemanticPredictions'], image)
    dropped = 1 if task == 'ade20k' else 0
    if dropped:  # the link knows no "other": compare over what it keeps
        label = sized[:, :size[0], :size[1], dropped:].argmax(axis=3)
    logits = logits[..., dropped:].transpose(0, 3, 1, 2)

    np.testing.assert_allclose(forward(model, image), logits, rtol=0,
                               atol=5e-3)
    predicted = model.predict([image.transpose(2, 0, 1)])[0]
    assert len(np.unique(predicted)) >= 10  # the comparison means something
    assert (predicted == label[0]).mean() >= 0.999


def test_metadata(random_graphs):
    pb, npz = random_graphs('voc', 16)
    metadata = WeightsFile(npz).metadata
    sha256 = metadata.pop('source_sha256')
    assert len(sha256) == 64
    assert metadata == {
        'format_version': 1, 'task': 'voc', 'n_class': 21, 'output_stride': 16,
        'min_input_size': [513, 513], 'source_file': pb.name}


def test_table_covers_the_link_once():
    targets = [target for target, _ in weight_table().values()]
    assert len(targets) == len(set(targets)) == 732


def test_reads_without_tensorflow(palette_graphs, run_script, monkeypatch):
    pb, _ = palette_graphs('voc')
    (run_script.folder / 'tensorflow.py').write_text('raise SystemExit(9)')
    monkeypatch.setenv('PYTHONPATH', str(run_script.folder))
    result = run_script('tf2npz.py', 'voc', pb, 'out.npz')
    assert result.returncode == 0, result.stderr
    assert 'output stride 8, input size 513 x 513' in result.stdout
    assert (run_script.folder / 'out.npz').stat().st_size > 160e6


def test_inspect(skeleton, tmp_path, run_script):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    result = run_script('tf2npz.py', '--inspect', tmp_path / 'g.pb')
    assert result.returncode == 0, result.stderr
    assert ('DeepLabV3+ xception_65, voc, 21 classes, output stride 8, input '
            'size 513 x 513\n') in result.stdout
    assert ('aspp0/weights 1x1x2048x256 -> aspp/conv1x1/conv/W\n'
            in result.stdout)
    assert result.stdout.count(' -> ') == 732
    assert not list(run_script.folder.iterdir())


def test_inspect_another_network(tmp_path, fails):
    graph = GraphDef()
    graph.node.add(name='MobilenetV2/Conv/Conv2D', op='Conv2D')
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    fails('is another network (MobilenetV2)', 'tf2npz.py', '--inspect',
          tmp_path / 'g.pb')


@pytest.mark.parametrize(('content', 'words'), [
    (b'', 'is not a frozen TensorFlow graph'),
    (b'a text file, not a graph\n' * 50, 'is not a frozen TensorFlow graph'),
    (b'PK\x03\x04rest', 'is an archive of another kind (unpack it)'),
    (b'\x1f\x8b\x08rest', 'is not a whole archive'),
])
def test_refuses_other_files(fails, tmp_path, content, words):
    (tmp_path / 'graph.pb').write_bytes(content)
    fails(words, 'tf2npz.py', 'voc', tmp_path / 'graph.pb', 'out.npz')


def test_refuses_what_is_not_there(fails, tmp_path):
    fails('No such file', 'tf2npz.py', 'voc', tmp_path / 'no.pb', 'out.npz')


def test_refuses_truncation(fails, palette_graphs, tmp_path):
    pb, _ = palette_graphs('voc')
    (tmp_path / 'cut.pb').write_bytes(pb.read_bytes()[:100_000_000])
    fails('not a whole one', 'tf2npz.py', 'voc', tmp_path / 'cut.pb', 'x.npz')


def test_refuses_the_wrong_task(fails, palette_graphs):
    pb, _ = palette_graphs('cityscapes')
    fails('has 19 outputs, which are not those of voc: give the dataset city',
          'tf2npz.py', 'voc', pb, 'out.npz')


def test_refuses_an_unwritable_target(fails, palette_graphs):
    pb, _ = palette_graphs('voc')
    fails('No such file or directory', 'tf2npz.py', 'voc', pb, 'no/out.npz')


@pytest.mark.parametrize('scope', [
    'MobilenetV2', 'resnet_v1_101', 'xception_41', 'xception_71'])
def test_names_another_network(tmp_path, scope):
    graph = GraphDef()
    name = f'{scope}/conv1/weights'
    graph.node.add(name=name, op='Const')
    graph.node.add(name=f'{scope}/conv1/Conv2D', op='Conv2D', input=['', name])
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    with pytest.raises(InputError, match=f'another network.*{scope}'):
        convert(tmp_path / 'g.pb', 'voc', tmp_path / 'out.npz')


@pytest.fixture(scope='module')
def palette_bytes():
    return FixtureGraph(palette_weights(label_colors('voc')), 21,
                        (513, 513)).graph.SerializeToString()


def node(graph, name):
    return next(node for node in graph.node if node.name == name)


def change_epsilon(graph):
    node(graph, 'aspp0/BatchNorm/FusedBatchNorm').attr['epsilon'].f = 2e-5


def change_stride(graph):
    strides = node(graph, 'aspp0/Conv2D').attr['strides'].list.i
    strides[1] = strides[2] = 2


def change_rate(graph):
    for op in 'SpaceToBatchND', 'BatchToSpaceND':
        block = node(graph, f'aspp3_depthwise/depthwise/{op}/block_shape')
        block.attr['value'].tensor.tensor_content = np.int32([6, 6]).tobytes()


def change_shape(graph):
    tensor = node(graph, 'aspp0/weights').attr['value'].tensor
    tensor.tensor_shape.dim[3].size = 128
    tensor.tensor_content = tensor.tensor_content[:2048 * 128 * 4]


@pytest.mark.parametrize(('change', 'words'), [
    (change_epsilon, 'aspp0/BatchNorm/FusedBatchNorm has eps 1.99'),
    (change_stride, r'aspp0/Conv2D has stride \(2, 2\)'),
    (change_rate, r'aspp3_depthwise/depthwise has pad \(36, 36\)'),
    (change_shape, r'aspp0/weights has shape \(1, 1, 2048, 128\), and must '
                   r'have \(1, 1, 2048, 256\)'),
])
def test_refuses_a_changed_graph(palette_bytes, tmp_path, change, words):
    graph = GraphDef.FromString(palette_bytes)
    change(graph)
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    with pytest.raises(InputError, match=words):
        convert(tmp_path / 'g.pb', 'voc', tmp_path / 'out.npz')
    assert not (tmp_path / 'out.npz').exists()


def test_refuses_what_is_no_regular_file(fails, tmp_path):
    os.mkfifo(tmp_path / 'pipe.pb')
    fails('is no regular file', 'tf2npz.py', 'voc', tmp_path / 'pipe.pb',
          'a.npz')
    fails('is no regular file', 'tf2npz.py', '--inspect', '/dev/zero')


def test_never_writes_over_the_source(skeleton, fails, tmp_path):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    (tmp_path / 'link.pb').symlink_to('g.pb')
    os.link(tmp_path / 'g.pb', tmp_path / 'hard.pb')
    (tmp_path / 'image.png').write_bytes(b'mine')
    for target in ('g.pb', 'link.pb', 'hard.pb', 'image.png',
                   'missing/../g.pb'):
        fails('input and output are the same file', 'tf2npz.py', 'voc',
              tmp_path / 'g.pb', tmp_path / target, '--force', '--verify-on',
              tmp_path / 'image.png')
    assert (tmp_path / 'g.pb').read_bytes() == skeleton


def test_never_replaces_without_force(skeleton, fails, run_script, tmp_path):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    target = tmp_path / 'a.npz'
    target.write_bytes(b'mine')
    command = 'tf2npz.py', 'voc', tmp_path / 'g.pb', target
    fails(f'{target} exists: give --force to overwrite it', *command)
    assert target.read_bytes() == b'mine'
    assert run_script(*command, '--force').returncode == 0
    assert WeightsFile(target).n_class == 21
    target.unlink()
    os.mkfifo(target)
    fails('is no regular file: name another', *command, '--force')


def write_classes(folder, names, colors=None):
    (folder / 'names.txt').write_text('\n'.join(names), encoding='utf-8')
    if colors:
        (folder / 'colors.txt').write_text('\n'.join(colors))


@pytest.mark.slow
def test_own_classes(palette_graphs, run_script, tmp_path):
    pb, _ = palette_graphs('voc')
    names = [f'Größe {i}' for i in range(21)]
    write_classes(tmp_path, names, ['#804080', '1 2 3'] + ['7, 8, 9'] * 19)
    options = ('--class-names', tmp_path / 'names.txt')
    result = run_script('tf2npz.py', 'custom', pb, 'a.npz', *options,
                        '--colors', tmp_path / 'colors.txt')
    assert result.returncode == 0, result.stderr
    model = DeepLabV3plusXception65(
        pretrained_model=run_script.folder / 'a.npz')
    assert model.metadata['class_names'] == names
    assert model.metadata['class_colors'][:3] == [
        [128, 64, 128], [1, 2, 3], [7, 8, 9]]
    result = run_script('npz2onnx.py', 'a.npz', 'a.onnx')
    assert result.returncode == 0, result.stderr
    import onnx
    properties = {each.key: each.value for each in onnx.load(
        run_script.folder / 'a.onnx').metadata_props}
    assert json.loads(properties['class_names']) == names
    assert properties['task'] == 'custom'


@pytest.mark.parametrize(('names', 'colors', 'words'), [
    (['a'], None, 'has 1 lines, and the model 21 classes'),
    (['a'] * 21, None, 'has a twice'),
    (list('abcdefghijklmnopqrstu'), ['1 2'] * 21, "'1 2' is no colour"),
    (list('abcdefghijklmnopqrstu'), ['1 2 256'] * 21, 'is no colour'),
])
def test_refuses_classes(skeleton, fails, tmp_path, names, colors, words):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    write_classes(tmp_path, names, colors)
    options = ['--colors', tmp_path / 'colors.txt'] if colors else []
    fails(words, 'tf2npz.py', 'custom', tmp_path / 'g.pb', 'a.npz',
          '--class-names', tmp_path / 'names.txt', *options)


@pytest.mark.slow
def test_killed_conversion(palette_graphs, run_script):
    pb, npz = palette_graphs('voc')
    command = [sys.executable, ROOT / 'tf2npz.py', 'voc', pb, 'a.npz']
    process = subprocess.Popen(command, cwd=run_script.folder)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(
            path.stat().st_size for path in run_script.folder.iterdir()):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (run_script.folder / 'a.npz').exists()
    assert run_script('tf2npz.py', 'voc', pb, 'a.npz').returncode == 0
    assert (run_script.folder / 'a.npz').read_bytes() == npz.read_bytes()


def test_verify_looks_for_tensorflow_first(run_script, tmp_path):
    """Before a long download, say: the source here does not even exist."""
    (tmp_path / 'tensorflow.py').write_text('raise ImportError')
    result = run_script('tf2npz.py', 'voc', 'nowhere.pb', 'a.npz', '--verify',
                        PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith('error: --verify needs TensorFlow: install')
    assert result.stderr.count('\n') == 1
