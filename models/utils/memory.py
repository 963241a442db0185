"""Memory that this process can still allocate."""
import contextlib
import ctypes
import pathlib
import resource

from .errors import InputError

GB = 1e9
M_MMAP_THRESHOLD = -3  # malloc.h of glibc
# Files of a control group: its limit, its usage; and the line of memory.stat
# with what of that usage the kernel can take back.
V2_FILES = 'memory.max', 'memory.current', 'inactive_file'
V1_FILES = ('memory.limit_in_bytes', 'memory.usage_in_bytes',
            'total_inactive_file')


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
    """Give freed memory back to the system, of which glibc keeps much."""
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
