"""The report of an evaluation: a table, files, and a page to look at."""
import csv
import importlib.metadata
import io
import json
import math
import pathlib
import platform

import numpy as np

from evaluation.scores import category_iou, scores, warnings
from media.images import to_pillow
from media.results_page import data_url, load_template
from media.visualization import colorize
from models.utils.files import atomic_path

N_EXAMPLES = 3  # best images on the page, and as many worst ones
THUMBNAIL = 512, 512  # pixels at most
TEMPLATE = pathlib.Path(__file__).with_name('report.html')
# What `write_report` writes, and will replace.
FILES = 'result.json', 'confusion_matrix.csv', 'report.html'
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


def result_of(state, names, settings, model):
    """Return what result.json holds; the arguments are those of the run."""
    matrix, found = state.matrix, scores(state.matrix)
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
        'ignored_pixels': state.ignored,
        'settings': settings, 'model': model, 'versions': _versions(),
        'seconds': state.seconds,
        'warnings': warnings(matrix, state.ignored, names),
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
    found = {each.name: each.version
             for each in importlib.metadata.distributions()}
    return {'python': platform.python_version(), **{
        name: found[name] for name in PACKAGES if name in found}}


def table(result):
    """Return the scores as lines of text, as ChainerCV's example has them."""
    groups = [result['iou'], result.get('category_iou', {}), {
        'mean IoU': result['miou'],
        'Class average accuracy': result['mean_class_accuracy'],
        'Global average accuracy': result['pixel_accuracy']}]
    return f'\n{"=" * 32}\n'.join(
        '\n'.join(f'{name:>23} : ' + ('n/a' if value is None else
                                      f'{value:.4f}')
                  for name, value in group.items())
        for group in groups if group)


def examples(images, image_miou, model, colors):
    """Yield what the page shows of the best and the worst images: each with
    truth and prediction, where ignored pixels are black.
    """
    order = sorted((miou, i) for i, miou in enumerate(image_miou)
                   if not math.isnan(miou))
    best = [i for _, i in reversed(order)][:N_EXAMPLES]
    worst = [i for _, i in order if i not in best][:N_EXAMPLES]
    with_black = np.vstack([colors, [[0, 0, 0]]])  # the last: index -1
    for title, i in [('Best', i) for i in best] + [('Worst', i) for i in worst]:
        image, label = images[i]
        prediction, = model.predict([image])
        shown = {'image': to_pillow(image),
                 'truth': colorize(label, with_black),
                 'prediction': colorize(prediction, colors)}
        for each in shown.values():
            each.thumbnail(THUMBNAIL)
        yield {'title': title, 'name': images.names[i], 'miou': image_miou[i],
               'images': [(what, data_url(each))
                          for what, each in shown.items()]}


def write_report(folder, result, matrix, colors, shown):
    """Write result.json, the confusion matrix and report.html.

    `result` is from `result_of`, `matrix` int64, (n_class, n_class), true by
    predicted, and `shown` a list of what `examples` yields.
    """
    names = list(result['iou'])
    lines = io.StringIO()
    csv.writer(lines, lineterminator='\n').writerows(
        [['true \\ predicted', *names], *([name, *row] for name, row in zip(
            names, matrix.tolist(), strict=True))])
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    settings, versions = result['settings'], result['versions']
    page = load_template(TEMPLATE).render(
        result=result, settings=settings, examples=shown,
        html_colors=[f'rgb{tuple(color)}' for color in colors.tolist()],
        shares=shares.round().astype(int).tolist(),
        categories=result.get('category_iou', {}),
        details=[('model', result['model']), *settings.items(),
                 *versions.items(), ('seconds', round(result['seconds']))])
    _write(folder / 'result.json', json.dumps(result, indent=2) + '\n')
    _write(folder / 'confusion_matrix.csv', lines.getvalue())
    _write(folder / 'report.html', page + '\n')


def _write(path, text):
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode(errors='replace'))


def verdict(miou, settings):
    """Return one line: the published figure, and how far mIoU in [0, 1] is."""
    if miou is None:
        return 'no pixel is labelled: there is no score'
    published = PUBLISHED.get((
        settings['dataset'], settings['split'], settings['output_stride'],
        tuple(settings['scales']), settings['flip']))
    if published is None or settings['resize_range']:
        return 'no figure was published for these settings'
    said = f'published {published:.2f} %'
    if settings['images'] != settings['images_of_split']:
        return (f'{said}, for all {settings["images_of_split"]} images of the '
                'split: not comparable')
    difference = 100 * miou - published
    said += f', difference {difference:+.2f}'
    if settings['precision'] != 'float32':
        return f'{said} in {settings["precision"]}'
    within = 'within' if abs(difference) <= TOLERANCE else 'NOT within'
    return f'{said}: {within} {TOLERANCE}'
