"""What an evaluation leaves behind: a table, files, and a page to look at."""
import base64
import html
import io
import json

import numpy as np

from models.utils.files import atomic_path

# Mean IoU by (data set, split, output stride, scales, flip). One scale at
# stride 8: the converted models of ChainerCV's example. The others: the
# official model zoo, which on ADE20K also resizes the images.
TO_175 = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
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


def verdict(result):
    """Return one line: the published figure, and how far this one is."""
    settings = result['settings']
    published = PUBLISHED.get((
        settings['dataset'], settings['split'], settings['output_stride'],
        tuple(settings['scales']), settings['flip']))
    if published is None:
        return 'no figure was published for these settings'
    if settings['images'] != settings['images_of_split']:
        return (f'published {published:.2f} %, for all '
                f'{settings["images_of_split"]} images of the split: not '
                'comparable')
    difference = 100 * result['miou'] - published
    within = abs(difference) <= TOLERANCE
    return (f'published {published:.2f} %, difference {difference:+.2f}: '
            f'{"within" if within else "NOT within"} {TOLERANCE}')


def table(result):
    """Return the scores as lines of text, as ChainerCV's example has them."""
    rows = [*result['iou'].items(), None,
            *result.get('category_iou', {}).items(),
            *([None] if 'category_iou' in result else []),
            ('mean IoU', result['miou']),
            ('Class average accuracy', result['mean_class_accuracy']),
            ('Global average accuracy', result['pixel_accuracy'])]
    lines = []
    for row in rows:
        if row is None:
            lines.append('=' * 32)
        else:
            name, value = row
            lines.append(f'{name:>23} : ' + (
                'not there' if value is None else f'{value:.4f}'))
    return '\n'.join(lines)


def write_report(folder, result, matrix, colors, examples):
    """Write result.json, the confusion matrix, charts and report.html.

    Args:
        folder (pathlib.Path): exists.
        result (dict): what result.json is to hold; 'iou' is by class name.
        matrix (numpy.ndarray, (n_class, n_class), int64): true by predicted.
        colors (numpy.ndarray, (n_class, 3), uint8): of the classes.
        examples (list): of (title, name, image (3, H, W), label, prediction,
            IoU), with label and prediction (H, W).

    """
    _write(folder / 'result.json', json.dumps(result, indent=2) + '\n')
    names = list(result['iou'])
    lines = [','.join(['true \\ predicted', *names])]
    lines += [','.join(map(str, [name, *row]))
              for name, row in zip(names, matrix.tolist(), strict=True)]
    _write(folder / 'confusion_matrix.csv', '\n'.join(lines) + '\n')
    charts = {'iou.png': _bar_chart(result, colors),
              'confusion_matrix.png': _matrix_chart(names, matrix)}
    for name, data in charts.items():
        _write(folder / name, data)
    _write(folder / 'report.html', _page(result, charts, examples, colors))


def _write(path, content):
    data = content if isinstance(content, bytes) else content.encode(
        errors='replace')
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _bar_chart(result, colors):
    from matplotlib.figure import Figure
    names, values = zip(*result['iou'].items(), strict=True)
    figure = Figure((7, 1 + 0.2 * len(names)), layout='constrained')
    axes = figure.subplots()
    percent = [100 * (value or 0) for value in values]
    axes.barh(names, percent, color=colors / 255, edgecolor='#444',
              linewidth=0.5)
    for y, (value, width) in enumerate(zip(values, percent, strict=True)):
        axes.text(width + 1, y, 'not there' if value is None else
                  f'{width:.1f}', va='center', fontsize=7)
    axes.axvline(100 * (result['miou'] or 0), color='#444', linewidth=0.8,
                 linestyle='--')
    axes.set(xlim=(0, 108), ylim=(len(names) - 0.4, -0.6), xlabel='IoU (%)',
             title=f'mean IoU {_percent(result["miou"])}')
    axes.tick_params(axis='y', labelsize=7)
    axes.spines[['top', 'right']].set_visible(False)
    return _png(figure)


def _matrix_chart(names, matrix):
    from matplotlib.figure import Figure
    side = 2 + 0.2 * len(names)
    figure = Figure((side + 1, side), layout='constrained')
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(100 * shares, cmap='Blues', vmin=0, vmax=100)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, fontsize=7)
    axes.set_yticks(places, names, fontsize=7)
    axes.set(xlabel='predicted', ylabel='true')
    figure.colorbar(picture, label="% of the true class's pixels", shrink=0.6)
    return _png(figure)


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=110)
    return file.getvalue()


def _percent(value):
    return 'not there' if value is None else f'{100 * value:.2f} %'


STYLE = '''
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem }
.miou { font-size: 2rem; margin: .3rem 0 }
table { border-collapse: collapse } td, th { padding: .1rem .8rem .1rem 0;
  text-align: left; vertical-align: top; overflow-wrap: anywhere }
td.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } figure { margin: 1.5rem 0 }
.three { display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem }
.three img { width: 100% } figcaption { margin-bottom: .3rem }
'''


def _page(result, charts, examples, colors):
    scores = ''.join(
        f'<tr><td>{html.escape(name)}<td class=number>{_percent(value)}'
        for name, value in [*result['iou'].items(),
                            *result.get('category_iou', {}).items()])
    settings = ''.join(
        f'<tr><td>{html.escape(name)}<td>{html.escape(str(value))}'
        for name, value in [
            ('model', result['model']), *result['settings'].items(),
            *result['versions'].items(), ('seconds', round(result['seconds']))])
    pictures = ''.join(_example(colors, *each) for each in examples)
    dataset = html.escape(result['settings']['dataset'])
    bars, matrix = (f'<img alt="{name}" src="{_data_url(data)}">'
                    for name, data in charts.items())
    return f'''<!doctype html>
<html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width">
<title>{dataset}: mean IoU {_percent(result['miou'])}</title>
<style>{STYLE}</style>
<h1>DeepLabV3+ Xception65 on {dataset}</h1>
<p class=miou>mean IoU {_percent(result['miou'])}
<p>{html.escape(result['verdict'])}<br>
pixel accuracy {_percent(result['pixel_accuracy'])}, mean class accuracy
{_percent(result['mean_class_accuracy'])}
<h2>IoU by class</h2>{bars}
<details><summary>as numbers</summary><table>{scores}</table></details>
<h2>Confusion matrix</h2>{matrix}
<h2>Best and worst images</h2>{pictures}
<h2>Settings</h2><table>{settings}</table>
</html>
'''


def _example(colors, title, name, image, label, prediction, iou):
    """Image, truth and prediction side by side; ignored pixels are black."""
    palette = np.vstack([colors, [[0, 0, 0]]]).astype(np.uint8)
    pictures = (image.transpose(1, 2, 0).astype(np.uint8), palette[label],
                palette[prediction])
    columns = ''.join(
        f'<div><img alt="{what}" src="{_thumbnail(picture)}"></div>'
        for what, picture in zip(('image', 'truth', 'prediction'), pictures,
                                 strict=True))
    return (f'<figure><figcaption>{title}: {html.escape(name)}, mean IoU '
            f'{_percent(iou)} (image, truth, prediction)</figcaption>'
            f'<div class=three>{columns}</div></figure>')


def _thumbnail(pixels, side=512):
    from PIL import Image
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, format='PNG')
    return _data_url(file.getvalue())


def _data_url(png):
    return f'data:image/png;base64,{base64.b64encode(png).decode()}'
