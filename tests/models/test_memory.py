"""What is known of the memory that is left."""
import resource

import pytest

from models.utils import memory
from models.utils.errors import InputError


@pytest.mark.parametrize(('files', 'available'), [
    ({'memory.max': '1000', 'memory.current': '400',
      'memory.stat': 'anon 300\ninactive_file 100\n'}, 700),
    ({'memory.max': 'max', 'memory.current': '400',
      'memory.stat': 'inactive_file 100\n'}, float('inf')),
    ({'memory/memory.limit_in_bytes': '1000',
      'memory/memory.usage_in_bytes': '400',
      'memory/memory.stat': 'inactive_file 7\ntotal_inactive_file 50\n'}, 650),
    ({}, float('inf')),
])
def test_limit_of_a_container(tmp_path, files, available):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory._cgroup(tmp_path) == available


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
