"""Describe a source of weights, whether it can be converted or not."""
import collections
import math

from convert.conversion import backbones, check, count_outputs, guess_dataset
from convert.name_table import weight_table
from models.constants import DATASETS
from models.utils.errors import InputError, shortened
from models.weights import named_arrays


def inspect(source):
    """Return a dict about a source, ready for JSON; unknown values are None.

    'problem' is why it cannot be converted, or None. 'weights' has the shape
    of each weight, its name in the link and its shape there.
    """
    n_output = count_outputs(source.weights)
    dataset = guess_dataset(n_output)
    conversion = link = problem = None
    weights = source.weights
    try:
        conversion = check(source, dataset)
        link, weights = conversion.link, conversion.weights
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
        'classes': link and link.n_class,
        'output_stride': link and link.output_stride,
        'atrous_rates': link and list(link.atrous_rates),
        'epsilons': _epsilons(source) if source.is_graph else None,
        'min_input_size': conversion and conversion.min_input_size,
        'parameters': sum(map(math.prod, weights.values())),
        'dropped': [*(f'output {i} of {n_output}' for i in range(offset)),
                    *source.ignored],
        'problem': problem,
        'weights': _weights(weights, named_arrays(link) if link else {}),
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


def _era(graph):
    """Return 2018 or 2020, the exporter's year, by TensorFlow's newer ops."""
    ops = {node.op for node in graph.nodes.values()}
    return 2020 if ops & {'FusedBatchNormV3', 'AddV2'} else 2018


def _epsilons(graph):
    """Return epsilon -> number of batch norms that have it."""
    return dict(collections.Counter(
        f'{node.attr["epsilon"].f:.4g}' for node in graph.nodes.values()
        if node.op.startswith('FusedBatchNorm')))


def _weights(weights, arrays):
    targets = {name: target for name, (target, _) in weight_table().items()}
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    return {name: {'shape': list(shape), 'target': targets.get(name),
                   'target_shape': shapes.get(targets.get(name))}
            for name, shape in weights.items()}
