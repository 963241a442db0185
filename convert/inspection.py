"""Describe a source of weights, whether it can be converted or not."""
import math

from convert.conversion import backbones, check
from convert.name_table import weight_table
from models.utils.errors import InputError, shortened
from models.weights import named_arrays


def inspect(source):
    """Return a dict about a source, ready for JSON.

    'problem' is why it cannot be converted, or None. If it can, 'weights' has
    the shape of each weight, its name in the link and its shape there.
    """
    result = {
        'path': str(source.path), 'file': source.file_name,
        'sha256': source.sha256,
        'kind': 'frozen graph' if source.is_graph else 'checkpoint',
        'backbone': ', '.join(backbones(source)) or None}
    try:
        found = check(source, None)
    except InputError as error:
        return {**result, 'problem': str(error), 'weights': {}}
    arrays, offset = named_arrays(found.link), found.background_offset
    return {
        **result, 'dataset': found.dataset, 'classes': found.link.n_class,
        'outputs': found.link.n_class + offset,
        'output_stride': found.link.output_stride,
        'atrous_rates': list(found.link.atrous_rates),
        'min_input_size': found.min_input_size,
        'parameters': sum(map(math.prod, found.weights.values())),
        'dropped': [*(f'output {i}' for i in range(offset)), *source.ignored],
        'problem': None,
        'weights': {name: {
            'shape': list(found.weights[name]), 'target': target,
            'target_shape': list(arrays[target].shape)}
            for name, (target, _) in weight_table().items()},
    }


def describe(found):
    """Return what `inspect` returned as lines of text."""
    lines = [f'{name.replace("_", " "):15}{_text(value)}'
             for name, value in found.items()
             if name != 'weights' and value is not None]
    lines.append('')
    lines += [f'{name} {_shape(weight["shape"])} -> {weight["target"]} '
              + _shape(weight['target_shape'])
              for name, weight in found['weights'].items()]
    return '\n'.join(lines)


def _text(value):
    if isinstance(value, list):
        return shortened(value) or 'nothing'
    return str(value)


def _shape(shape):
    return 'x'.join(map(str, shape))
