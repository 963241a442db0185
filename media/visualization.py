"""Draw segmentations with Pillow, fast enough to keep up with the network.

Shared arguments: `image` is (3, H, W), RGB in [0, 255]; `label` is (H, W),
int, the class of each pixel; for the others see `Style`.
"""
import functools
import importlib.util
import math
import pathlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from media import OPACITY
from media.images import to_pillow

PANEL_SIDE = 960  # pixels; larger images are drawn smaller
SMALL_SIDE = 480  # pixels; smaller images are drawn larger, up to it
PAGE_WIDTH = 720  # pixels at least
MARGIN, ROW = 14, 26  # pixels; height of a row of the legend
TEXT, SIZE = (34, 34, 34), 16  # colour and height of letters
HIDDEN = 255  # value in an indexed image of classes that are not shown


class Style(NamedTuple):
    """How the classes are drawn."""

    names: Sequence[str]
    colors: np.ndarray  # (n_class, 3), uint8, RGB
    class_filter: Collection[int] | None = None  # classes to show; None: all
    opacity: float = OPACITY  # of overlays, in [0, 1]


def draw(kind, image, label, style, all_classes=False):
    """Return one kind of result, 'figure', 'overlay', 'color_map' or
    'indexed', as a PIL.Image.Image; for `all_classes` see `figure`.
    """
    if kind == 'figure':
        return figure(image, label, style, all_classes)
    _, colors, class_filter, opacity = style
    if kind == 'indexed':
        return indexed(label, colors, class_filter)
    if kind == 'overlay':
        return overlay(image, label, colors, opacity, class_filter)
    return colorize(label, colors, class_filter)


def shares(label: np.ndarray, names, class_filter=None) -> dict[str, float]:
    """Return class name -> share of the pixels, in [0, 1], largest first."""
    counts = np.bincount(label.ravel(), minlength=len(names))
    order = np.argsort(-counts, kind='stable')
    return {names[k]: float(counts[k] / label.size) for k in order
            if counts[k] and (class_filter is None or k in class_filter)}


def percent(share, digits=1):
    """Return a share in [0, 1] as text; None is n/a."""
    if share is None:
        return 'n/a'
    least = 10 ** -digits
    return (f'< {least:.{digits}f} %' if 0 < 100 * share < least
            else f'{100 * share:.{digits}f} %')


def colorize(label: np.ndarray, colors: np.ndarray,
             class_filter=None) -> Image.Image:
    """Return a label map in colour, a PIL.Image.Image of mode RGB; the classes
    that are not shown are black.
    """
    palette = np.array(colors, np.uint8)
    palette[_hidden(len(palette), class_filter)] = 0
    return Image.fromarray(palette.take(label, axis=0))


def overlay(image: np.ndarray, label: np.ndarray, colors: np.ndarray,
            opacity: float = OPACITY, class_filter=None) -> Image.Image:
    """Return an image under the colours of its classes, a PIL.Image.Image of
    mode RGB.
    """
    below, hidden = to_pillow(image), _hidden(len(colors), class_filter)
    result = Image.blend(below, colorize(label, colors), opacity)
    return Image.composite(below, result, Image.fromarray(hidden[label])
                           ) if hidden.any() else result


def indexed(label, colors, class_filter=None):
    """Return the exact classes as a palette image, PIL.Image.Image of mode P;
    the classes that are not shown are `HIDDEN`.
    """
    values = np.arange(len(colors), dtype=np.uint8)
    values[_hidden(len(colors), class_filter)] = HIDDEN
    result = Image.fromarray(values[label])
    result.putpalette(np.asarray(colors, np.uint8).tobytes().ljust(768, b'\0'))
    return result


def _hidden(n_class, class_filter):
    """Return for each class whether it is not shown."""
    shown = range(n_class) if class_filter is None else class_filter
    return np.isin(np.arange(n_class), list(shown), invert=True)


def figure(image, label, style, all_classes=False):
    """Draw an image beside its segmentation, above a legend of the classes
    present, or of all, so that figures of one size are alike; return a
    PIL.Image.Image of mode RGB.
    """
    names, colors, class_filter, _ = style
    painted = colorize(label, colors) if class_filter is None else overlay(
        image, label, colors, 1., class_filter)
    panels = {'image': _panel(to_pillow(image)),
              'segmentation': _panel(painted)}
    width, height = panels['image'].size
    page_width = max(PAGE_WIDTH, 2 * width + 3 * MARGIN)
    present = shares(label, names, class_filter)
    if all_classes:
        present = {name: present.get(name, 0) for i, name in enumerate(names)
                   if class_filter is None or i in class_filter}
    legend = _legend(present, style, page_width - 2 * MARGIN, all_classes)
    page = Image.new('RGB', (page_width, height + legend.height + 3 * MARGIN
                             + ROW), 'white')
    canvas = ImageDraw.Draw(page)
    left = (page_width - 2 * width - MARGIN) // 2
    for title, panel in panels.items():
        canvas.text((left + width / 2, MARGIN + ROW / 2 - 3), title, TEXT,
                    _font(), anchor='mm')
        page.paste(panel, (left, MARGIN + ROW))
        left += width + MARGIN
    page.paste(legend, (MARGIN, height + 2 * MARGIN + ROW))
    return page


def _panel(image):
    longest = max(image.size)
    scale = PANEL_SIDE / longest if longest > PANEL_SIDE else max(
        1, SMALL_SIDE // longest)
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize(size, Image.Resampling.BOX if scale < 1 else
                        Image.Resampling.NEAREST)


def _legend(present, style, width, all_classes):
    """Draw the legend; that of all classes has one layout for any shares."""
    widest = ROW + MARGIN + max((_font().getlength(
        f'{name}  {percent(1 if all_classes else share)}')
        for name, share in present.items()), default=0)
    columns = max(1, min(len(present), int(width // widest)))
    rows = math.ceil(len(present) / columns)
    legend = Image.new('RGB', (width, max(1, rows * ROW)), 'white')
    canvas = ImageDraw.Draw(legend)
    for i, (name, share) in enumerate(present.items()):
        x, y = i % columns * (width // columns), i // columns * ROW
        color = style.colors[style.names.index(name)]
        canvas.rectangle((x, y + 4, x + 17, y + 21), tuple(color.tolist()),
                         (128, 128, 128))
        canvas.text((x + ROW, y + ROW // 2), f'{name}  {percent(share)}', TEXT,
                    _font(), anchor='lm')
    return legend


@functools.cache
def _font():
    """Return Matplotlib's font, which has the letters of most languages; the
    basic layout draws the same pixels whatever libraries a system has.
    """
    package = importlib.util.find_spec('matplotlib')
    folder = pathlib.Path(package.submodule_search_locations[0])
    return ImageFont.truetype(
        folder / 'mpl-data' / 'fonts' / 'ttf' / 'DejaVuSans.ttf', SIZE,
        layout_engine=ImageFont.Layout.BASIC)
