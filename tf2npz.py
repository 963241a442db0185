"""Convert a frozen TensorFlow graph of DeepLabV3+ Xception65 to npz.

    python tf2npz.py cityscapes frozen_inference_graph.pb cityscapes.npz

The graph is one of the official model zoo, or one exported by the same code.
Every weight is accounted for, and strides, dilations, epsilons and the number
of classes are compared with the link's, before the npz gets its name.
"""
import argparse
import difflib

import numpy as np

from models.errors import InputError, report_errors
from models.pretrained import PRETRAINED_MODELS

# TensorFlow's name of a weight below its scope -> the link's below its path,
# and the transposition between them (None: none).
CONV = {'weights': ('W', (3, 2, 0, 1))}  # HWIO -> OIHW
DEPTHWISE = {'depthwise_weights': ('W', (2, 3, 0, 1))}  # HWC1 -> C1HW
BIAS = {'biases': ('b', None)}
BATCH_NORM = {'gamma': ('gamma', None), 'beta': ('beta', None),
              'moving_mean': ('avg_mean', None),
              'moving_variance': ('avg_var', None)}
LOGITS = 'logits/semantic'

# A layer is made of parts: suffix of the scope, suffix of the path, weights.
CONV_BN = (('', '/conv', CONV), ('/BatchNorm', '/bn', BATCH_NORM))
SEPARABLE = (
    ('_depthwise', '/depthwise', DEPTHWISE),
    ('_depthwise/BatchNorm', '/dw_bn', BATCH_NORM),
    ('_pointwise', '/pointwise', CONV),
    ('_pointwise/BatchNorm', '/pw_bn', BATCH_NORM))
CLASSIFIER = (('', '', {**CONV, **BIAS}),)

ENTRY3_STRIDED = ('xception_65/entry_flow/block3/unit_1/xception_module/'
                  'separable_conv3_depthwise/depthwise_weights')
OUTPUT_STRIDE_BY_ENTRY3 = {(1, 1): 8, (2, 2): 16}


def layer_table():
    """Yield (TensorFlow scope, link path, parts) of every layer."""
    backbone = 'feature_extractor'
    for i in (1, 2):
        yield (f'xception_65/entry_flow/conv1_{i}',
               f'{backbone}/entryflow_conv{i}', CONV_BN)
    blocks = [
        *((f'entry_flow/block{i}/unit_1', f'entryflow_block{i}', True)
          for i in (1, 2, 3)),
        *((f'middle_flow/block1/unit_{i}', f'middleflow_block{i}', False)
          for i in range(1, 17)),
        ('exit_flow/block1/unit_1', 'exitflow_block1', True),
        ('exit_flow/block2/unit_1', 'exitflow_block2', False),
    ]
    for unit, block, has_shortcut in blocks:
        scope = f'xception_65/{unit}/xception_module'
        for i in (1, 2, 3):
            yield (f'{scope}/separable_conv{i}',
                   f'{backbone}/{block}/separable{i}', SEPARABLE)
        if has_shortcut:
            yield f'{scope}/shortcut', f'{backbone}/{block}/conv', CONV_BN
    yield 'image_pooling', 'aspp/image_pooling_conv', CONV_BN
    yield 'aspp0', 'aspp/conv1x1', CONV_BN
    for i in (1, 2, 3):
        yield f'aspp{i}', f'aspp/atrous{i}', SEPARABLE
    yield 'concat_projection', 'aspp/proj', CONV_BN
    yield 'decoder/feature_projection0', 'decoder/feature_proj', CONV_BN
    yield 'decoder/decoder_conv0', 'decoder/conv1', SEPARABLE
    yield 'decoder/decoder_conv1', 'decoder/conv2', SEPARABLE
    yield LOGITS, 'decoder/conv_logits', CLASSIFIER


def weight_table():
    """Return TensorFlow weight -> (link array, transposition)."""
    table = {}
    for scope, path, parts in layer_table():
        for scope_suffix, path_suffix, weights in parts:
            for name, (target, axes) in weights.items():
                table[f'{scope}{scope_suffix}/{name}'] = (
                    f'{path}{path_suffix}/{target}', axes)
    return table


def convert(source, task, target):
    """Convert a frozen graph and return a summary.

    Args:
        source (str): the .pb file.
        task (str): 'voc', 'cityscapes' or 'ade20k'.
        target (str): the npz file to write.

    Returns:
        dict: the metadata written to the npz.

    Raises:
        InputError: the graph is not this network, not this task's, or some
            weight, stride, dilation or epsilon is not the link's.
        OSError: a file cannot be read or written.

    """
    from frozen_graph import FrozenGraph
    from models.weights import named_arrays, write_npz
    graph = FrozenGraph(source)
    check_network(graph)
    dropped = check_task(graph, task)
    link = build_link(graph, PRETRAINED_MODELS[task]['n_class'])
    check_weights(graph, named_arrays(link), dropped)
    check_layers(graph, link)
    metadata = {
        'task': task,
        'n_class': link.n_class,
        'output_stride': link.output_stride,
        'min_input_size': crop_size(graph, link.output_stride),
        'source_file': graph.path.name,
        'source_sha256': graph.sha256,
    }
    write_npz(target, converted_weights(graph, named_arrays(link), dropped),
              metadata)
    return metadata


def check_network(graph):
    """Refuse a graph that is not DeepLabV3+ on Xception65, naming it."""
    if 'xception_65/entry_flow/conv1_1/weights' in graph.weights:
        return
    scopes = sorted({name.partition('/')[0] for name in graph.weights})
    found = ', '.join(scopes[:5]) or 'no weights'
    raise InputError(f'{graph.path} is another network (its weights: {found});'
                     ' supported is DeepLabV3+ with xception_65')


