"""Graphs with the right weights, wired in another way or with bad values."""
import numpy as np
import pytest
from conftest import convert, needs_tensorflow
from fixture_conversion import equal_labels, written
from fixture_graph import FixtureGraph
from fixture_weights import palette_weights
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.types_pb2 import DT_HALF, DT_INT64, DT_STRING

from convert.conversion import check, converted_arrays
from convert.frozen_graph import FrozenGraph
from convert.graph_structure import read_wiring
from convert.name_table import weight_table
from models import DeepLabV3plusXception65
from models.classes import label_colors
from models.utils.errors import InputError
from models.weights import WeightsFile


def node(graph, name):
    return next(node for node in graph.node if node.name == name)


def retarget(name, index, tensor):
    def change(graph):
        node(graph, name).input[index] = tensor
    return change


def swap(name):
    def change(graph):
        inputs = node(graph, name).input
        inputs[0], inputs[1] = inputs[1], inputs[0]
    return change


def set_attribute(name, attribute, field, value):
    def change(graph):
        setattr(node(graph, name).attr[attribute], field, value)
    return change


def softmax_first(graph):
    graph.node.add(name='Early', op='Softmax',
                   input=['logits/semantic/BiasAdd'])
    node(graph, 'ResizeBilinear_2').input[0] = 'Early'


def set_constant(name, *values):
    def change(graph):
        tensor = node(graph, name).attr['value'].tensor
        tensor.tensor_content = b''
        tensor.ClearField('float_val')
        tensor.float_val.extend(values)
    return change


def twice(graph):
    graph.node.add().CopyFrom(node(graph, 'aspp0/weights'))


def loop(graph):
    node(graph, 'aspp0/BatchNorm/gamma/read').input[0] = (
        'aspp0/BatchNorm/gamma/read')


def content(name, data):
    def change(graph):
        tensor = node(graph, name).attr['value'].tensor
        tensor.ClearField('float_val')
        tensor.tensor_content = data
    return change


def swap_sides(graph):
    dims = node(graph, 'xception_65/entry_flow/conv1_2/weights').attr[
        'value'].tensor.tensor_shape.dim
    dims[2].size, dims[3].size = dims[3].size, dims[2].size


def huge(graph):
    dims = node(graph, 'aspp0/weights').attr['value'].tensor.tensor_shape.dim
    dims[3].size = 1 << 40


def int64(graph):
    tensor = node(graph, 'aspp0/BatchNorm/beta').attr['value'].tensor
    tensor.dtype = DT_INT64
    tensor.ClearField('float_val')
    tensor.int64_val.append(1)


def reverse_channels(graph):
    graph.node.add(name='Reversed', op='ReverseV2', input=['Pad', 'stack'])
    node(graph, 'Squeeze_2').input[0] = 'Reversed'


def second_image(graph):
    graph.node.add(name='Second', op='Placeholder')
    node(graph, 'Pad').input[0] = 'Second'


def string_scale(graph):
    tensor = node(graph, 'mul_1/x').attr['value'].tensor
    tensor.dtype = DT_STRING
    tensor.tensor_content = b''
    tensor.ClearField('float_val')
    tensor.string_val.append(b'small')


def other_block(graph):
    scope = f'{MIDDLE}/separable_conv2_depthwise/depthwise'
    tensor = node(graph, f'{scope}/BatchToSpaceND/block_shape').attr[
        'value'].tensor
    tensor.tensor_content = np.array([4, 4], np.int32).tobytes()


def set_integers(name, *values):
    def change(graph):
        node(graph, name).attr['value'].tensor.tensor_content = np.int32(
            values).tobytes()
    return change


def pooling(side):
    def change(graph):
        node(graph, 'AvgPool2D/AvgPool').attr['ksize'].list.i[1] = side
    return change


def labels_of_quarter_size(graph):
    node(graph, 'ArgMax').input[0] = 'ResizeBilinear_2'


def second_output(graph):
    graph.node.add(name='Second', op='ArgMax', input=[
        'ResizeBilinear_2', 'ArgMax/dimension'])


