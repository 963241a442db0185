"""Say what a source of weights is, whether it can be converted or not."""
import math
import re

from convert.conversion import (
    LOGITS,
    Conversion,
    guess_task,
    is_graph,
    weight_table,
)
from models.pretrained import PRETRAINED_MODELS
from models.utils.errors import InputError


def inspect(source):
    """Return what is to be known of a source.

    Args:
        source (FrozenGraph or Checkpoint): see `sources.open_source`.

    Returns:
        dict: plain values, ready for JSON; what is not known is None.
        'problem' is why it cannot be converted, or None; 'weights' has for
        each of the source's its shape, its name in the link and its shape
        there.

    """
    n_output = (source.weights.get(f'{LOGITS}/weights') or (None,))[-1]
    task = guess_task(n_output)
    conversion, problem = None, None
    try:
        conversion = Conversion(source, task)
    except InputError as error:
        problem = str(error)
    link = conversion and conversion.link
    dropped = ([] if task not in PRETRAINED_MODELS else
               [f'output {i} of {n_output}' for i in range(
                   n_output - PRETRAINED_MODELS[task]['n_class'])])
    return {
        'path': str(source.path), 'file': source.file_name,
        'sha256': source.sha256,
        'kind': 'frozen graph' if is_graph(source) else 'checkpoint',
        'era': _era(source) if is_graph(source) else None,
        'backbone': _backbone(source),
        'task': task, 'outputs': n_output,
        'classes': link and link.n_class,
        'output_stride': link and link.output_stride,
        'atrous_rates': link and [
            link.aspp[f'atrous{i}'].depthwise.dilate[0] for i in (1, 2, 3)],
        'epsilons': _epsilons(source) if is_graph(source) else None,
        'crop_size': conversion and conversion.crop_size,
        'parameters': sum(map(math.prod, source.weights.values())),
        'dropped': dropped + source.ignored,
        'problem': problem,
        'weights': _weights(source, conversion),
    }


def describe(found):
    """Return what `inspect` returned as lines of text."""
    lines = []
    for name, value in found.items():
        if name == 'weights' or value is None:
            continue
        lines.append(f'{name.replace("_", " "):14} {_text(value)}')
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
        return ', '.join(map(str, value)) or 'nothing'
    return str(value)


def _shape(shape):
    return '?' if shape is None else 'x'.join(map(str, shape)) or 'scalar'


def _era(graph):
    """2018 or 2020: the exporter's year, by what newer TensorFlow writes."""
    newer = any(node.op in {'FusedBatchNormV3', 'AddV2'}
                for node in graph.nodes.values())
    return 2020 if newer else 2018


def _backbone(source):
    known = re.compile(r'xception_\d+|MobilenetV\d|resnet_v\d_\d+\w*')
    found = {match[0] for match in map(known.match, source.weights) if match}
    return ', '.join(sorted(found)) or None


def _epsilons(graph):
    """Return epsilon -> how many batch norms have it."""
    counts = {}
    for node in graph.nodes.values():
        if node.op.startswith('FusedBatchNorm'):
            epsilon = f'{node.attr["epsilon"].f:.4g}'
            counts[epsilon] = counts.get(epsilon, 0) + 1
    return counts


def _weights(source, conversion):
    table, result = weight_table(), {}
    for name, shape in source.weights.items():
        target = table.get(name, (None,))[0]
        expected = conversion.expected[target].shape if (
            conversion and target) else None
        result[name] = {'shape': list(shape), 'target': target,
                        'target_shape': expected and list(expected)}
    return result
