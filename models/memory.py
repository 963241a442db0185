"""Memory: what an image needs, and what is free, on each backend."""
import contextlib
import ctypes
import math
import pathlib
import resource

import chainer
import numpy as np
from chainer.backends import cuda

from .constants import LOGITS_STRIDE
from .utils.errors import InputError

# Memory of Chainer on a CPU, by output stride: bytes, and bytes for a pixel.
CHAINER_MEMORY = {8: (130e6, 2150), 16: (130e6, 1500)}  # measured
# On a GPU, with cuDNN and without.
GPU_MEMORY, GPU_MEMORY_WITHOUT_CUDNN = (0.2e9, 1500), (0.2e9, 3500)
MAX_NUMBERS = 1 << 31  # of an array on a GPU: cuDNN 8 takes no more
NUMBERS_PER_PIXEL = 32  # of the backbone's largest arrays
GB = 1e9
M_MMAP_THRESHOLD = -3  # malloc.h of glibc
# Files of a control group with its limit and its usage, and the line of
# memory.stat with the part of that usage which the kernel can reclaim.
V2_FILES = 'memory.max', 'memory.current', 'inactive_file'
V1_FILES = ('memory.limit_in_bytes', 'memory.usage_in_bytes',
            'total_inactive_file')


def memory_needed(link, engine, height, width):
    """Return about how many more bytes `link.predict` takes for an image;
    infinity where it must be cut into tiles. `engine` runs the link, or is
    None for Chainer.
    """
    padded = [max(side, least) for side, least in zip(
        link.resized_size(height, width), link.min_input_size, strict=True)]
    scaled = [int(side * max(link.scales)) for side in padded]
    if link.xp is not np and engine is not None:
        return engine.memory_needed(padded, link.scales, link.flip)
    if link.xp is not np:
        return _gpu_memory(link, *padded, *scaled)
    network = (chainer_memory(link, *scaled) if engine is None else
               engine.memory_needed(*scaled))
    return network + logits_memory(link, *padded)


def chainer_memory(link, height, width):
    """Return the bytes that Chainer takes on a CPU."""
    fixed, per_pixel = CHAINER_MEMORY[link.output_stride]
    return fixed + per_pixel * height * width


def logits_memory(link, height, width):
    """Return the bytes of the logits of all scales, held twice."""
    pixels = sum(max(1, scale) ** 2 for scale in link.scales) * (
        height * width / LOGITS_STRIDE ** 2)
    return 2 * 4 * link.n_class * pixels * (2 if link.flip else 1)


def _gpu_memory(link, height, width, scaled_height, scaled_width):
    numbers = link.n_class * height * width
    scaled = scaled_height * scaled_width
    if max(numbers, scaled * max(NUMBERS_PER_PIXEL, link.n_class
                                 / LOGITS_STRIDE ** 2)) >= MAX_NUMBERS:
        return math.inf
    fixed, per_pixel = (
        GPU_MEMORY if cuda.cudnn_enabled and chainer.config.use_cudnn != 'never'
        else GPU_MEMORY_WITHOUT_CUDNN)
    n_maps = len(link.scales) * (2 if link.flip else 1) + 2
    return fixed + per_pixel * scaled + n_maps * 4 * numbers


def free_memory(link):
    """Return the bytes that are free where the link is; on a GPU, with those
    that CuPy keeps for later.
    """
    if link.xp is np:
        return available_memory()
    return (cuda.cupy.cuda.runtime.memGetInfo()[0]
            + cuda.cupy.get_default_memory_pool().free_bytes())


def make_room(needed):
    """Give back what CuPy keeps for later where so many bytes do not fit
    beside it: after images of other sizes. Raise InputError where nothing
    would help.
    """
    if needed == math.inf:
        raise InputError('the image is too large for a GPU: an array would '
                         f'have more than {MAX_NUMBERS} numbers (demo.py works '
                         'in tiles)')
    if needed > cuda.cupy.cuda.runtime.memGetInfo()[0]:
        cuda.cupy.get_default_memory_pool().free_all_blocks()


def available_memory():
    """Return how many bytes this process can still allocate.

    The least of: free memory of the machine, and what the limits of control
    groups (containers, SLURM, systemd) and of `ulimit -v` leave.
    """
    return max(0, min(_machine(), _cgroup(), _address_space()))


def check_memory(what, needed, advice='free some, or take a smaller image'):
    """Raise InputError where `what` needs more bytes than are free."""
    available = available_memory()
    if needed > available:
        raise InputError(
            f'{what} needs about {needed / GB:.1f} GB of memory, and '
            f'{available / GB:.1f} GB are free: {advice}')


def give_back():
    """Return freed memory to the system; glibc would keep much of it."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def giving_back():
    """In the body, blocks of a megabyte and more are given back when freed."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        yield
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # what glibc goes up to by itself


def _machine():
    import psutil
    return psutil.virtual_memory().available


def _cgroup(root=pathlib.Path('/sys/fs/cgroup'),
            own=pathlib.Path('/proc/self/cgroup')):
    """What the limits of this process's group, and of all above it, leave.

    SLURM and systemd limit the group itself; a container sees its own limit at
    the root. Lines of `own` are 'number:controllers:path', without controllers
    in version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    left = float('inf')
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return left
    for line in lines:
        _, controllers, path = line.split(':', 2)
        if not controllers:
            top, files = root, V2_FILES
        elif 'memory' in controllers.split(','):
            top, files = root / 'memory', V1_FILES
        else:
            continue
        group = top / path.strip('/')
        for folder in (group, *group.parents):
            if top in (folder, *folder.parents):
                left = min(left, _left(folder, *files))
    return left


def _left(folder, limit, usage, reclaimable):
    try:
        used = int((folder / usage).read_text())
        return (int((folder / limit).read_text()) - used
                + _field(folder / 'memory.stat', reclaimable))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        return float('inf')


def _address_space():
    import psutil
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return float('inf')
    return limit - psutil.Process().memory_info().vms


def _field(path, name):
    """Return the number after `name` in a file of 'name number' lines."""
    for line in path.read_text().splitlines():
        words = line.split()
        if words[0] == name:
            return int(words[1])
    raise ValueError(f'{path} has no {name}')
