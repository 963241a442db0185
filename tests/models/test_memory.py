"""What is known of the memory that is left."""
import resource

import pytest
from conftest import linux_only

from models import memory
from models.utils.errors import InputError

V1, V2 = '9:name=systemd:/\n4:cpu,memory:{}\n0::/\n', '0::{}\n'


def group(folder, limit, used, version=2):
    """The files of a control group, of whose usage 100 can be taken back."""
    names = {2: ('max', 'current', 'inactive_file'),
             1: ('limit_in_bytes', 'usage_in_bytes', 'total_inactive_file')}
    limit_name, usage_name, reclaimable = names[version]
    return {f'{folder}memory.{limit_name}': limit,
            f'{folder}memory.{usage_name}': used,
            f'{folder}memory.stat': f'anon 300\n{reclaimable} 100\n'}


@pytest.mark.parametrize(('own', 'files', 'available'), [
    (V2.format('/'), group('', 1000, 400), 700),  # a container
    (V2.format('/'), group('', 'max', 400), float('inf')),
    (V1.format('/'), group('memory/', 1000, 400, 1), 700),
    (V2.format('/'), {}, float('inf')),
    ('', group('', 1000, 400), float('inf')),
    # The group itself, as of SLURM and systemd, and one above it.
    (V2.format('/slurm/job_7'), group('slurm/job_7/', 1000, 400), 700),
    (V2.format('/a.slice/b.scope'), {
        **group('a.slice/', 900, 600),
        **group('a.slice/b.scope/', 'max', 400)}, 400),
    (V2.format('/a.slice/b.scope'), {
        **group('a.slice/', 5000, 600),
        **group('a.slice/b.scope/', 1000, 400)}, 700),
    (V1.format('/slurm/job_7'), {
        **group('memory/', 2**63 - 4096, 700, 1),
        **group('memory/slurm/job_7/', 1000, 400, 1)}, 700),
    # Seen from a container, the host's path leads nowhere.
    (V1.format('/docker/0a1b'), group('memory/', 1000, 400, 1), 700),
])
def test_limits_of_control_groups(tmp_path, own, files, available):
    (tmp_path / 'own').write_text(own)
    for name, text in files.items():
        path = tmp_path / 'root' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    assert memory._cgroup(tmp_path / 'root', tmp_path / 'own') == available


def test_without_control_groups(tmp_path):
    assert memory._cgroup(tmp_path, tmp_path / 'none') == float('inf')


@linux_only
def test_limit_of_the_address_space(monkeypatch):
    monkeypatch.setattr(resource, 'getrlimit', lambda which: (10**12, 10**12))
    assert 0 < memory._address_space() < 10**12


def test_says_what_was_needed(monkeypatch):
    monkeypatch.setattr(memory, 'available_memory', lambda: 1.25e9)
    memory.check_memory('this', 1.2e9)
    with pytest.raises(InputError, match=r'this needs about 1\.3 GB of '
                       r'memory, and 1\.2 GB are free'):
        memory.check_memory('this', 1.3e9)


def test_this_machine():
    assert 0 < memory.available_memory() < 1e15
