"""Graphs after TensorFlow's tools."""
import numpy as np
import pytest
from conftest import SMALL, needs_tensorflow
from fixture_conversion import equal_labels, ones, tampered
from fixture_graph import FixtureGraph
from fixture_tools import (
    constants_folded,
    folded,
    grappled,
    quantized,
    transformed,
    without_identities,
)
from tensorboard.compat.proto.graph_pb2 import GraphDef

from convert.conversion import check, converted_arrays
from convert.name_table import weight_table
from models.utils.errors import InputError

TOOLS = {
    'remove_nodes': without_identities,
    'optimize_for_inference': folded,
    'graph_transforms': lambda graph: folded(graph, everywhere=True),
    'quantize_weights': quantized,
    'all': lambda graph: quantized(folded(graph, everywhere=True)),
    'fold_constants': lambda graph: transformed(
        graph, 'strip_unused_nodes fold_constants(ignore_errors=true)'),
    'fold_constants and batch norms': lambda graph: transformed(
        graph, 'fold_constants(ignore_errors=true) fold_batch_norms '
        'fold_old_batch_norms remove_nodes(op=Identity)'),
    'grappler': grappled,
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
    ('graph_transforms', bias_of_another, 'aspp0/Relu is a Relu'),
    ('quantize_weights', other_range, 'has mode .*SCALED'),
])
def test_refuses_tampered_tools(tool, change, words):
    graph = TOOLS[tool](FixtureGraph(ones, 21, SMALL).graph)
    source = tampered(graph, change)
    with pytest.raises(InputError, match=words):
        list(converted_arrays(check(source, 'voc')))


def unchanged(graph, nodes):
    pass


RENAMING = {
    'fold_constants': constants_folded,
    'fold_constants, then 8 bits': lambda graph: quantized(
        constants_folded(graph)),
    'fold_constants, then batch norms': lambda graph: folded(
        constants_folded(graph), everywhere=True),
    'grappler': lambda graph: constants_folded(graph, by_grappler=True),
}


@pytest.mark.parametrize(('tool', 'scales'), [
    *((tool, None) for tool in RENAMING), ('fold_constants', (1., 0.75))])
def test_renamed_weights(tool, scales):
    graph = FixtureGraph(ones, 21, SMALL, 16, scales=scales).graph
    source = tampered(RENAMING[tool](graph), unchanged)
    conversion = check(source, 'voc')
    assert conversion.weights.keys() == weight_table().keys()


def of_another_layer(graph, nodes):
    """Both branches read one weight."""
    kernel = nodes['aspp2_pointwise/Conv2D'].input[1]
    nodes['aspp1_pointwise/Conv2D'].input[1] = kernel


def of_no_name(graph, nodes):
    """Nothing but the layer that reads it tells what a weight is."""
    for name in 'aspp0/Conv2D', 'aspp1_depthwise/depthwise':
        nodes[nodes[name].input[1]].name = f'c/{len(name)}'
        nodes[name].input[1] = f'c/{len(name)}'


def swapped(graph, nodes):
    inputs = [nodes[f'aspp{i}_pointwise/Conv2D'].input for i in (1, 2)]
    inputs[0][1], inputs[1][1] = inputs[1][1], inputs[0][1]


@pytest.mark.parametrize('change', [of_another_layer, of_no_name, swapped])
def test_a_weight_is_what_a_layer_reads(change):
    """As TensorFlow has it, whatever its name."""
    graph = constants_folded(FixtureGraph(lambda name, shape: np.full(
        shape, len(name) + ('aspp2' in name), np.float32), 21, SMALL).graph)
    source = tampered(graph, change)
    arrays = dict(converted_arrays(check(source, 'voc')))
    for layer, target in (('aspp0/Conv2D', 'aspp/conv1x1/conv/W'),
                          ('aspp1_pointwise/Conv2D',
                           'aspp/atrous1/pointwise/W'),
                          ('aspp2_pointwise/Conv2D',
                           'aspp/atrous2/pointwise/W')):
        read = source.array(source.nodes[source.nodes[layer].input[1]])
        np.testing.assert_array_equal(
            arrays[target], read.transpose(3, 2, 0, 1))


@pytest.mark.parametrize('given', [(), (3.,), (3., 4.)])
def test_constants_without_their_last_values(given):
    """They repeat the last one, or are 0."""
    def shortened(graph, nodes):
        tensor = nodes['aspp0/BatchNorm/beta'].attr['value'].tensor
        tensor.tensor_content = b''
        tensor.float_val.extend(given)

    source = tampered(FixtureGraph(ones, 21, SMALL).graph, shortened)
    values = [*given, *[(given or (0.,))[-1]] * 256][:256]
    np.testing.assert_array_equal(
        source.weight(source.nodes['aspp0/BatchNorm/beta']),
        np.float32(values))