def nameless(graph):
    node(graph, 'aspp0/Conv2D').name = ''
    node(graph, 'aspp0/BatchNorm/FusedBatchNorm').input[0] = ''


def half_first(graph):
    graph.node.add(name='half', op='Mul', input=['ToFloat_1', 'mul_1/x'])
    node(graph, 'mul').input[0] = 'half'


def huge_crop(graph):
    pooling(9000)(graph)
    set_integers('Shape_5', 1, 8 * 9000 - 7, 513, 3)(graph)
    for name in 'decoder/ResizeBilinear_1/size', 'ResizeBilinear_2/size':
        set_integers(name, 2 * 9000 - 1, 129)(graph)


def computed_size(graph):
    node(graph, 'ResizeBilinear_3').input[1] = 'ToInt32'


BLOCK2 = 'xception_65/entry_flow/block2/unit_1/xception_module'


MIDDLE = 'xception_65/middle_flow/block1/unit_3/xception_module'


@pytest.mark.parametrize(('change', 'words'), [
    (retarget('decoder/feature_projection0/Conv2D', 0,
              f'{BLOCK2}/separable_conv1_pointwise/BatchNorm/FusedBatchNorm'),
     'decoder/feature_proj reads FusedBatchNorm .*conv1_.*must read .*conv2_'),
    (retarget('decoder/feature_projection0/Conv2D', 0,
              f'{BLOCK2}/Relu_2'),
     'decoder/feature_proj reads Relu'),
    (swap('concat'), 'pointwise/Relu is a Relu, and must be a AvgPool'),
    (swap('decoder/concat'), 'FusedBatchNorm, and must be a ConcatV2'),
    (set_integers('decoder/ResizeBilinear_1/size', 65, 65),
     r'decoder/ResizeBilinear_1 has size \[65, 65\], and .* \[129, 12'),
    (set_integers('ResizeBilinear_2/size', 65, 65),
     r'ResizeBilinear_2 has size \[65, 65\]'),
    (retarget('ArgMax', 0, 'logits/semantic/BiasAdd'),
     'ArgMax takes the best class of 0 ResizeBilinear or Mean nodes'),
    (retarget('ArgMax', 0, 'nowhere'),
     'nowhere is missing, and'),
    (retarget('ArgMax', 0, 'aspp0/Relu'), 'best class of 0 ResizeBilinear'),
    (second_output, 'best class of 2 ResizeBilinear or Mean'),
    (retarget(f'{MIDDLE}/separable_conv2_depthwise/depthwise/SpaceToBatchND',
              0, f'{MIDDLE}/separable_conv1_pointwise/BatchNorm/'
              'FusedBatchNorm'),
     'unit_3/.*conv1_pointwise/BatchNorm/FusedBatchNorm is a .*be a Relu'),
    (retarget(f'{MIDDLE}/add', 1, 'xception_65/middle_flow/block1/unit_1/'
              'xception_module/add'), 'unit_1/.*add is a Add, and must'),
    (softmax_first, 'Early is a Softmax, and must be a BiasAdd'),
    (retarget('aspp0/Conv2D', 0, 'nowhere'),
     'nowhere is missing, and'),
    (set_attribute('decoder/ResizeBilinear', 'align_corners', 'b', False),
     'decoder/ResizeBilinear has align_corners False'),
    (set_attribute('ResizeBilinear_3', 'half_pixel_centers', 'b', True),
     'ResizeBilinear_3 has half_pixel_centers True'),
    (set_attribute('decoder/ResizeBilinear_1', 'align_corners', 'b', False),
     'decoder/ResizeBilinear_1 has align_corners False'),
    (set_attribute('aspp0/BatchNorm/FusedBatchNorm', 'is_training', 'b', True),
     'is_training True'),
    (set_attribute('xception_65/entry_flow/conv1_2/Conv2D', 'padding', 's',
                   b'VALID'), r'conv1_2/Conv2D has pad \(0, 0\)'),
    (set_constant('mul_1/x', 1 / 255), 'mul_1 must be a Mul with 0.00784314'),
    (retarget('aspp0/BatchNorm/FusedBatchNorm', 1, 'aspp0/Conv2D'),
     'aspp0/Conv2D is not a constant'),
    (retarget('aspp0/BatchNorm/FusedBatchNorm', 1,
              'logits/semantic/biases/read'),
     r'aspp0/BatchNorm/gamma has shape \(21,\)'),
    (twice, "two nodes of the same name, .*: 'aspp0/weights'"),
    (loop, 'aspp0/BatchNorm/gamma'),
    (swap_sides, r'conv1_2/weights has shape \(3, 3, 64, 32\)'),
    (huge, r'aspp0/weights has shape \(1, 1, 2048, 1099511627776\)'),
    (content('aspp0/weights', b'short'), 'aspp0/weights is a damaged constant'),
    (int64, 'aspp0/BatchNorm/beta is int64'),
    (set_constant('aspp0/weights', float('nan')), 'not finite'),
    (reverse_channels, 'is a ReverseV2 of the image'),
    (set_constant('ToFloat/x', 0.5), 'not the official exporter'),
    (second_image, 'must come from one Placeholder .* and comes from 2'),
    (set_attribute('ImageTensor', 'dtype', 'type', 1), 'of type uint8'),
    (string_scale, 'mul_1 must be a Mul with'),
    (set_attribute(f'{MIDDLE}/separable_conv2_depthwise/depthwise', 'padding',
                   's', b'SAME'), 'SAME.* after SpaceToBatchND'),
    (set_attribute('xception_65/entry_flow/conv1_1/Conv2D', 'padding', 's',
                   b'SAME'), 'SAME.* after Pad'),
    (set_attribute('aspp0/Conv2D', 'padding', 's', b'EXPLICIT'),
     'aspp0/Conv2D has padding .*EXPLICIT'),
    (other_block, r'BatchToSpaceND has block \[4, 4\], and must have'),
    (set_attribute('AvgPool2D/AvgPool', 'padding', 's', b'SAME'),
     'AvgPool has padding .*SAME'),
    (pooling(64), r'AvgPool has kernel \[64, 65\], and must '
     r'have \[65, 65\]'),
    (set_attribute('AvgPool2D/AvgPool', 'ksize', 'i', 3), 'has ksize of batch'),
    (labels_of_quarter_size, r'kernel \[65, 65\], and must have \[17, 17\]'),
    (nameless, "or one of none: ''"),
    (set_integers('ArgMax/dimension', 1), r'ArgMax has axis \[1\], and must'),
    (set_attribute('strided_slice_6', 'begin_mask', 'i', 1),
     r'ResizeBilinear_3 has size \[1, 513, 513\], and must'),
    (set_integers('strided_slice_6/stack_2', -1), r'has size \[\], and must'),
    (set_integers('strided_slice_6/stack', 0), r'has size \[1, 513, 513\]'),
    (retarget('ToFloat_1', 0, 'decoder/ResizeBilinear/size'),
     'not the official exporter'),
    (retarget('ToInt32', 0, 'ToInt32'), 'a size that cannot be computed'),
    (half_first, 'not the official exporter'),
    (retarget('ToFloat_1/x', 1, 'strided_slice_1'),
     'not the official exporter'),
    (retarget('Shape_1', 0, 'ExpandDims_2'), 'a size that cannot be computed'),
    (huge_crop, 'the crop is 71993 x 513, and its sides must be'),
    (set_constant('aspp0/BatchNorm/moving_variance', -1.), 'negative'),
])
def test_refuses_wiring_and_values(skeleton, tmp_path, change, words):
    graph = GraphDef.FromString(skeleton)
    change(graph)
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    with pytest.raises(InputError, match=words):
        convert(tmp_path / 'g.pb', 'voc', tmp_path / 'a.npz')
    assert not (tmp_path / 'a.npz').exists()