def check_task(graph, task):
    """Return how many leading outputs the link drops (ADE20K's "other")."""
    model = PRETRAINED_MODELS[task]
    shape = graph.weights.get(f'{LOGITS}/weights', (0,))
    n_output = shape[-1] if shape else 0
    if n_output == model['tf_class']:
        return model['tf_class'] - model['n_class']
    fitting = [name for name, other in PRETRAINED_MODELS.items()
               if other['tf_class'] == n_output]
    advice = (f'this is a graph for {fitting[0]}' if fitting else
              'no supported task has that many')
    raise InputError(f'{graph.path} has {n_output} outputs where {task} has '
                     f'{model["tf_class"]}: {advice}')


def build_link(graph, n_class):
    """Return a link, its weights unset, with the graph's output stride."""
    from models import DeepLabV3plusXception65
    stride = graph.convolution(ENTRY3_STRIDED).stride
    if stride not in OUTPUT_STRIDE_BY_ENTRY3:
        raise InputError(f'{graph.path}: entry flow block 3 has stride '
                         f'{stride}, and must have 1 or 2 (output stride 8 '
                         'or 16)')
    return DeepLabV3plusXception65(
        n_class, output_stride=OUTPUT_STRIDE_BY_ENTRY3[stride],
        initialW=lambda array: None)


def check_weights(graph, expected, dropped):
    """Account for every weight of the graph and every array of the link."""
    table = weight_table()
    problems = [f'{name} is missing' for name in table
                if name not in graph.weights]
    for name, shape in graph.weights.items():
        if name not in table:
            nearest = difflib.get_close_matches(name, table, 1)
            problems.append(f'{name} {shape} is unknown' + (
                f' (nearest name: {nearest[0]})' if nearest else ''))
            continue
        target, axes = table[name]
        wanted = _tensorflow_shape(expected[target].shape, axes)
        if name.startswith(LOGITS):
            wanted = (*wanted[:-1], wanted[-1] + dropped)
        if shape != wanted:
            problems.append(f'{name} has shape {shape}, and must have '
                            f'{wanted}')
    unfilled = (expected.keys() - {target for target, _ in table.values()}
                - {name for name in expected if name.endswith('/N')})
    problems += [f'nothing fills {name}' for name in sorted(unfilled)]
    if problems:
        more = f'; and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise InputError(f'{graph.path} does not fit the link: '
                         + '; '.join(problems[:3]) + more)


def _tensorflow_shape(shape, axes):
    """Undo a transposition: the shape from which `axes` makes `shape`."""
    return shape if axes is None else tuple(
        shape[axes.index(i)] for i in range(len(shape)))


def check_layers(graph, link):
    """Compare strides, dilations and epsilons of every layer."""
    links = {path[1:]: child for path, child in link.namedlinks()}
    for name, (target, _) in weight_table().items():
        path, _, kind = target.rpartition('/')
        layer = links[path]
        if kind == 'W':
            found = graph.convolution(name)
            _compare(graph, found.node, 'stride', found.stride, layer.stride)
            _compare(graph, found.node, 'dilation', found.dilate, layer.dilate)
        elif kind == 'gamma':
            epsilon = graph.epsilon(name)
            if not np.isclose(epsilon, layer.eps, rtol=1e-5, atol=0):
                _compare(graph, name.rpartition('/')[0], 'epsilon', epsilon,
                         layer.eps)


def _compare(graph, node, what, found, wanted):
    if found != wanted:
        raise InputError(f'{graph.path}: {node} has {what} {found}, and the '
                         f'link has {wanted}')


def crop_size(graph, output_stride):
    """Return the height and width in pixels that the graph pads images to.

    It is read off the image pooling, whose kernel is the feature map's size.
    """
    source = graph.nodes.get(graph.convolution('image_pooling/weights').input)
    kernel = list(source.attr['ksize'].list.i) if source is not None else []
    if source is None or source.op != 'AvgPool' or len(kernel) != 4:
        raise InputError(f'{graph.path}: image_pooling is not fed by an '
                         'AvgPool with a fixed kernel')
    return [(side - 1) * output_stride + 1 for side in kernel[1:3]]


def converted_weights(graph, expected, dropped):
    """Yield (name, array) in the link's layout, one weight at a time."""
    for name, (target, axes) in weight_table().items():
        array = graph.array(name)
        if name.startswith(LOGITS):
            array = array[..., dropped:]
        if axes is not None:
            array = np.ascontiguousarray(array.transpose(axes))
        yield target, array
    for name, array in expected.items():
        if name.endswith('/N'):  # batches that batch norm has seen
            yield name, np.asarray(array)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('task', choices=PRETRAINED_MODELS,
                        help='what the graph was trained for')
    parser.add_argument('source', metavar='frozen_inference_graph.pb')
    parser.add_argument('target', metavar='target.npz')
    return parser.parse_args()


def main():
    args = parse_args()
    with report_errors():
        metadata = convert(args.source, args.task, args.target)
        height, width = metadata['min_input_size']
        print(f'{args.source}: DeepLabV3+ xception_65, {args.task}, '
              f'{metadata["n_class"]} classes, output stride '
              f'{metadata["output_stride"]}, crop {height} x {width}')
        print(f'  sha256 {metadata["source_sha256"]}')
        print(f'{args.target}: {len(weight_table())} weights converted; names,'
              ' shapes, strides, dilations and epsilons agree with the link')


if __name__ == '__main__':
    main()
