"""Draw segmentations."""
import math

import numpy as np

PANEL_WIDTH = 6.4  # inches
PANEL_HEIGHT = 6.4  # inches at most
ROW_HEIGHT = 0.27  # inches, of the legend
DPI = 150


def colorize(label, colors):
    """Paint a label map.

    Args:
        label (numpy.ndarray, (H, W), int): classes.
        colors (numpy.ndarray, (n_class, 3), uint8): the palette.

    Returns:
        numpy.ndarray, (H, W, 3), uint8, RGB.

    """
    return colors[label]


def draw_segmentation(figure, image, label, names, colors):
    """Draw an image beside its segmentation, with the classes present.

    Args:
        figure (matplotlib.figure.Figure): an empty figure; its size is set.
        image (numpy.ndarray, (3, H, W)): RGB in [0, 255].
        label (numpy.ndarray, (H, W), int): classes.
        names (sequence of str): name of each class.
        colors (numpy.ndarray, (n_class, 3), uint8): the palette.

    """
    from matplotlib.patches import Patch
    counts = np.bincount(label.ravel(), minlength=len(names))
    present = [i for i in np.argsort(-counts, kind='stable') if counts[i]]
    handles = [Patch(facecolor=colors[i] / 255, edgecolor='0.5',
                     linewidth=0.5, label=names[i]) for i in present]

    height, width = label.shape
    scale = min(PANEL_WIDTH / width, PANEL_HEIGHT / height)  # inches a pixel
    panel_height = height * scale
    page_width = 2 * PANEL_WIDTH + 0.6
    columns = min(len(handles), int(page_width // 1.8))
    legend_height = ROW_HEIGHT * math.ceil(len(handles) / columns) + 0.2
    page_height = panel_height + legend_height + 0.4
    figure.set_size_inches(page_width, page_height)

    bottom = legend_height / page_height
    axes = figure.subplots(1, 2, gridspec_kw={
        'left': 0.015, 'right': 0.985, 'wspace': 0.03, 'bottom': bottom,
        'top': bottom + panel_height / page_height})
    panels = [('image', image.transpose(1, 2, 0).astype(np.uint8)),
              ('segmentation', colorize(label, colors))]
    for ax, (title, pixels) in zip(axes, panels, strict=True):
        ax.imshow(pixels, interpolation='nearest'
                  if max(height, width) < 300 else 'antialiased')
        ax.set_title(title, fontsize=10)
        ax.set_axis_off()
    figure.legend(handles=handles, loc='lower center', ncols=columns,
                  frameon=False, fontsize=9, handlelength=1.4)
