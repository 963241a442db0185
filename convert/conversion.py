"""From TensorFlow's weights to the link's: `check`, then `write`."""
import re
import typing

import numpy as np

import models
from convert.checkpoint import Checkpoint
from convert.frozen_graph import FrozenGraph
from convert.graph_structure import Wiring, check_settings, read_wiring
from convert.name_table import LOGITS, weight_table
from models.constants import (
    DATASETS,
    MAX_INPUT_SIDE,
    MIN_INPUT_SIZE,
    OUTPUT_STRIDES,
)
from models.utils.errors import InputError, describe_differences, shortened
from models.weights import WeightsFile, leave_unset, named_arrays, write_npz

CUSTOM = 'custom'  # stands for a dataset of the user's own
MAX_OUTPUTS = 4096
OUTPUTS = {known['n_class'] + known['background_offset']: dataset
           for dataset, known in DATASETS.items()}
BACKBONE = re.compile(r'xception_\d+|MobilenetV\d\w*|resnet_v\d_\d+\w*')
VARIABLE_OPS = {'Variable', 'VariableV2', 'VarHandleOp'}
# Prefix of names, whether names with it must exist, and what is said where that
# is not so. The first that applies is reported.
PARTS = [
    ('meta_architecture/', False, 'has a dense prediction cell '
     '(--dense_prediction_cell_json)'),
    ('concat_projection/', True, 'is a backbone without the head, as '
     'pretrained on ImageNet'),
    ('decoder/', True, 'has no decoder (--decoder_output_stride=4)'),
    ('image_pooling/', True, 'has no image pooling '
     '(--add_image_level_feature=false)'),
    ('aspp1/', False, 'has plain convolutions in the ASPP '
     '(--aspp_with_separable_conv=false)'),
    ('aspp1_depthwise/', True, 'has no atrous branches (--atrous_rates)'),
    ('decoder/decoder_conv0/', False, 'has plain convolutions in the decoder '
     '(--decoder_use_separable_conv=false)'),
]


class Conversion(typing.NamedTuple):
    """A source and the link that takes its weights; they match."""

    source: FrozenGraph | Checkpoint
    dataset: str  # a key of `DATASETS`, or `CUSTOM`
    link: 'models.DeepLabV3plusXception65'  # its weights are unset
    background_offset: int  # leading outputs to drop (ADE20K's "other")
    wiring: Wiring | None  # of a graph
    weights: dict  # TensorFlow's name -> shape, of all that is converted
    min_input_size: list  # height, width in pixels to which the source pads
    settings: dict  # metadata that the official models do not have


def check(source, dataset: str | None) -> Conversion:
    """Compare all of a source with the link that takes its weights.

    Raise InputError where the source is another network or of another dataset
    (a key of `DATASETS`, or `CUSTOM`; None: any), or where a weight, layer or
    connection is not the link's.
    """
    check_network(source)
    wiring = read_wiring(source) if source.is_graph else None
    weights = _weights(source, wiring)
    n_output = (weights.get(f'{LOGITS}/weights') or (0,))[-1]
    dataset = dataset or OUTPUTS.get(n_output, CUSTOM)
    offset = _background_offset(source, dataset, n_output)
    link = _build_link(source, n_output - offset, wiring)
    _check_weights(source, weights, link, offset)
    if wiring is not None:
        check_settings(source, wiring.settings, link)
        used = source.ancestors(wiring.scores)
        source.ignored = [name for name in source.names if name not in used]
    return Conversion(source, dataset, link, offset, wiring, weights,
                      _min_input_size(source, dataset, wiring),
                      _unusual_settings(source, link, offset, wiring))


def write(conversion, path, classes=()):
    """Write the npz, with a user's own classes if there are, and read it again.

    Raise InputError where a value is not finite, or a variance is negative.
    """
    source, link = conversion.source, conversion.link
    write_npz(path, converted_arrays(conversion), {
        'task': conversion.dataset,
        'n_class': link.n_class,
        'output_stride': link.output_stride,
        'min_input_size': conversion.min_input_size,
        'source_file': source.file_name,
        'source_sha256': source.sha256,
        **conversion.settings, **dict(classes),
    })
    WeightsFile(path)


def converted_arrays(conversion):
    """Yield (name, array) in the link's layout, one weight at a time."""
    source, wiring = conversion.source, conversion.wiring
    for name, (target, axes) in weight_table().items():
        array = source.weight(wiring.weights[target] if wiring else name)
        is_variance = name.endswith('/moving_variance')
        if not np.isfinite(array).all() or (is_variance and array.min() < 0):
            raise InputError(f'{source.path}: {name} holds a value that is '
                             'not finite, or a negative variance')
        if name.startswith(LOGITS):
            array = array[..., conversion.background_offset:]
        if axes is not None:
            array = np.ascontiguousarray(array.transpose(axes))
        yield target, array
    for name, array in sorted(named_arrays(conversion.link).items()):
        if name.endswith('/N'):  # batches that batch norm has seen
            yield name, np.asarray(array)


