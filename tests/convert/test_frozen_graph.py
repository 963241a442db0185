"""Graphs after TensorFlow's tools."""
import pytest
from conftest import SMALL, needs_tensorflow
from fixture_conversion import equal_labels, ones, tampered
from fixture_graph import FixtureGraph
from fixture_tools import folded, quantized, without_identities
from tensorboard.compat.proto.graph_pb2 import GraphDef

from convert.conversion import check, converted_arrays
from convert.frozen_graph import find_folded
from models.utils.errors import InputError

TOOLS = {
    'remove_nodes': without_identities,
    'optimize_for_inference': folded,
    'graph_transforms': lambda graph: folded(graph, everywhere=True),
    'quantize_weights': quantized,
    'all': lambda graph: quantized(folded(graph, everywhere=True)),
}


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize('tool', TOOLS)
def test_equals_tensorflow_after_tools(random_graphs, tmp_path, tool):
    pb, _ = random_graphs('voc', crop=SMALL)
    graph = TOOLS[tool](GraphDef.FromString(pb.read_bytes()))
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    assert equal_labels(tmp_path / 'g.pb', tmp_path) >= 0.9999


def shorter_bias(graph, nodes):
    bias = nodes['aspp0/Conv2D_bn_offset'].attr['value'].tensor
    bias.tensor_shape.dim[0].size -= 1
    bias.tensor_content = bias.tensor_content[4:]


def bias_of_another(graph, nodes):
    nodes['aspp0/BatchNorm/FusedBatchNorm'].input[0] = 'aspp0/Relu'


def other_range(graph, nodes):
    nodes['aspp0/weights'].attr['mode'].s = b'SCALED'


@pytest.mark.parametrize(('tool', 'change', 'words'), [
    ('optimize_for_inference', shorter_bias,
     r'aspp0/BatchNorm/beta has shape \(255,\), and must have \(256,\)'),
    ('graph_transforms', bias_of_another, 'aspp0/.* is missing'),
    ('quantize_weights', other_range, 'has mode .*SCALED'),
])
def test_refuses_tampered_tools(tool, change, words):
    graph = TOOLS[tool](FixtureGraph(ones, 21, SMALL).graph)
    source = find_folded(tampered(graph, change))
    with pytest.raises(InputError, match=words):
        list(converted_arrays(check(source, 'voc')))
