"""Files that appear whole; what they may replace."""
import os
import shutil
import socket
import stat
import subprocess
import sys

import pytest
from conftest import ROOT, linux_only

from models.utils.errors import InputError
from models.utils.files import atomic_path, check_target, locked, part_path

LONGEST = ['x' * 246 + '.png', '漢' * 80 + '.png', 'x' * 255]  # 250, 244, 255


@pytest.mark.parametrize('name', LONGEST)
def test_a_long_name(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text('new')
    assert (tmp_path / name).read_text() == 'new'
    part_path(tmp_path / name).touch()
    with locked(tmp_path / name):
        pass


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text('ne')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays(tmp_path):
    (tmp_path / 'far').mkdir()
    for target in 'far/old', 'far/new':
        link = tmp_path / f'link to {target[4:]}'
        link.symlink_to(target)
        with atomic_path(link) as temporary:
            assert temporary.parent.parent == tmp_path / 'far'
            temporary.write_text('new')
        assert link.is_symlink()
        assert (tmp_path / target).read_text() == 'new'
    assert part_path(link).parent == tmp_path / 'far'


def test_the_mode_is_kept(tmp_path):
    path = tmp_path / 'file'
    path.touch()
    for mode in 0o640, 0o755:
        path.chmod(mode)
        with atomic_path(path) as temporary:
            temporary.write_text('new')
        assert stat.S_IMODE(path.stat().st_mode) == mode


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_null(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        path.symlink_to(os.devnull)


@pytest.mark.parametrize('make', [make_fifo, make_socket, make_null])
def test_only_files_are_replaced(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(tmp_path / 'x')
    before = os.stat(tmp_path / 'x').st_mode
    for attempt in (lambda: atomic_path('x').__enter__(),
                    lambda: check_target('x', force=True)):
        with pytest.raises(OSError, match='is no regular file: name another'):
            attempt()
    assert os.stat(tmp_path / 'x').st_mode == before
    assert os.listdir(tmp_path) == ['x']


def test_a_file_without_write_permission_stays(tmp_path):
    """For root as well, who could replace it."""
    path = tmp_path / 'file'
    path.write_text('old')
    path.chmod(0o444)
    for force in False, True:
        with pytest.raises(OSError, match='is write-protected'):
            check_target(path, force)
    with pytest.raises(OSError, match='is write-protected'), (
            atomic_path(path)) as temporary:
        temporary.write_text('new')
    assert path.read_text() == 'old'


def test_an_input_is_never_a_target(tmp_path):
    path, link = tmp_path / 'a', tmp_path / 'link'
    path.touch()
    os.link(path, link)
    with pytest.raises(InputError, match='input and output are the same file'):
        check_target(link, True, [tmp_path / 'gone', path])
    with pytest.raises(InputError, match='a exists: give --force to overwrite'):
        check_target(path, False)
    check_target(path, True)
    check_target(tmp_path / 'new', False, [path])


def test_what_a_killed_process_left_is_removed(tmp_path):
    """And nothing else: not what a process at work has, nor a user's."""
    name = 'file [1]'
    code = ('import os, sys; from models.utils.files import atomic_path\n'
            'with atomic_path(sys.argv[1]): os._exit(9)')
    subprocess.run([sys.executable, '-c', code, tmp_path / name], cwd=ROOT,
                   check=False, timeout=60)
    assert len(os.listdir(tmp_path)) == 1
    own = tmp_path / '.file [1].a.tmp'
    own.touch()
    with atomic_path(tmp_path / name) as used:
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text('new')
        assert set(tmp_path.iterdir()) == {tmp_path / name, used.parent, own}


@linux_only
def test_what_another_container_writes_is_left_alone(tmp_path):
    """One with this machine's name, and numbers of processes of its own."""
    contained = ['unshare', '--map-root-user', '--pid', '--fork',
                 '--mount-proc']
    code = ('import sys; from models.utils.files import atomic_path\n'
            'with atomic_path(sys.argv[1]): pass')
    with atomic_path(tmp_path / 'a') as temporary:
        if shutil.which('unshare') is None or subprocess.run(
                [*contained, sys.executable, '-c', code, tmp_path / 'a'],
                cwd=ROOT, check=False, timeout=60).returncode:
            pytest.skip('needs namespaces')
        temporary.write_text('new')
    assert (tmp_path / 'a').read_text() == 'new'


@linux_only
def test_where_there_are_no_locks(tmp_path):
    """A file system that refuses them: what can go on goes on."""
    if shutil.which('gcc') is None:
        pytest.skip('needs gcc, for a library in which locks fail')
    (tmp_path / 'a.c').write_text(
        '#include <errno.h>\n'
        'int flock(int file, int how) { errno = ENOLCK; return -1; }\n')
    subprocess.run(['gcc', '-shared', '-fPIC', '-o', 'a.so', 'a.c'],
                   cwd=tmp_path, check=True)
    code = (f'from models.utils.files import atomic_path, locked\n'
            f'from pathlib import Path\npath = Path({str(tmp_path)!r}, "b")\n'
            'with locked(path), atomic_path(path) as temporary:\n'
            '    temporary.write_text("whole")\n')
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
        check=True, env={**os.environ, 'LD_PRELOAD': str(tmp_path / 'a.so')})
    assert (tmp_path / 'b').read_text() == 'whole'
    assert result.stderr == (f'warning: there are no locks where {tmp_path}/b '
                             'is: run one process at a time\n')
