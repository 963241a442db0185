"""The report of an evaluation: a table, files, and a page to look at."""
import csv
import io
import json
import math
import pathlib
import platform
import textwrap

import numpy as np

from evaluation.scores import category_iou, scores, warnings
from media.images import to_pillow
from media.results_page import data_url, load_template
from media.visualization import colorize
from models.utils.files import atomic_path

N_EXAMPLES = 3  # best images on the page, and as many worst ones
NAME_LENGTH = 40  # letters of a class's name beside the confusion matrix
THUMBNAIL = 512, 512  # pixels at most
TEMPLATE = pathlib.Path(__file__).with_name('report.html')
# What `write_report` writes, and will replace.
FILES = ('result.json', 'confusion_matrix.csv', 'confusion_matrix.png',
         'report.html')
PACKAGES = 'chainer', 'numpy', 'openvino', 'cupy-cuda12x'
TO_175 = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# By (dataset, split, output stride, scales, flip), in percent. One scale at
# stride 8: the converted models of ChainerCV's example. The others: the
# official model zoo, which on ADE20K also resizes the images.
PUBLISHED = {
    ('voc', 'val', 8, (1.0,), False): 82.36,
    ('voc', 'val', 16, (1.0,), False): 82.20,
    ('voc', 'val', 8, TO_175, True): 83.58,
    ('cityscapes', 'val', 8, (1.0,), False): 79.14,
    ('cityscapes', 'val', 16, (1.0,), False): 78.79,
    ('cityscapes', 'val', 8, (0.75, 1.0, 1.25), True): 80.42,
    ('ade20k', 'val', 8, (1.0,), False): 42.52,
    ('ade20k', 'val', 8, TO_175, True): 45.65,
}
TOLERANCE = 0.1  # percent


def result_of(matrix, ignored, names, settings, model, seconds):
    """Return what result.json holds; the arguments are those of the run."""
    found = scores(matrix)
    result = {
        'miou': _number(found['miou']),
        'iou': _by_name(names, found['iou']),
        'pixel_accuracy': _number(found['pixel_accuracy']),
        'class_accuracy': _by_name(names, found['class_accuracy']),
        'mean_class_accuracy': _number(found['mean_class_accuracy']),
        'true_pixels': dict(zip(names, matrix.sum(axis=1).tolist(),
                                strict=True)),
        'predicted_pixels': dict(zip(names, matrix.sum(axis=0).tolist(),
                                     strict=True)),
        'ignored_pixels': ignored,
        'settings': settings, 'model': model, 'versions': _versions(),
        'seconds': seconds, 'warnings': warnings(matrix, ignored, names),
    }
    if settings['dataset'] == 'cityscapes':
        iou = category_iou(matrix)
        result['category_iou'] = _by_name(iou, iou.values())
    result['verdict'] = verdict(result['miou'], settings)
    return result


def _number(value):
    """JSON has no nan: None stands for it."""
    return None if math.isnan(value) else float(value)


def _by_name(names, values):
    return {name: _number(value)
            for name, value in zip(names, values, strict=True)}


def _versions():
    from importlib.metadata import PackageNotFoundError, version
    result = {'python': platform.python_version()}
    for name in PACKAGES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result


def table(result):
    """Return the scores as lines of text, as ChainerCV's example has them."""
    rule = [('', '')]
    categories = list(result.get('category_iou', {}).items())
    rows = [*result['iou'].items(), *rule, *categories,
            *(rule if categories else []),
            ('mean IoU', result['miou']),
            ('Class average accuracy', result['mean_class_accuracy']),
            ('Global average accuracy', result['pixel_accuracy'])]
    return '\n'.join(
        '=' * 32 if value == '' else f'{name:>23} : ' + (
            'n/a' if value is None else f'{value:.4f}')
        for name, value in rows)


def best_and_worst(image_miou):
    """Return (title, index) of the best and the worst images."""
    order = sorted((miou, i) for i, miou in enumerate(image_miou)
                   if not math.isnan(miou))
    best = [i for _, i in reversed(order)][:N_EXAMPLES]
    worst = [i for _, i in order if i not in best][:N_EXAMPLES]
    return [('Best', i) for i in best] + [('Worst', i) for i in worst]


