"""From TensorFlow's weights to the link's: the name table and the checks."""
from os import PathLike

import numpy as np

from models.constants import (
    INPUT_SIZE,
    MAX_INPUT_SIDE,
    MIDDLE_BLOCKS,
    OUTPUT_STRIDES,
)
from models.pretrained import PRETRAINED_MODELS, read_settings
from models.utils.errors import InputError, names_that_differ

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
CUSTOM = 'custom'  # the task of a network with classes of the user's own
TASKS = (*PRETRAINED_MODELS, CUSTOM)


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
          for i in MIDDLE_BLOCKS),
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


class Conversion:
    """A source with the link that takes its weights; all was compared.

    Args:
        source (FrozenGraph or Checkpoint): see `sources.open_source`.
        task (str): of `TASKS`.

    Attributes:
        link (DeepLabV3plusXception65): with the source's output stride and
            class count; its weights are unset.
        dropped (int): how many leading outputs the link has not (ADE20K's
            "other").
        crop_size (list of two ints): height and width in pixels that the
            source pads images to.
        structure (graph_structure.Structure): of a graph; else None.

    Raises:
        InputError: the source is not this network, not this task's, or some
            weight, layer or connection is not the link's.

    """

    def __init__(self, source, task):
        from models.weights import named_arrays
        self.source, self.task = source, task
        check_network(source)
        n_output = source.weights.get(f'{LOGITS}/weights', (0,))[-1:]
        self.dropped = check_task(source, task, *(n_output or (0,)))
        self.link = self._build_link(*n_output)
        self.expected = named_arrays(self.link)
        self._check_weights()
        self.structure = None
        if is_graph(source):
            from convert.graph_structure import Structure
            names = {target: name
                     for name, (target, _) in weight_table().items()}
            self.structure = Structure(source, self.link, names)
        self.crop_size = self._crop_size()

    def _build_link(self, n_output):
        from models import DeepLabV3plusXception65
        from models.weights import leave_unset
        output_stride = (self._output_stride() if is_graph(self.source)
                         else self.source.output_stride)
        return DeepLabV3plusXception65(
            n_output - self.dropped, output_stride=output_stride,
            initialW=leave_unset)

    def _output_stride(self):
        """A graph's is read off the block whose stride it sets."""
        found = self.source.convolution(ENTRY3_STRIDED).stride
        for output_stride, sets in OUTPUT_STRIDES.items():
            if found == (sets['stride'], sets['stride']):
                return output_stride
        raise InputError(
            f'{self.source.path}: entry flow block 3 has stride {found}, and '
            'must have 1 or 2 (output stride 8 or 16)')

    def _check_weights(self):
        """Account for every weight of the source and array of the link."""
        table = weight_table()
        weights, expected = self.source.weights, self.expected
        wanted = {name: self._wanted_shape(name, *target)
                  for name, target in table.items()}
        unfilled = (expected.keys() - {target for target, _ in table.values()}
                    - {name for name in expected if name.endswith('/N')})
        differences = names_that_differ(
            [(name, shape) for name, shape in wanted.items()
             if name not in weights],
            [(name, shape) for name, shape in weights.items()
             if name not in wanted],
            wanted,
            [*(f'{name} has shape {weights[name]}, and must have {shape}'
               for name, shape in wanted.items()
               if weights.get(name, shape) != shape),
             *(f'nothing fills {name}' for name in sorted(unfilled))])
        if differences:
            raise InputError(f'{self.source.path} does not fit the link: '
                             f'{differences}')

    def _wanted_shape(self, name, target, axes):
        shape = _tensorflow_shape(self.expected[target].shape, axes)
        if name.startswith(LOGITS):
            return (*shape[:-1], shape[-1] + self.dropped)
        return shape

    def _crop_size(self):
        if self.structure is not None:
            crop_size = self.structure.crop_size
        else:
            known = PRETRAINED_MODELS.get(self.task, {}).get(
                'min_input_size', INPUT_SIZE)
            crop_size = list(self.source.crop_size or known)
        if not all(0 < side <= MAX_INPUT_SIDE for side in crop_size):
            raise InputError(
                f'{self.source.path}: the crop is {crop_size[0]} x '
                f'{crop_size[1]}, and its sides must be 1 to {MAX_INPUT_SIDE}')
        return crop_size

    def metadata(self):
        """Return what the npz is to say of itself."""
        return {
            'task': self.task,
            'n_class': self.link.n_class,
            'output_stride': self.link.output_stride,
            'min_input_size': self.crop_size,
            'source_file': self.source.file_name,
            'source_sha256': self.source.sha256,
        }

    def arrays(self):
        """Yield (name, array) in the link's layout, one weight at a time.

        Raises:
            InputError: a value is not finite, or a variance negative.

        """
        for name, (target, axes) in weight_table().items():
            array = self.source.weight(name)
            if not np.isfinite(array).all():
                raise InputError(f'{self.source.path}: {name} holds a value '
                                 'that is not finite')
            if name.endswith('/moving_variance') and array.min() < 0:
                raise InputError(f'{self.source.path}: {name} holds a '
                                 'negative variance')
            if name.startswith(LOGITS):
                array = array[..., self.dropped:]
            if axes is not None:
                array = np.ascontiguousarray(array.transpose(axes))
            yield target, array
        for name, array in sorted(self.expected.items()):
            if name.endswith('/N'):  # batches that batch norm has seen
                yield name, np.asarray(array)

    def write(self, path, **metadata):
        """Write the npz, and see that it can be read.

        Args:
            path (str or pathlib.Path): of `models.files.atomic_path`.
            metadata: added to what the npz says of itself.

        Raises:
            InputError: see `arrays` and `models.weights.write_npz`.
            OSError: the file cannot be written.

        """
        from models.weights import write_npz
        write_npz(path, self.arrays(), {**self.metadata(), **metadata})
        read_settings(path, path)


