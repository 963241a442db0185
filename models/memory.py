"""What an image needs of a machine, and what is free: memory, and cores."""
import contextlib
import ctypes
import math
import os
import pathlib
import resource

import numpy as np
from chainer.backends import cuda

from .constants import LOGITS_STRIDE
from .utils.errors import InputError

# Memory of Chainer: bytes, and bytes for a pixel. Measured, on a CPU by output
# stride, on a GPU with cuDNN and without.
CPU_MEMORY = {8: (130e6, 2150), 16: (130e6, 1500)}
GPU_MEMORY = {True: (0.2e9, 1500), False: (0.2e9, 3500)}
M_MMAP_THRESHOLD = -3  # malloc.h of glibc
GROUPS, OWN_GROUPS = '/sys/fs/cgroup', '/proc/self/cgroup'
# Files of a control group, in version 2 and 1: its limit of memory, its usage,
# and the line of memory.stat with the part that the kernel can reclaim.
LIMITS = [('memory.max', 'memory.current', 'inactive_file'),
          ('memory.limit_in_bytes', 'memory.usage_in_bytes',
           'total_inactive_file')]


def chainer_memory(link, height, width):
    """Return the bytes that Chainer takes where the link is."""
    fixed, per_pixel = (CPU_MEMORY[link.output_stride] if link.xp is np else
                        GPU_MEMORY[cuda.cudnn_enabled])
    return fixed + per_pixel * height * width


def logits_memory(link, height, width):
    """Return the bytes of the logits of all scales, held twice; on a GPU at the
    image's size, where they are all held with two results.
    """
    n_maps = 2 if link.flip else 1
    if link.xp is not np:
        return 4 * link.n_class * height * width * (
            n_maps * len(link.scales) + 2)
    pixels = sum(max(1, scale) ** 2 for scale in link.scales) * (
        height * width / LOGITS_STRIDE ** 2)
    return 2 * 4 * link.n_class * pixels * n_maps


def free_memory(link):
    """Return the bytes that are free where the link is; on a GPU, with those
    that CuPy keeps, and frees where it needs them.
    """
    if link.xp is np:
        return available_memory()
    return (cuda.cupy.cuda.runtime.memGetInfo()[0]
            + cuda.cupy.get_default_memory_pool().free_bytes())


def check_memory(what, needed, advice='free some, or take a smaller image'):
    """Raise InputError where `what` needs more bytes than are free."""
    available = available_memory()
    if needed > available:
        raise InputError(
            f'{what} needs about {needed / 1e9:.1f} GB of memory, and '
            f'{available / 1e9:.1f} GB are free: {advice}')


def available_memory():
    """Return how many bytes this process can still allocate: of the machine's,
    of its control groups' (containers, SLURM, systemd), and of `ulimit -v`.
    """
    import psutil  # 6 ms, which a conversion does not need
    left = min(psutil.virtual_memory().available, left_in_control_groups())
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        left = min(left, limit - psutil.Process().memory_info().vms)
    return max(0, left)


def left_in_control_groups(root=GROUPS, own=OWN_GROUPS):
    """Return the bytes that control groups leave; infinity without a limit."""
    left = [math.inf]
    for group in _control_groups('memory', root, own):
        for limit, usage, reclaimable in LIMITS:
            with contextlib.suppress(OSError, ValueError, KeyError):  # no limit
                stat = dict(line.split(maxsplit=1) for line in (
                    group / 'memory.stat').read_text().splitlines())
                left.append(int((group / limit).read_text())
                            + int(stat[reclaimable])
                            - int((group / usage).read_text()))
    return min(left)


def cores():
    """Return how many cores this process may use."""
    bound = len(os.sched_getaffinity(0)) if hasattr(
        os, 'sched_getaffinity') else os.cpu_count()  # macOS
    return min(bound, quota_of_cores() or bound)


def quota_of_cores(root=GROUPS, own=OWN_GROUPS):
    """Return the cores that control groups leave, rounded up; 0: no quota."""
    found = []
    for group in _control_groups('cpu', root, own):
        for names in ['cpu.max'], ['cpu.cfs_quota_us', 'cpu.cfs_period_us']:
            with contextlib.suppress(OSError, ValueError):  # no quota
                quota, period = map(int, ' '.join(
                    (group / name).read_text() for name in names).split())
                found.append(math.ceil(quota / period))
    return min((each for each in found if each > 0), default=0)


def _control_groups(controller, root, own):
    """Yield the folder of this process's control group, which SLURM and systemd
    limit, and those above; a container sees its own limit at the root.

    Lines of `own` are 'number:controllers:path', without controllers in version
    2 (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    with contextlib.suppress(OSError):  # not Linux
        for line in pathlib.Path(own).read_text().splitlines():
            _, controllers, path = line.split(':', 2)
            if not controllers or controller in controllers.split(','):
                group = pathlib.Path(root, controller if controllers else '',
                                     path.strip('/'))
                yield from (group, *group.parents)


def give_back():
    """Return freed memory to the system; glibc would keep much of it."""
    _glibc('malloc_trim', 0)


@contextlib.contextmanager
def giving_back():
    """In the body, blocks of a megabyte and more are given back when freed."""
    _glibc('mallopt', M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:  # what glibc goes up to by itself
        _glibc('mallopt', M_MMAP_THRESHOLD, 1 << 25)


def _glibc(name, *args):
    with contextlib.suppress(AttributeError, OSError):  # another C library
        getattr(ctypes.CDLL(None), name)(*args)
