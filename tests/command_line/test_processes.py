"""Processes that a launcher has started, and that MPI does not join."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MPIEXEC = Path(sys.executable).with_name('mpiexec')


def run_demo(*prefix, **environment):
    return subprocess.run(
        [*prefix, sys.executable, ROOT / 'demo.py', 'no.png'], check=False,
        capture_output=True, text=True, timeout=100,
        env={**os.environ, **environment})


@pytest.mark.parametrize('variable', [
    'OMPI_COMM_WORLD_SIZE', 'SLURM_STEP_NUM_TASKS'])
def test_another_launcher(variable):
    result = run_demo(**{variable: '4'})
    assert result.returncode == 1
    assert result.stderr == (
        f'error: {variable} says that this is one of 4 processes, which do not '
        f'find each other: start them with {MPIEXEC}; or unset {variable}\n')
    assert 'no.png: No such file' in run_demo(**{variable: '1'}).stderr


def test_below_a_process_of_mpiexec():
    """As a program under mpiexec starts another: without open files."""
    result = run_demo(MPIEXEC, '-n', '2', sys.executable, '-c',
                      'import subprocess, sys\n'
                      'sys.exit(subprocess.run(sys.argv[1:]).returncode)')
    assert result.returncode == 1
    assert result.stderr.count('error: PMI_SIZE says that this is one of') == 2
    assert result.stderr.count('\n') == 2
    shell = run_demo(MPIEXEC, '-n', '2', 'sh', '-c', '"$@"; true', 'sh')
    assert shell.stderr == 'error: no.png: No such file or directory\n'
