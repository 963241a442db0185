"""What --verify finds."""
import numpy as np
import pytest
from conftest import ROOT, SMALL, convert, needs_tensorflow
from tensorboard.compat.proto.graph_pb2 import GraphDef

from convert.verification import built_in_image, verify
from models.utils.errors import InputError


@needs_tensorflow
@pytest.mark.slow
def test_verify_finds_a_difference(random_graphs, run_script, tmp_path):
    """TensorFlow runs another graph than was converted."""
    pb, _ = random_graphs('voc', crop=SMALL)
    result = run_script('tf2npz.py', 'voc', pb, 'good.npz', '--verify')
    assert result.returncode == 0, result.stderr
    assert 'labels 99.99' in result.stdout or 'labels 100' in result.stdout
    assert not result.stderr  # nor what TensorFlow logs

    conversion = convert(pb, 'voc', tmp_path / 'a.npz')
    image = {'built-in': built_in_image(conversion.min_input_size)}
    arrays = dict(np.load(tmp_path / 'a.npz'))
    arrays['decoder/conv2/pw_bn/beta'] += np.float32(0.2)
    np.savez(tmp_path / 'b.npz', **arrays)
    with pytest.raises(InputError, match='does not do what the graph does'):
        list(verify(conversion, tmp_path / 'b.npz', image))


@needs_tensorflow
@pytest.mark.slow
def test_verify_finds_other_padding(random_graphs, tmp_path):
    graph = GraphDef.FromString(
        random_graphs('voc', crop=SMALL)[0].read_bytes())
    mean, = (node for node in graph.node if node.name == 'Reshape/tensor')
    mean.attr['value'].tensor.tensor_content = bytes(12)  # black, for grey
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    conversion = convert(tmp_path / 'g.pb', 'voc', tmp_path / 'a.npz')
    with pytest.raises(InputError, match='does not do what the graph does'):
        list(verify(conversion, tmp_path / 'a.npz', {
            'built-in': built_in_image(conversion.min_input_size)}))


@needs_tensorflow
@pytest.mark.slow
def test_verify_feeds_an_image_of_any_name(random_graphs, run_script,
                                           tmp_path):
    graph = GraphDef.FromString(
        random_graphs('voc', crop=SMALL)[0].read_bytes())
    for node in graph.node:
        node.name = node.name.replace('ImageTensor', 'Photograph')
        for i, name in enumerate(node.input):
            node.input[i] = name.replace('ImageTensor', 'Photograph')
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    result = run_script('tf2npz.py', 'voc', tmp_path / 'g.pb', 'a.npz',
                        '--verify-on', ROOT / 'assets/street.png')
    assert result.returncode == 0, result.stderr