def test_the_order_of_a_sum_is_free(skeleton):
    graph = GraphDef.FromString(skeleton)
    for each in graph.node:
        if each.op == 'Add' and 'xception_module' in each.name:
            each.input[:] = each.input[::-1]
    source = FrozenGraph(graph.SerializeToString(), 'g.pb')
    wanted = read_wiring(FrozenGraph(skeleton, 'g.pb')).weights
    assert read_wiring(source).weights == wanted


def test_the_fixture_is_like_the_zoos():
    """What was printed of its VOC2012 graph in tensorflow/tensorflow#17468,
    and the names of the network's input in 2018 and 2020.
    """
    def build(era):
        weights = palette_weights(label_colors('voc'))
        return FixtureGraph(weights, 21, (513, 513), era=era).graph

    graph = FrozenGraph(build(2018).SerializeToString(), 'g.pb')
    sizes = {name: graph.array(node).tolist()
             for name, node in graph.nodes.items()
             if name.endswith('/size') and 'ResizeBilinear' in name}
    assert sizes == {
        'ResizeBilinear_1/size': [65, 65],
        'decoder/ResizeBilinear/size': [129, 129],
        'decoder/ResizeBilinear_1/size': [129, 129],
        'ResizeBilinear_2/size': [129, 129]}
    assert graph.nodes['ResizeBilinear'].input == ['ExpandDims', 'ToInt32']
    assert {'sub_7', 'mul_1', 'ResizeBilinear_3'} <= graph.nodes.keys()
    names = {each.name for each in build(2020).node}
    assert {'sub_2', 'mul', 'ResizeBilinear_2'} <= names
    assert not {'sub_3', 'mul_1', 'ResizeBilinear_3'} & names