def example(title, name, miou, image, label, prediction, colors):
    """Return an image of the page with its truth and prediction.

    `image` is (3, H, W), RGB in [0, 255]; `label` and `prediction` are (H, W);
    ignored pixels become black.
    """
    from PIL import Image
    with_black = np.vstack([colors, [[0, 0, 0]]])  # the last: index -1
    images = {'image': to_pillow(image),
              'truth': Image.fromarray(colorize(label, with_black)),
              'prediction': Image.fromarray(colorize(prediction, colors))}
    for each in images.values():
        each.thumbnail(THUMBNAIL)
    return {'title': title, 'name': name, 'miou': miou, 'images': [
        (what, data_url(each)) for what, each in images.items()]}


def write_report(folder, result, matrix, colors, examples):
    """Write result.json, the confusion matrix and report.html.

    `result` is from `result_of`, `matrix` int64, (n_class, n_class), true by
    predicted, and `examples` a list of what `example` returns.
    """
    names = list(result['iou'])
    lines = io.StringIO()
    csv.writer(lines, lineterminator='\n').writerows(
        [['true \\ predicted', *names], *([name, *row] for name, row in zip(
            names, matrix.tolist(), strict=True))])
    matrix_chart = _drawn(_matrix_chart(names, matrix))
    settings, versions = result['settings'], result['versions']
    page = load_template(TEMPLATE).render(
        result=result, settings=settings, examples=examples,
        html_colors=[f'rgb{tuple(color)}' for color in colors.tolist()],
        matrix_chart=data_url(matrix_chart),
        categories=result.get('category_iou', {}),
        details=[('model', result['model']), *settings.items(),
                 *versions.items(), ('seconds', round(result['seconds']))])
    _write(folder / 'result.json', json.dumps(result, indent=2) + '\n')
    _write(folder / 'confusion_matrix.csv', lines.getvalue())
    with atomic_path(folder / 'confusion_matrix.png') as temporary:
        matrix_chart.save(temporary, format='PNG')
    _write(folder / 'report.html', page + '\n')


def _write(path, text):
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode(errors='replace'))


def _matrix_chart(names, matrix):
    from matplotlib.figure import Figure
    labels = [textwrap.shorten(name, NAME_LENGTH, placeholder=' ...')
              for name in names]
    # Inches: 0.2 for a class, 0.06 for a letter of 7 points.
    side = 1.5 + 0.2 * max(len(names), 5) + 0.06 * max(map(len, labels))
    figure = Figure((side + 1, side), layout='constrained')
    axes = figure.subplots()
    rows = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(100 * rows, cmap='Blues', vmin=0, vmax=100)
    ticks = range(len(names))
    axes.set_xticks(ticks, labels, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(ticks, labels, fontsize=7, parse_math=False)
    axes.set(xlabel='predicted', ylabel='true')
    figure.colorbar(image, label="% of the true class's pixels", shrink=0.6)
    return figure


def _drawn(figure):
    """Return a Matplotlib figure as a PIL.Image.Image."""
    from PIL import Image
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=110)
    return Image.open(file)


def verdict(miou, settings):
    """Return one line: the published figure, and how far mIoU in [0, 1] is."""
    if miou is None:
        return 'no pixel is labelled: there is no score'
    published = PUBLISHED.get((
        settings['dataset'], settings['split'], settings['output_stride'],
        tuple(settings['scales']), settings['flip']))
    if published is None or settings.get('resize_range'):
        return 'no figure was published for these settings'
    if settings['images'] != settings['images_of_split']:
        return (f'published {published:.2f} %, for all '
                f'{settings["images_of_split"]} images of the split: not '
                'comparable')
    if settings.get('precision', 'float32') != 'float32':
        return (f'published {published:.2f} % in float32, difference in '
                f'{settings["precision"]} {100 * miou - published:+.2f}')
    difference = 100 * miou - published
    within = abs(difference) <= TOLERANCE
    return (f'published {published:.2f} %, difference {difference:+.2f}: '
            f'{"within" if within else "NOT within"} {TOLERANCE}')
