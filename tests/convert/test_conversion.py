"""Which networks and datasets convert, and what is said of others."""
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import convert
from fixture_graph import FixtureGraph
from tensorboard.compat.proto.graph_pb2 import GraphDef

from convert.conversion import check, check_network
from convert.frozen_graph import FrozenGraph
from convert.name_table import weight_table
from models import DeepLabV3plusXception65
from models.utils.errors import InputError


def test_datasets_of_python(tmp_path):
    (tmp_path / 'g.pb').write_bytes(FixtureGraph(
        lambda name, shape: np.ones(shape, 'f'), 7, (65, 65)
    ).graph.SerializeToString())
    with pytest.raises(InputError, match='are not those of coco: give'):
        convert(tmp_path / 'g.pb', 'coco', tmp_path / 'a.npz')
    convert(tmp_path / 'g.pb', 'custom', tmp_path / 'a.npz')
    assert DeepLabV3plusXception65(
        pretrained_model=tmp_path / 'a.npz').n_class == 7


def weights_of(*dropped, renamed=()):
    """A stand-in for a source with the weights of another network."""
    names = [name for name in weight_table()
             if not any(part in name for part in dropped)]
    for old, new in renamed:
        names = [name.replace(old, new) for name in names]
    return SimpleNamespace(is_graph=False, path='it', names=names)


@pytest.mark.parametrize(('source', 'words'), [
    (weights_of(renamed=[('xception_65', 'xception_71')]),
     r'is another network \(xception_71\); only'),
    (weights_of('decoder/'), r'has no decoder \(--decoder_output_stride=4\)'),
    (weights_of('image_pooling'), 'has no image pooling'),
    (weights_of('aspp1_', 'aspp2_', 'aspp3_'), 'has no atrous branches'),
    (weights_of('aspp', 'decoder', 'logits', 'image_pooling', 'concat_p'),
     'is a backbone without the head'),
    (weights_of(renamed=[('aspp1_pointwise', 'aspp1')]),
     'has plain convolutions in the ASPP'),
    (weights_of(renamed=[('decoder_conv0_pointwise', 'decoder_conv0')]),
     'has plain convolutions in the decoder'),
    (weights_of(renamed=[('aspp1_', 'meta_architecture/branch0')]),
     'has a dense prediction cell'),
])
def test_says_what_it_is(source, words):
    with pytest.raises(InputError, match=words):
        check_network(source)


def test_a_graph_that_is_not_frozen():
    graph = GraphDef()
    graph.node.add(name='xception_65/weights', op='VariableV2')
    with pytest.raises(InputError, match='is a graph that is not frozen'):
        check(FrozenGraph(graph.SerializeToString(), 'g.pb'), 'voc')


def test_what_has_no_effect_on_labels(skeleton):
    graph = GraphDef.FromString(skeleton)
    assert check(FrozenGraph(skeleton, 'g.pb'), 'voc').source.ignored == []
    second, = (node for node in graph.node
               if node.name == 'logits/semantic/Conv2D')
    graph.node.add().CopyFrom(second)
    graph.node[-1].name = 'depth/Conv2D'
    graph.node.add(name='global_step', op='VariableV2')
    source = FrozenGraph(graph.SerializeToString(), 'g.pb')
    assert check(source, 'voc').source.ignored == ['depth/Conv2D']