def convert(path: str | PathLike, task: str, target: str | PathLike) -> None:
    """Convert what the user has to an npz.

    Args:
        path (str or pathlib.Path): see `sources.open_source`.
        task (str): of `TASKS`.
        target (str or pathlib.Path): the npz file; it appears whole.

    Raises:
        InputError: see `Conversion`.
        OSError: a file cannot be read or written.

    """
    from convert.sources import open_source
    from models.utils.files import atomic_path
    conversion = Conversion(open_source(path), task)
    with atomic_path(target) as temporary:
        conversion.write(temporary)


def is_graph(source):
    """Tell a frozen graph, which has nodes, from a checkpoint."""
    return hasattr(source, 'nodes')


def check_network(source):
    """Refuse a source that is not DeepLabV3+ on Xception65, naming it."""
    if 'xception_65/entry_flow/conv1_1/weights' in source.weights:
        return
    scopes = sorted({name.partition('/')[0] for name in source.weights})
    found = ', '.join(scopes[:5]) or 'no weights'
    raise InputError(f'{source.path} is another network (its weights: '
                     f'{found}); supported is DeepLabV3+ with xception_65')


def guess_task(n_output):
    """Return the task that has so many outputs; 'custom' where none has."""
    return next((name for name, model in PRETRAINED_MODELS.items()
                 if model['tf_class'] == n_output), CUSTOM)


def check_task(source, task, n_output):
    """Return how many leading outputs the link drops (ADE20K's "other")."""
    if task not in TASKS:
        raise InputError(f'the task is {task}, and must be one of '
                         f'{", ".join(TASKS)}')
    if not 0 < n_output <= 4096:
        raise InputError(f'{source.path} has {n_output} outputs, and must '
                         'have 1 to 4096')
    if task == CUSTOM:
        return 0
    model = PRETRAINED_MODELS[task]
    if n_output == model['tf_class']:
        return model['tf_class'] - model['n_class']
    fitting = guess_task(n_output)
    advice = ('give --class-names and the task custom' if fitting == CUSTOM
              else f'this is one for {fitting}')
    raise InputError(f'{source.path} has {n_output} outputs where {task} has '
                     f'{model["tf_class"]}: {advice}')


def _tensorflow_shape(shape, axes):
    """Undo a transposition: the shape from which `axes` makes `shape`."""
    return shape if axes is None else tuple(
        shape[axes.index(i)] for i in range(len(shape)))
