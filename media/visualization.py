"""Draw segmentations, with Pillow: quick enough to keep up with the network."""
import functools
import importlib.util
import math
import pathlib

import numpy as np

PANEL_SIDE = 960  # pixels at most; a larger picture is drawn smaller
SMALL_SIDE = 480  # pixels to which a smaller one is drawn larger
PAGE_WIDTH = 720  # pixels at least
MARGIN, ROW = 14, 26  # pixels; height of a row of the legend
TEXT, SIZE = (34, 34, 34), 16  # colour and height of letters
HIDDEN = 255  # stands in an indexed picture for classes that are not shown


def shares(label: np.ndarray, names, shown=None) -> dict[str, float]:
    """Return class name -> share of the pixels, the largest first.

    Args:
        label (numpy.ndarray, (H, W), int): classes.
        names (sequence of str): name of each class.
        shown (collection of int): only these classes; by default all.

    """
    counts = np.bincount(label.ravel(), minlength=len(names))
    order = np.argsort(-counts, kind='stable')
    return {names[k]: float(counts[k] / label.size) for k in order
            if counts[k] and (shown is None or k in shown)}


def colorize(label: np.ndarray, colors: np.ndarray, shown=None) -> np.ndarray:
    """Paint a label map.

    Args:
        label (numpy.ndarray, (H, W), int): classes.
        colors (numpy.ndarray, (n_class, 3), uint8): the palette.
        shown (collection of int): the other classes become black.

    Returns:
        numpy.ndarray, (H, W, 3), uint8, RGB.

    """
    palette = np.array(colors, np.uint8)
    palette[_hidden(len(palette), shown)] = 0
    return palette[label]


def overlay(image: np.ndarray, label: np.ndarray, colors: np.ndarray,
            opacity: float = 0.6, shown=None) -> np.ndarray:
    """Lay the colours of the classes over a picture.

    Args:
        image (numpy.ndarray, (3, H, W)): RGB in [0, 255].
        label (numpy.ndarray, (H, W), int): classes.
        colors (numpy.ndarray, (n_class, 3), uint8): the palette.
        opacity (float): of the colours, 0 to 1.
        shown (collection of int): the other classes stay uncoloured.

    Returns:
        numpy.ndarray, (H, W, 3), uint8, RGB.

    """
    weight = np.full(len(colors), opacity, np.float32)
    weight[_hidden(len(colors), shown)] = 0
    tint = (np.asarray(colors, np.float32) * weight[:, np.newaxis])[label]
    result = image.transpose(1, 2, 0) * (1 - weight)[label][..., np.newaxis]
    result += tint
    return (result + 0.5).astype(np.uint8)


def indexed(label, colors, shown=None):
    """Return a picture that holds the exact classes and shows in colour.

    Args:
        label (numpy.ndarray, (H, W), int): classes.
        colors (numpy.ndarray, (n_class, 3), uint8): the palette.
        shown (collection of int): the other classes become `HIDDEN`.

    Returns:
        PIL.Image.Image: of mode P.

    """
    from PIL import Image
    values = np.arange(len(colors), dtype=np.uint8)
    values[_hidden(len(colors), shown)] = HIDDEN
    picture = Image.fromarray(values[label])
    palette = np.zeros((256, 3), np.uint8)
    palette[:len(colors)] = colors
    picture.putpalette(palette.tobytes())
    return picture


def figure(image, label, names, colors, shown=None):
    """Draw an image beside its segmentation, above the classes present.

    Args:
        image (numpy.ndarray, (3, H, W)): RGB in [0, 255].
        label (numpy.ndarray, (H, W), int): classes.
        names (sequence of str): name of each class.
        colors (numpy.ndarray, (n_class, 3), uint8): the palette.
        shown (collection of int): only these classes are painted.

    Returns:
        PIL.Image.Image: of mode RGB.

    """
    from PIL import Image, ImageDraw
    painted = colorize(label, colors) if shown is None else overlay(
        image, label, colors, 1., shown)
    panels = [_panel(image.transpose(1, 2, 0).astype(np.uint8)),
              _panel(painted)]
    width, height = panels[0].size
    page_width = max(PAGE_WIDTH, 2 * width + 3 * MARGIN)
    legend = _legend(shares(label, names, shown), dict(zip(
        names, colors, strict=True)), page_width - 2 * MARGIN)
    page = Image.new('RGB', (page_width, height + legend.height + 3 * MARGIN
                             + ROW), 'white')
    draw = ImageDraw.Draw(page)
    left = (page_width - 2 * width - MARGIN) // 2
    for title, panel in zip(('image', 'segmentation'), panels, strict=True):
        draw.text((left + width / 2, MARGIN + ROW / 2 - 3), title, TEXT,
                  _font(), anchor='mm')
        page.paste(panel, (left, MARGIN + ROW))
        left += width + MARGIN
    page.paste(legend, (MARGIN, height + 2 * MARGIN + ROW))
    return page


def _hidden(n_class, shown):
    return np.isin(np.arange(n_class), list(range(n_class) if shown is None
                                            else shown), invert=True)


def _panel(pixels):
    from PIL import Image
    picture = Image.fromarray(pixels)
    longest = max(picture.size)
    scale = PANEL_SIDE / longest if longest > PANEL_SIDE else max(
        1, SMALL_SIDE // longest)
    size = [max(1, round(side * scale)) for side in picture.size]
    return picture.resize(size, Image.Resampling.BOX if scale < 1 else
                          Image.Resampling.NEAREST)


def _legend(present, colors, width):
    from PIL import Image, ImageDraw
    texts = {name: f'{name}  {percent(share)}'
             for name, share in present.items()}
    widest = max((_font().getlength(text) for text in texts.values()),
                 default=0) + ROW + MARGIN
    columns = max(1, min(len(texts), int(width // widest)))
    rows = math.ceil(len(texts) / columns)
    picture = Image.new('RGB', (width, max(1, rows * ROW)), 'white')
    draw = ImageDraw.Draw(picture)
    for i, (name, text) in enumerate(texts.items()):
        x, y = i % columns * (width // columns), i // columns * ROW
        draw.rectangle((x, y + 4, x + 17, y + 21), tuple(
            int(value) for value in colors[name]), (128, 128, 128))
        draw.text((x + ROW, y + ROW // 2), text, TEXT, _font(), anchor='lm')
    return picture


def percent(share):
    """Return a share in [0, 1] as text."""
    return f'{100 * share:.1f} %' if share >= 0.001 else '< 0.1 %'


@functools.cache
def _font():
    """Matplotlib's font: it has the letters of most languages."""
    from PIL import ImageFont
    package = importlib.util.find_spec('matplotlib')
    if package is None:
        return ImageFont.load_default(SIZE)
    folder = pathlib.Path(package.submodule_search_locations[0])
    return ImageFont.truetype(
        folder / 'mpl-data' / 'fonts' / 'ttf' / 'DejaVuSans.ttf', SIZE)