def check_network(source):
    """Raise InputError unless a source is DeepLabV3+ with Xception65; say
    what it is.
    """
    if source.is_graph and any(  # a spare variable does no harm
            node.op in VARIABLE_OPS for node in source.ancestors(
                (source.names or list(source.nodes))[-1]).values()):
        raise InputError(f'{source.path} is a graph that is not frozen: '
                         'convert the checkpoint that has its weights, or '
                         'export a frozen graph with export_model.py')
    found = {match[0] for match in map(BACKBONE.match, source.names) if match}
    if found != {'xception_65'}:
        scopes = {name.partition('/')[0] for name in source.names}
        raise InputError(
            f'{source.path} is another network ('
            f'{shortened(sorted(found or scopes)) or "no layers"}); only '
            'DeepLabV3+ with xception_65 is supported')
    for prefix, wanted, meaning in PARTS:
        if any(name.startswith(prefix) for name in source.names) != wanted:
            raise InputError(f'{source.path} {meaning}, unlike the link')


def _background_offset(source, dataset, n_output):
    """Return how many leading outputs are no classes of the dataset."""
    if not 0 < n_output <= MAX_OUTPUTS:
        raise InputError(f'{source.path} has {n_output} outputs, and must '
                         f'have 1 to {MAX_OUTPUTS}')
    if dataset == CUSTOM:
        return 0
    fitting = OUTPUTS.get(n_output, CUSTOM)
    if fitting != dataset:
        raise InputError(f'{source.path} has {n_output} outputs, which are not '
                         f'those of {dataset}: give the dataset {fitting}')
    return DATASETS[dataset]['background_offset']


def _weights(source, wiring):
    """Return TensorFlow's name -> shape of a source's weights."""
    if wiring is None:
        return source.weights
    return {name: source.shape(wiring.weights[target])
            for name, (target, _) in weight_table().items()
            if target in wiring.weights}


def _build_link(source, n_class, wiring):
    """Return the link with a source's output stride; its weights are unset."""
    from models.memory import giving_back
    with giving_back():
        return models.DeepLabV3plusXception65(
            n_class, initialW=leave_unset,
            output_stride=(wiring or source).output_stride,
            atrous_rates=wiring and wiring.atrous_rates)


def _check_weights(source, weights, link, offset):
    """Account for every weight of the source and every array of the link."""
    table, arrays = weight_table(), named_arrays(link)
    wanted = {name: tensorflow_shape(name, arrays[target].shape, axes, offset)
              for name, (target, axes) in table.items()}
    filled = {target for target, _ in table.values()}
    differences = describe_differences(weights, wanted, [
        f'nothing fills {name}' for name in sorted(arrays)
        if name not in filled and not name.endswith('/N')])
    if differences:
        raise InputError(f'{source.path} does not fit the link: {differences}')


def tensorflow_shape(name, shape, axes, offset):
    """Return the shape of the weight that becomes an array of the link."""
    if axes is not None:  # undo the transposition
        shape = tuple(shape[axes.index(i)] for i in range(len(shape)))
    if name.startswith(LOGITS):
        shape = (*shape[:-1], shape[-1] + offset)
    return shape


def _min_input_size(source, dataset, wiring):
    """Return the size to which the source pads images: [height, width]."""
    size = list(wiring.crop_size if wiring else (
        source.min_input_size or DATASETS.get(dataset, {}).get(
            'min_input_size', MIN_INPUT_SIZE)))
    if not all(0 < side <= MAX_INPUT_SIDE for side in size):
        raise InputError(
            f'{source.path}: the crop is {size[0]} x {size[1]}, and its sides '
            f'must be 1 to {MAX_INPUT_SIDE}')
    return size


def _unusual_settings(source, link, offset, wiring):
    settings = {}
    if link.atrous_rates != OUTPUT_STRIDES[link.output_stride]['aspp']:
        settings['atrous_rates'] = link.atrous_rates
    if wiring and (wiring.scales, wiring.flip) != ((1.,), False):
        settings['scales'], settings['flip'] = wiring.scales, wiring.flip
        if offset:  # they have a part in the softmax that is averaged
            W, b = (source.weight(wiring.weights[f'decoder/conv_logits/{name}'])
                    for name in 'Wb')
            settings['background_outputs'] = np.vstack(
                (W[0, 0, :, :offset], b[:offset])).T
    if wiring and wiring.resize_range is not None:
        settings['resize_range'] = wiring.resize_range
    return settings