def unchanged(graph):
    pass


def without_idle_resizes(graph):
    """As another exporter may write it."""
    node(graph, 'Squeeze_1').input[0] = 'ExpandDims'
    node(graph, 'decoder/concat').input[1] = (
        'decoder/feature_projection0/Relu')
    node(graph, 'ResizeBilinear_3').input[0] = 'logits/semantic/BiasAdd'
    node(graph, 'ResizeBilinear_2').input[0] = 'nowhere'


def constant_size(graph):
    node(graph, 'ResizeBilinear_3').input[1] = 'size'
    size = graph.node.add(name='size', op='Const')
    size.attr['value'].tensor.CopyFrom(
        node(graph, 'ResizeBilinear_2/size').attr['value'].tensor)
    size.attr['value'].tensor.tensor_content = np.int32([513, 513]).tobytes()


def plain_epsilons(graph):
    """As another TensorFlow writes them."""
    for each in graph.node:
        if each.op == 'FusedBatchNorm' and each.attr['epsilon'].f < 1e-3:
            each.attr['epsilon'].f = 1e-5


@pytest.mark.parametrize('change', [
    unchanged, without_idle_resizes, constant_size, computed_size,
    plain_epsilons])
def test_official_graphs_convert(skeleton, change):
    graph = GraphDef.FromString(skeleton)
    change(graph)
    conversion = check(FrozenGraph(graph.SerializeToString(), 'g.pb'), 'voc')
    assert conversion.min_input_size == [513, 513]
    assert len(list(converted_arrays(conversion))) > 732


def test_a_crop_of_any_size():
    weights = palette_weights(label_colors('voc'))
    graph = FixtureGraph(weights, 21, (512, 402)).graph
    conversion = check(FrozenGraph(graph.SerializeToString(), 'g.pb'), 'voc')
    assert conversion.min_input_size == [512, 402]


def test_half_weights_are_widened(skeleton):
    graph = GraphDef.FromString(skeleton)
    tensor = node(graph, 'aspp0/weights').attr['value'].tensor
    tensor.dtype = DT_HALF
    tensor.ClearField('float_val')
    half = np.random.default_rng(0).normal(size=(2048, 256)).astype('e')
    tensor.tensor_content = half.tobytes()
    conversion = check(FrozenGraph(graph.SerializeToString(), 'g.pb'), 'voc')
    target, _ = weight_table()['aspp0/weights']
    array = dict(converted_arrays(conversion))[target]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array[:, :, 0, 0], half.T)


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
