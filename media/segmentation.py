"""Segment one image, within the memory: in overlapping tiles if need be."""
import fractions
import math
import time

import numpy as np
from PIL import Image

from media.images import to_array, to_pillow
from models.constants import PAD_VALUE
from models.utils.errors import InputError

MAX_GRID = 256  # pixels
SMALLEST = 32  # pixels of a tile, minus 1
MARGIN = 256  # pixels at most that a tile sees beyond its own part


class Segmenter:
    """Segments images.

    Args:
        model (DeepLabV3plusXception65): the network.
        max_size (int): larger images are shrunk to this longer side, in
            pixels; None: never.
        memory (float): bytes that may be taken; None: what is free.
    """

    def __init__(self, model, max_size=None, memory=None):
        self.model, self.max_size, self.memory = model, max_size, memory
        self._is_compared = model.precision == 'float32'

    def segment(self, image):
        """Segment an image (3, H, W), RGB in [0, 255].

        Return the label map, int32, (H, W); its record: 'height' and 'width'
        in pixels, number of 'tiles', 'precision' and 'seconds'; and lines that
        a user should read.
        """
        begun, notes = time.perf_counter(), []
        memory = self.memory or self.model.free_memory()
        small = shrunk(image, self.max_size)
        label, n_tiles = predict_within(self.model, small, memory)
        record = {'height': image.shape[1], 'width': image.shape[2],
                  'tiles': n_tiles, 'precision': self.model.precision,
                  'seconds': time.perf_counter() - begun}
        if n_tiles > 1:
            notes.append(f'in {n_tiles} overlapping tiles, as the whole needs '
                         'more memory')
        if not self._is_compared:
            self._is_compared = True
            equal = equal_to_float32(self.model, small, label, memory)
            notes.append(f'in {self.model.precision}, labels {equal:.2%} equal '
                         'to float32')
        if small is not image:
            label = np.asarray(Image.fromarray(label).resize(
                image.shape[:0:-1], Image.Resampling.NEAREST))
        return label, record, notes


def equal_to_float32(model, image, label, memory=math.inf):
    """Return the share of labels of an image that float32 gives as well."""
    with model.in_float32():
        expected, _ = predict_within(model, image, memory)
    return float((label == expected).mean())


def shrunk(image, max_size):
    """Return an image (3, H, W) with its longer side at most max_size."""
    height, width = image.shape[1:]
    if max_size is None or max(height, width) <= max_size:
        return image
    scale = max_size / max(height, width)
    return to_array(to_pillow(image).resize(
        [max(1, round(side * scale)) for side in (width, height)]))


def predict_within(model, image, memory):
    """Segment an image (3, H, W), RGB in [0, 255], in `memory` bytes.

    Return the label map, int32, (H, W), and the number of tiles, 1 for the
    whole image. Tiles are sampled where the whole image would be; exactly so
    if its sides are a multiple of `grid_of` the model, plus 1. A tile sees no
    further than its margin, and image pooling sees one tile. Raise InputError
    where not even a small tile fits.
    """
    height, width = image.shape[1:]
    needed = model.memory_needed(height, width)
    if needed <= memory:
        return model.predict([image])[0], 1
    if model.resize_range is not None:
        raise InputError(
            f'an image of {height} x {width} pixels needs {needed / 1e9:.1f} '
            f'GB of memory, and {memory / 1e9:.1f} GB may be taken; a model '
            'that resizes images cannot work in tiles: raise --memory, or free '
            'some')
    grid = grid_of(model)
    size = _tile_size(model, (height, width), memory, grid)
    label = np.empty((height, width), np.int32)
    tiles = [(rows, columns) for rows in _spans(height, size[0], grid)
             for columns in _spans(width, size[1], grid)]
    for (y, top, bottom), (x, left, right) in tiles:
        tile = np.full((3, *size), PAD_VALUE, np.float32)
        seen = image[:, y:y + size[0], x:x + size[1]]
        tile[:, :seen.shape[1], :seen.shape[2]] = seen
        found, = model.predict([tile])
        label[top:bottom, left:right] = found[top - y:bottom - y,
                                              left - x:right - x]
    return label, len(tiles)


def grid_of(model):
    """Return the number of pixels at whose multiples tiles begin, so that the
    network samples there: a multiple of the output stride at each scale.

    Scales for which it would be above `MAX_GRID` are left out of account.
    """
    grid = stride = model.output_stride
    for scale in model.scales:
        ratio = fractions.Fraction(max(scale, 0.01)).limit_denominator(100)
        step = (stride / ratio).numerator
        if math.lcm(grid, step) <= MAX_GRID:
            grid = math.lcm(grid, step)
    return grid


def _tile_size(model, size, memory, grid):
    """Return the largest tile that fits: a square, or narrower."""
    whole = [grid * math.ceil((side - 1) / grid) + 1 for side in size]
    longest = max(whole)
    while True:
        tile = [min(longest, side) for side in whole]
        needed = model.memory_needed(*tile)
        if needed <= memory:
            return tile
        longest = (longest * 7 // 8) // grid * grid + 1
        if longest <= max(grid, SMALLEST) + 1:
            raise InputError(
                f'even a small tile needs {needed / 1e9:.1f} GB of memory, and '
                f'{memory / 1e9:.1f} GB may be taken: raise --memory, or '
                'lower --input-size')


def _spans(length, tile, grid):
    """Return (begin, first, last) of tiles: each labels [first, last)."""
    if tile >= length:
        return [(0, 0, length)]
    margin = min(MARGIN, tile // 4) // grid * grid
    step = tile - 1 - 2 * margin
    count = math.ceil((length - tile) / step) + 1
    begins = [i * step for i in range(count)]
    inner = [begin + margin for begin in begins[1:]]
    return list(zip(begins, [0, *inner], [*inner, length], strict=True))
