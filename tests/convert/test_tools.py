"""Graphs after TensorFlow's tools, and what options of the exporter add."""
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from conftest import SMALL, convert, needs_tensorflow
from fixture_graph import FixtureGraph
from fixture_nodes import run_tensorflow
from fixture_tools import folded, quantized, without_identities
from fixture_weights import random_weights, smooth_image
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.tensor_pb2 import TensorProto

from convert.conversion import check, check_network, converted_arrays
from convert.frozen_graph import FrozenGraph, find_folded
from convert.name_table import weight_table
from convert.verification import built_in_image, verify
from models import DeepLabV3plusXception65
from models.resize_range import ResizeRange
from models.utils.errors import InputError
from models.weights import WeightsFile

TOOLS = {
    'remove_nodes': without_identities,
    'optimize_for_inference': folded,
    'graph_transforms': lambda graph: folded(graph, everywhere=True),
    'quantize_weights': quantized,
    'all': lambda graph: quantized(folded(graph, everywhere=True)),
}


def equal_labels(source, tmp_path):
    """Convert a graph; compare with TensorFlow on the graph itself."""
    conversion = convert(source, 'voc', tmp_path / 'a.npz')
    found, = verify(conversion, tmp_path / 'a.npz', {
        'built-in': built_in_image(conversion.min_input_size)})
    return found['equal_labels']


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize('tool', TOOLS)
def test_equals_tensorflow_after_tools(random_graphs, tmp_path, tool):
    pb, _ = random_graphs('voc', crop=SMALL)
    graph = TOOLS[tool](GraphDef.FromString(pb.read_bytes()))
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    assert equal_labels(tmp_path / 'g.pb', tmp_path) >= 0.9999


def written(tmp_path, **options):
    """Write a graph with random weights, made with options."""
    weights = options.pop('weights', None) or random_weights(21)
    graph = FixtureGraph(weights, 21, options.pop('crop', SMALL), **options)
    path = tmp_path / 'g.pb'
    path.write_bytes(graph.graph.SerializeToString())
    return path


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize(('scales', 'flip', 'era'), [
    ((0.75, 1.0, 1.25), True, 2018), ((0.5,), False, 2020)])
def test_several_scales_equal_tensorflow(tmp_path, scales, flip, era):
    source = written(tmp_path, scales=scales, flip=flip, era=era,
                     output_stride=16)
    assert equal_labels(source, tmp_path) >= 0.9999
    model = DeepLabV3plusXception65(pretrained_model=tmp_path / 'a.npz')
    assert (model.scales, model.flip) == (scales, flip)
    model = DeepLabV3plusXception65(pretrained_model=tmp_path / 'a.npz',
                                    scales=(1,), flip=False)
    assert (model.scales, model.flip) == ((1,), False)


@needs_tensorflow
@pytest.mark.slow
def test_other_rates_equal_tensorflow(tmp_path):
    source = written(tmp_path, atrous_rates=(6, 12, 18))
    assert equal_labels(source, tmp_path) >= 0.9999
    model = DeepLabV3plusXception65(pretrained_model=tmp_path / 'a.npz')
    assert (model.output_stride, model.atrous_rates) == (8, (6, 12, 18))
    assert WeightsFile(tmp_path / 'a.npz').metadata['format_version'] == 2
    model = DeepLabV3plusXception65(pretrained_model=tmp_path / 'a.npz',
                                    output_stride=16)
    assert model.atrous_rates == (3, 6, 9)


def tampered(graph, change):
    graph = GraphDef.FromString(graph.SerializeToString())
    nodes = {node.name: node for node in graph.node}
    change(graph, nodes)
    return FrozenGraph(graph.SerializeToString(), 'g.pb')


def ones(name, shape):
    return np.ones(shape, np.float32)


def other_weight(graph, nodes):
    """One tower reads a weight of its own."""
    graph.node.add().CopyFrom(nodes['aspp0/weights'])
    graph.node[-1].name = 'other'
    nodes['aspp0_1/Conv2D'].input[1] = 'other'


def other_scale(graph, nodes):
    size = nodes['scaled_1/ResizeBilinear/size'].attr['value'].tensor
    size.tensor_content = np.int32([97, 90]).tobytes()


def sum_of_scales(graph, nodes):
    nodes['ArgMax'].input[0] = 'Sum'
    graph.node.add(name='Sum', op='Sum', input=nodes['Mean'].input)


@pytest.fixture(scope='module')
def scaled_graph():
    return FixtureGraph(ones, 21, SMALL, 16, scales=(1.0, 0.75)).graph


