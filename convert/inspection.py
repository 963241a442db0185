"""Describe a source of weights, whether it can be converted or not."""
import math

from convert.conversion import backbones, check, count_outputs, guess_dataset
from convert.name_table import weight_table
from models.constants import DATASETS
from models.utils.errors import InputError, shortened


def inspect(source):
    """Return a dict about a source, ready for JSON; unknown values are None.

    'problem' is why it cannot be converted, or None. 'weights' has the shape
    of each weight, its name in the link and its shape there.
    """
    n_output = count_outputs(source)
    dataset = guess_dataset(n_output)
    conversion, problem = None, None
    try:
        conversion = check(source, dataset)
    except InputError as error:
        problem = str(error)
    offset = DATASETS.get(dataset, {}).get('background_offset', 0)
    return {
        'path': str(source.path), 'file': source.file_name,
        'sha256': source.sha256,
        'kind': 'frozen graph' if source.is_graph else 'checkpoint',
        'era': _era(source) if source.is_graph else None,
        'backbone': ', '.join(backbones(source)) or None,
        'dataset': dataset, 'outputs': n_output or None,
        **_of_link(conversion and conversion.link),
        'epsilons': _epsilons(source) if source.is_graph else None,
        'min_input_size': conversion and conversion.min_input_size,
        'parameters': sum(map(math.prod, source.weights.values())),
        'dropped': [*(f'output {i} of {n_output}' for i in range(offset)),
                    *source.ignored],
        'problem': problem,
        'weights': _weights(source, conversion),
    }


def describe(found):
    """Return what `inspect` returned as lines of text."""
    lines = [f'{name.replace("_", " "):15}{_text(value)}'
             for name, value in found.items()
             if name != 'weights' and value is not None]
    lines.append('')
    for name, weight in found['weights'].items():
        target = (f'{weight["target"]} {_shape(weight["target_shape"])}'
                  if weight['target'] else 'nothing')
        lines.append(f'{name} {_shape(weight["shape"])} -> {target}')
    return '\n'.join(lines)


def _text(value):
    if isinstance(value, dict):
        return ', '.join(f'{key}: {count}' for key, count in value.items())
    if isinstance(value, list):
        return shortened(value) or 'nothing'
    return str(value)


def _shape(shape):
    return '?' if shape is None else 'x'.join(map(str, shape)) or 'scalar'


def _of_link(link):
    return {
        'classes': link and link.n_class,
        'output_stride': link and link.output_stride,
        'atrous_rates': link and list(link.atrous_rates),
    }


def _era(graph):
    """Return 2018 or 2020, the exporter's year, by TensorFlow's newer ops."""
    newer = any(node.op in {'FusedBatchNormV3', 'AddV2'}
                for node in graph.nodes.values())
    return 2020 if newer else 2018


def _epsilons(graph):
    """Return epsilon -> number of batch norms that have it."""
    counts = {}
    for node in graph.nodes.values():
        if node.op.startswith('FusedBatchNorm'):
            epsilon = f'{node.attr["epsilon"].f:.4g}'
            counts[epsilon] = counts.get(epsilon, 0) + 1
    return counts


def _weights(source, conversion):
    from models.weights import named_arrays
    table, result = weight_table(), {}
    arrays = named_arrays(conversion.link) if conversion else {}
    for name, shape in source.weights.items():
        target = table.get(name, (None,))[0]
        result[name] = {
            'shape': list(shape), 'target': target,
            'target_shape': list(arrays[target].shape) if target in arrays
            else None}
    return result
