"""The memory that an image takes in `predict`, on each backend."""
import numpy as np

from .constants import LOGITS_STRIDE
from .utils.memory import available_memory

# Memory of Chainer on a CPU, by output stride: bytes, and bytes for a pixel.
CHAINER_MEMORY = {8: (130e6, 2150), 16: (130e6, 1500)}  # measured


def memory_needed(link, engine, height, width):
    """Return about how many more bytes an image takes; `engine` runs the link
    on a CPU, or is None for Chainer.
    """
    padded = [max(side, least) for side, least in zip(
        link.resized_size(height, width), link.min_input_size, strict=True)]
    scaled = [int(side * max(link.scales)) for side in padded]
    if link.xp is not np:
        from . import gpu
        return gpu.memory_needed(link, *padded, scaled)
    network = (chainer_memory(link, *scaled) if engine is None else
               engine.memory_needed(*scaled))
    return network + logits_memory(link, *padded)


def chainer_memory(link, height, width):
    fixed, per_pixel = CHAINER_MEMORY[link.output_stride]
    return fixed + per_pixel * height * width


def logits_memory(link, height, width):
    """Return the bytes of the logits of all scales, held twice."""
    pixels = sum(max(1, scale) ** 2 for scale in link.scales) * (
        height * width / LOGITS_STRIDE ** 2)
    return 2 * 4 * link.n_class * pixels * (2 if link.flip else 1)


def free_memory(link):
    """Return the bytes that are free where the link is."""
    if link.xp is np:
        return available_memory()
    from . import gpu
    return gpu.free_memory()
