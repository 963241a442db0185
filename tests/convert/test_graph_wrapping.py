"""What options of the exporter put around the network."""
import chainer
import numpy as np
import onnxruntime
import pytest
from chainercv.links import DeepLabV3plusXception65 as ChainerCVsLink
from conftest import SMALL, convert, needs_tensorflow
from fixture_conversion import equal_labels, ones, tampered, written
from fixture_gpu import StandIn, emulate
from fixture_graph import FixtureGraph
from fixture_nodes import run_tensorflow
from fixture_weights import random_weights, smooth_image, write_graph
from tensorboard.compat.proto.tensor_pb2 import TensorProto

from convert.conversion import check
from models import DeepLabV3plusXception65
from models.resizing import ResizeRange
from models.utils.errors import InputError
from models.weights import WeightsFile


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


def with_a_strong_first(weights):
    """Let the output that is no class have a part in each softmax."""
    def changed(name, shape):
        value = weights(name, shape).copy()
        if name == 'logits/semantic/weights':
            value[..., 0] *= 4
        return value
    return changed


@pytest.fixture(scope='module')
def averaged_ade20k(tmp_path_factory):
    """A graph of ADE20K at two scales, and its npz."""
    folder = tmp_path_factory.mktemp('ade20k')
    write_graph(folder / 'g.pb', 'ade20k', with_a_strong_first(
        random_weights(151)), SMALL, output_stride=16, scales=(0.75, 1.0),
        flip=True)
    convert(folder / 'g.pb', 'ade20k', folder / 'a.npz')
    return folder / 'g.pb', folder / 'a.npz'


@needs_tensorflow
@pytest.mark.slow
def test_averages_with_outputs_that_are_no_classes(averaged_ade20k,
                                                   monkeypatch):
    source, npz = averaged_ade20k
    image = smooth_image(120, 129)
    scores, = run_tensorflow(source, ['Mean'], image)
    wanted = scores[0, :120, :129, 1:].argmax(2)
    image = image.transpose(2, 0, 1)

    model = DeepLabV3plusXception65(pretrained_model=npz)
    session = onnxruntime.InferenceSession(
        model.onnx_model(end_to_end=True), providers=['CPUExecutionProvider'])
    with chainer.using_config('train', False):
        assert model(model.prepare(image)[np.newaxis]).shape[1] == 150
    labels = {
        'ONNX': session.run(
            None, {'ImageTensor': image.transpose(1, 2, 0)[np.newaxis]})[0][0],
        'OpenVINO': model.predict([image])[0],
        'frozen': DeepLabV3plusXception65(
            pretrained_model=npz).freeze().predict([image])[0],
        'Chainer': model.to_chainer().predict([image])[0]}
    for _ in emulate(monkeypatch):
        model = DeepLabV3plusXception65(pretrained_model=npz)
        labels['CuPy'], = model.to_device(StandIn()).predict([image])
    for name, label in labels.items():
        assert (label == wanted).mean() >= 0.9999, name
    model = DeepLabV3plusXception65(pretrained_model=npz)
    model.background_outputs = None
    assert (model.predict([image])[0] == wanted).mean() < 0.998


def test_background_outputs_are_metadata(tmp_path):
    """Parameters stay ChainerCV's; an older program refuses the file."""
    def converted(dataset, n_output, scales):
        graph = FixtureGraph(ones, n_output, SMALL, 16, scales=scales).graph
        (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
        convert(tmp_path / 'g.pb', dataset, tmp_path / 'a.npz')
        return WeightsFile(tmp_path / 'a.npz')

    found = converted('ade20k', 151, (0.75, 1.0))
    assert found.metadata['format_version'] == 3
    np.testing.assert_array_equal(found.background_outputs, np.ones((1, 257)))
    link = ChainerCVsLink(150, min_input_size=(65, 65))
    chainer.serializers.load_npz(found.path, link)
    assert link.decoder.conv_logits.W.shape == (150, 256, 1, 1)
    assert converted('ade20k', 151, None).background_outputs is None
    assert converted('voc', 21, (0.75, 1.0)).background_outputs is None


def other_weight(graph, nodes):
    """One tower reads a weight of its own."""
    graph.node.add().CopyFrom(nodes['aspp0/weights'])
    graph.node[-1].name = 'other'
    nodes['aspp0_1/Conv2D'].input[1] = 'other'


def other_scale(graph, nodes):
    size = nodes['scaled_1/ResizeBilinear/size'].attr['value'].tensor
    size.tensor_content = np.int32([97, 95]).tobytes()


def sum_of_scales(graph, nodes):
    nodes['ArgMax'].input[0] = 'Sum'
    graph.node.add(name='Sum', op='Sum', input=nodes['Mean'].input)


@pytest.fixture(scope='module')
def scaled_graph():
    return FixtureGraph(ones, 21, SMALL, 16, scales=(1.0, 0.75)).graph


@pytest.mark.parametrize(('change', 'words'), [
    (other_weight, 'aspp/conv1x1/conv/W other, and must have aspp0/weights'),
    (other_scale, 'which is no scale of the image'),
    (sum_of_scales, 'best class of 0 ResizeBilinear or Mean nodes'),
])
def test_refuses_tampered_scales(scaled_graph, change, words):
    with pytest.raises(InputError, match=words):
        check(tampered(scaled_graph, change), 'voc')
    check(tampered(scaled_graph, lambda graph, nodes: None), 'voc')


RANGES = [((100, 121, 0), 2018), ((65, 0, 0), 2020), ((65, 130, 16), 2020),
          ((65, 129, 16), 2018)]


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


def lower_limit(graph, nodes):
    """126 for 129, which the factor hides at most sizes."""
    tensor = nodes['resize_to_range/sub/y'].attr['value'].tensor
    tensor.tensor_content = np.float32(-2).tobytes()


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
    (lower_limit, 'is not the official exporter'),
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


@pytest.mark.parametrize(('era', 'longest', 'found', 'limit'), [
    (2018, 513, 497, 497), (2018, 514, 514, 513), (2020, 513, 513, 513)])
def test_the_limit_of_early_2018(era, longest, found, limit):
    graph = FixtureGraph(ones, 21, SMALL, 16, era=era,
                         resize_range=(257, longest, 16)).graph
    wiring = check(tampered(graph, lambda graph, nodes: None), 'voc').wiring
    assert wiring.resize_range == (257, found, 16, int(era == 2018))
    assert wiring.resize_range.size(1000, 4000)[1] == limit
