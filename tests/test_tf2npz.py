"""Conversions against TensorFlow on the same graph, and what is refused."""
import chainer
import numpy as np
import pytest
from conftest import convert, needs_tensorflow
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


@pytest.mark.parametrize(('content', 'words'), [
    (b'', 'is empty'),
    (b'a text file, not a graph\n' * 50, 'is not a frozen TensorFlow graph'),
    (b'PK\x03\x04rest', 'zip archive'),
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
    fails('19 outputs where voc has 21: it is a graph of cityscapes',
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
    graph.node.add(name=f'{name}/read', op='Identity', input=[name])
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


def rename_weight(graph):
    old = 'aspp1_pointwise/weights'
    node(graph, f'{old}/read').name = 'aspp1_pointwise/weight/read'
    node(graph, old).name = 'aspp1_pointwise/weight'
    node(graph, 'aspp1_pointwise/weight/read').input[0] = (
        'aspp1_pointwise/weight')


def change_shape(graph):
    tensor = node(graph, 'aspp0/weights').attr['value'].tensor
    tensor.tensor_shape.dim[3].size = 128
    tensor.tensor_content = tensor.tensor_content[:2048 * 128 * 4]


@pytest.mark.parametrize(('change', 'words'), [
    (change_epsilon, 'aspp0/BatchNorm/FusedBatchNorm has epsilon'),
    (change_stride, r'aspp0/Conv2D has stride \(2, 2\)'),
    (change_rate, r'aspp3_depthwise/depthwise has padding \(36, 36\)'),
    (rename_weight, r'aspp1_pointwise/weights \(1, 1, 2048, 256\) is missing; '
                    r'aspp1_pointwise/weight .* is unknown \(nearest name: '
                    r'aspp1_pointwise/weights\)'),
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