@pytest.mark.parametrize(('change', 'words'), [
    (other_weight, 'no label depends on the weight aspp0/weights'),
    (other_scale, 'which is no scale of the image'),
    (sum_of_scales, 'best class of 0 ResizeBilinear or Mean nodes'),
])
def test_refuses_tampered_scales(scaled_graph, change, words):
    with pytest.raises(InputError, match=words):
        check(tampered(scaled_graph, change), 'voc')
    check(tampered(scaled_graph, lambda graph, nodes: None), 'voc')


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
    ('quantize_weights', other_range, 'dequantised by .*SCALED'),
])
def test_refuses_tampered_tools(tool, change, words):
    graph = TOOLS[tool](FixtureGraph(ones, 21, SMALL).graph)
    source = find_folded(tampered(graph, change))
    with pytest.raises(InputError, match=words):
        list(converted_arrays(check(source, 'voc')))


def weights_of(*dropped, renamed=()):
    """A stand-in for a source with the weights of another network."""
    names = [name for name in weight_table()
             if not any(part in name for part in dropped)]
    for old, new in renamed:
        names = [name.replace(old, new) for name in names]
    return SimpleNamespace(is_graph=False, path='it', weights=dict.fromkeys(
        names, ()))


@pytest.mark.parametrize(('source', 'words'), [
    (weights_of(renamed=[('xception_65', 'xception_71')]),
     r'is another network \(xception_71\); only'),
    (weights_of('decoder/'), 'has no decoder: .*--decoder_output_stride=4'),
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


RANGES = [((100, 121, 0), 2018), ((65, 0, 0), 2020), ((65, 130, 16), 2020)]


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize(('resize_range', 'era'), RANGES)
def test_a_resized_image_equals_tensorflow(tmp_path, resize_range, era):
    source = written(tmp_path, resize_range=resize_range, era=era,
                     output_stride=16)
    convert(source, 'voc', tmp_path / 'a.npz')
    model = DeepLabV3plusXception65(pretrained_model=tmp_path / 'a.npz')
    session = onnxruntime.InferenceSession(
        model.onnx_model(end_to_end=True), providers=['CPUExecutionProvider'])
    for height, width in (90, 160), (240, 130), (33, 65):
        image = smooth_image(height, width)
        wanted, = run_tensorflow(source, ['SemanticPredictions'], image)
        label, = model.predict([image.transpose(2, 0, 1)])
        assert label.shape == (height, width)
        assert (label == wanted).mean() >= 0.9999
        found, = session.run(None, {'ImageTensor': image[np.newaxis]})
        assert (found == wanted).mean() >= 0.9999


@pytest.fixture(scope='module')
def graph_in_range():
    return FixtureGraph(ones, 21, SMALL, 16, era=2020,
                        resize_range=(65, 130, 16)).graph


def test_reads_the_resize_range(graph_in_range):
    source = tampered(graph_in_range, lambda graph, nodes: None)
    assert check(source, 'voc').wiring.resize_range == (65, 130, 16, 0)
    size = ResizeRange(65, 130, 16, 0).size
    assert size(100, 150).tolist() == [65, 97]
    assert size(90, 900).tolist() == [17, 129]


def swapped(graph, nodes):
    merge = nodes['resize_to_range/cond/Merge']
    merge.input[:] = [name.replace('Switch', 'x').replace('x_1', 'Switch')
                      .replace('x', 'Switch_1') for name in merge.input]


def other_number(graph, nodes):
    nodes['resize_to_range/div_1'].op = 'Mul'


def squared(graph, nodes):
    nodes['resize_to_range/mul'].op = 'Pow'


def beside(graph, nodes):
    """The image itself goes on to the network, the resized one nowhere."""
    nodes['pad_to_bounding_box/sub'].input[0] = 'Cast'


def labels_elsewhere(graph, nodes):
    nodes['resize/ResizeNearestNeighbor'].attr['align_corners'].b = False


def labels_not_resized(graph, nodes):
    nodes['resize/ResizeNearestNeighbor'].op = 'Identity'


def cropped(graph, nodes):
    graph.node.add(name='crop', op='CropAndResize', input=['Cast'])
    nodes['resize_to_range/resize/ResizeBilinear'].input[0] = 'crop'


@pytest.mark.parametrize(('change', 'words'), [
    (swapped, 'is not the official exporter'),
    (other_number, 'is not the official exporter'),
    (squared, 'is a Pow, which computes no size'),
    (beside, 'only padding and one resize'),
    (labels_elsewhere, 'align_corners False'),
    (labels_not_resized, 'gives labels at another size'),
    (cropped, 'is a CropAndResize of the image .*only padding and one'),
])
def test_refuses_a_tampered_range(graph_in_range, change, words):
    with pytest.raises(InputError, match=words):
        check(tampered(graph_in_range, change), 'voc')


def test_an_image_that_the_graph_scales(tmp_path):
    graph = FixtureGraph(ones, 21, SMALL).graph
    source = tampered(graph, lambda graph, nodes: nodes['ToFloat/x'].attr[
        'value'].tensor.CopyFrom(TensorProto(
            dtype=1, tensor_content=np.float32(0.5).tobytes())))
    with pytest.raises(InputError, match='export without --min_resize_value, '
                       r'and use demo\.py --max-size'):
        check(source, 'voc')
