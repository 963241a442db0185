"""Memory that this process can still allocate."""
import pathlib
import resource

from .errors import InputError

GB = 1e9


def available_memory():
    """Return how many bytes this process can still allocate (Linux).

    The least of: free memory of the machine, and what the limits of a
    container (cgroup) and of `ulimit -v` leave. Infinity if all are unknown.
    """
    return max(0, min(_machine(), _cgroup(), _address_space()))


def check_memory(what, needed, advice='free some, or take a smaller image'):
    """Raise InputError where `what` needs more bytes than are free."""
    available = available_memory()
    if needed > available:
        raise InputError(
            f'{what} needs about {needed / GB:.1f} GB of memory, and '
            f'{available / GB:.1f} GB are free: {advice}')


def _machine():
    try:
        return _field('/proc/meminfo', 'MemAvailable') * 1024
    except (OSError, ValueError):  # no such line
        return float('inf')


def _cgroup(root=pathlib.Path('/sys/fs/cgroup')):
    """Version 2, then 1; a container sees its own limit at the root."""
    for limit, usage, statistics, reclaimable in (
            ('memory.max', 'memory.current', 'memory.stat', 'inactive_file'),
            ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes',
             'memory/memory.stat', 'total_inactive_file')):
        try:
            used = int((root / usage).read_text())
            return (int((root / limit).read_text()) - used
                    + _field(root / statistics, reclaimable))
        except (OSError, ValueError):  # no such file, or no limit ("max")
            continue
    return float('inf')


def _address_space():
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return float('inf')
    return limit - _field('/proc/self/status', 'VmSize') * 1024


def _field(path, name):
    """Return the number after `name` in a file of 'name number' lines."""
    for line in pathlib.Path(path).read_text().splitlines():
        words = line.replace(':', ' ').split()
        if words[0] == name:
            return int(words[1])
    raise ValueError(f'{path} has no {name}')
