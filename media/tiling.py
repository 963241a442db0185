"""Segment an image that is too large for the memory, in overlapping tiles."""
import fractions
import math

import numpy as np

from models.constants import PAD_VALUE
from models.utils.errors import InputError

MAX_GRID = 256  # pixels
SMALLEST = 32  # pixels of a tile, minus 1
MARGIN = 256  # pixels at most that a tile sees beyond its own part


def predict_within(model, image, memory):
    """Segment an image (3, H, W), RGB in [0, 255], within a limit of memory.

    Return the label map, int32, (H, W), and the number of tiles, 1 for the
    whole image. Tiles are sampled where the whole image would be, exactly so
    if its sides are a multiple of `grid_of` the model, plus 1. A tile sees
    nothing beyond its margin, and image pooling sees the tile only. Raise
    InputError where not even a small tile fits into `memory` bytes.
    """
    height, width = image.shape[1:]
    if model.memory_needed(height, width) <= memory:
        return model.predict([image])[0], 1
    if model.resize_range is not None:
        raise InputError(
            f'an image of {height} x {width} pixels needs '
            f'{model.memory_needed(height, width) / 1e9:.1f} GB of memory, and '
            f'{memory / 1e9:.1f} GB may be taken; a model that resizes images '
            'cannot work in tiles: raise --memory, or free some')
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
    """Return of how many pixels tiles begin at multiples: of the output stride
    at each scale, so that the network samples there.

    Scales that have no such number below `MAX_GRID` are passed over.
    """
    grid = stride = model.output_stride
    for scale in model.scales:
        ratio = fractions.Fraction(scale).limit_denominator(100)
        step = stride * ratio.denominator // math.gcd(
            stride * ratio.denominator, ratio.numerator)
        if math.lcm(grid, step) <= MAX_GRID:
            grid = math.lcm(grid, step)
    return grid


def _tile_size(model, size, memory, grid):
    """Return the largest tile that fits: a square, or narrower."""
    whole = [grid * math.ceil((side - 1) / grid) + 1 for side in size]
    side = max(whole)
    while model.memory_needed(*_clipped(side, whole)) > memory:
        side = (side * 7 // 8) // grid * grid + 1
        if side <= max(grid, SMALLEST) + 1:
            needed = model.memory_needed(*_clipped(side, whole))
            raise InputError(
                f'even a small tile needs {needed / 1e9:.1f} GB of memory, and '
                f'{memory / 1e9:.1f} GB may be taken: raise --memory, or '
                'lower --input-size')
    return _clipped(side, whole)


def _clipped(side, whole):
    return [min(side, other) for other in whole]


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
