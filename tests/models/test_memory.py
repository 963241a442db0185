"""What is known of the memory that is left."""
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, linux_only

from models import DeepLabV3plusXception65, memory
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


@pytest.mark.parametrize(('own', 'files', 'left'), [
    (V2.format('/'), group('', 1000, 400), 700),  # a container
    (V2.format('/'), group('', 'max', 400), math.inf),
    (V1.format('/'), group('memory/', 1000, 400, 1), 700),
    (V2.format('/'), {}, math.inf),
    ('', group('', 1000, 400), math.inf),
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
def test_limits_of_control_groups(tmp_path, own, files, left):
    (tmp_path / 'own').write_text(own)
    for name, text in files.items():
        path = tmp_path / 'root' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    assert memory.left_in_control_groups(
        tmp_path / 'root', tmp_path / 'own') == left


@pytest.mark.parametrize(('own', 'files', 'quota'), [
    ('0::/\n', {'cpu.max': '150000 100000'}, 2),
    ('0::/\n', {'cpu.max': 'max 100000'}, 0),
    ('0::/a/b\n', {'cpu.max': 'max 100000', 'a/cpu.max': '400000 100000',
                   'a/b/cpu.max': '50000 100000'}, 1),
    ('3:cpu,cpuacct:/a\n', {'cpu/a/cpu.cfs_quota_us': '800000',
                            'cpu/a/cpu.cfs_period_us': '100000'}, 8),
    ('3:cpu:/\n', {'cpu/cpu.cfs_quota_us': '-1',
                   'cpu/cpu.cfs_period_us': '100000'}, 0),
])
def test_quota_of_control_groups(tmp_path, own, files, quota):
    (tmp_path / 'own').write_text(own)
    for name, text in files.items():
        path = tmp_path / 'root' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{text}\n')
    assert memory.quota_of_cores(tmp_path / 'root', tmp_path / 'own') == quota


def test_without_control_groups(tmp_path):
    assert memory.quota_of_cores(tmp_path, tmp_path / 'none') == 0
    assert memory.left_in_control_groups(
        tmp_path, tmp_path / 'none') == math.inf


@linux_only
def test_limit_of_the_address_space():
    """As of `ulimit -v`, in a process of its own."""
    found = subprocess.run([sys.executable, '-c', """
import resource
import psutil
from models import DeepLabV3plusXception65, memory
limit = psutil.Process().memory_info().vms + 10**8
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(memory.available_memory())
"""], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 0 < int(found) <= 10**8


def test_says_what_was_needed():
    memory.check_memory('this', 0)
    with pytest.raises(InputError, match=r'^this needs about 1000000\.0 GB of '
                       r'memory, and \d+\.\d GB are free: free some'):
        memory.check_memory('this', 1e15)


def test_this_machine():
    assert 0 < memory.available_memory() < 1e15


def test_memory_of_many_scales_and_classes():
    model = DeepLabV3plusXception65(150)
    scales = tuple(np.arange(0.5, 2, 0.25))
    one = memory.logits_memory(model, 1025, 2049)
    model.scales, model.flip = scales, True
    assert 0.1e9 < one < 0.2e9
    assert 2.5e9 < memory.logits_memory(model, 1025, 2049) < 3.5e9
