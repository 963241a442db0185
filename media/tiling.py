"""Segment an image that is too large for the memory, in overlapping tiles."""
import math

import numpy as np

from models.constants import PAD_VALUE
from models.utils.errors import InputError

GRID = 8  # pixels: tiles begin at its multiples, where the network samples
MARGIN = 256  # pixels at most that a tile sees beyond its own part


def predict_within(model, image, memory):
    """Segment an image (3, H, W), RGB in [0, 255], within a limit of memory.

    Return the label map, int32, (H, W), and the number of tiles, 1 for the
    whole image. Tiles are sampled where the whole image would be, exactly so
    if its sides are a multiple of 8, plus 1. A tile sees nothing beyond its
    margin, and image pooling sees the tile only. Raise InputError where not
    even a small tile fits into `memory` bytes.
    """
    height, width = image.shape[1:]
    if model.memory_needed(height, width) <= memory:
        return model.predict([image])[0], 1
    size = _tile_size(model, (height, width), memory)
    label = np.empty((height, width), np.int32)
    tiles = [(rows, columns) for rows in _spans(height, size[0])
             for columns in _spans(width, size[1])]
    for (y, top, bottom), (x, left, right) in tiles:
        tile = np.full((3, *size), PAD_VALUE, np.float32)
        seen = image[:, y:y + size[0], x:x + size[1]]
        tile[:, :seen.shape[1], :seen.shape[2]] = seen
        found, = model.predict([tile])
        label[top:bottom, left:right] = found[top - y:bottom - y,
                                              left - x:right - x]
    return label, len(tiles)


def _tile_size(model, size, memory):
    """Return the largest tile that fits: a square, or narrower."""
    whole = [GRID * math.ceil((side - 1) / GRID) + 1 for side in size]
    side = max(whole)
    while model.memory_needed(*_clipped(side, whole)) > memory:
        side = (side * 7 // 8) // GRID * GRID + 1
        if side <= 4 * GRID + 1:
            needed = model.memory_needed(*_clipped(side, whole))
            raise InputError(
                f'even a small tile needs {needed / 1e9:.1f} GB of memory, and '
                f'{memory / 1e9:.1f} GB may be taken: raise --memory, or '
                'lower --input-size')
    return _clipped(side, whole)


def _clipped(side, whole):
    return [min(side, other) for other in whole]


def _spans(length, tile):
    """Return (begin, first, last) of tiles: each labels [first, last)."""
    if tile >= length:
        return [(0, 0, length)]
    margin = min(MARGIN, tile // 4) // GRID * GRID
    step = tile - 1 - 2 * margin
    count = math.ceil((length - tile) / step) + 1
    begins = [i * step for i in range(count)]
    inner = [begin + margin for begin in begins[1:]]
    return list(zip(begins, [0, *inner], [*inner, length], strict=True))
