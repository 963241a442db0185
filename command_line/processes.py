"""The processes that share a script's work, by MPI."""
import contextlib
import math
import os
import pathlib
import stat
import sys
import time
import traceback
import warnings

from models.utils.errors import InputError, report_errors

# What launchers tell each process: how many they have started. Those of MPICH
# and Intel MPI, Open MPI, MVAPICH, SLURM, Flux, IBM JSM, torchrun.
LAUNCHERS = ('PMI_SIZE', 'OMPI_COMM_WORLD_SIZE', 'MV2_COMM_WORLD_SIZE',
             'SLURM_STEP_NUM_TASKS', 'FLUX_JOB_SIZE', 'JSM_NAMESPACE_SIZE',
             'WORLD_SIZE')
SHARED_MEMORY = 6e6  # bytes that MPI takes of /dev/shm for each process
SECONDS_TO_SPEAK = 0.3  # for mpiexec to pass on what a process printed
SECONDS_TO_SAVE = 30  # for the others after a signal, which mpiexec passes on


class Processes:
    """This process among those that mpiexec started, else one alone.

    Attributes:
        rank, size (int): number of this process, and of all.
        local_rank, local_size (int): the same on this machine.
    """

    def __init__(self):
        self.rank = self.local_rank = 0
        self.size = self.local_size = 1
        self._request = None
        launchers = [name for name in LAUNCHERS
                     if os.environ.get(name, '') not in {'', '0', '1'}]
        if launchers and _has_mpiexec():
            from models.utils.download import check_space
            with contextlib.suppress(FileNotFoundError):  # else MPI crashes
                check_space('/dev/shm', SHARED_MEMORY * int(
                    os.environ.get('MPI_LOCALNRANKS') or 1))
            warnings.filterwarnings('ignore', 'suspicious MPI')  # said below
            from mpi4py import MPI
            self._mpi = MPI.COMM_WORLD
            local = self._mpi.Split_type(MPI.COMM_TYPE_SHARED)
            self.rank, self.size = self._mpi.rank, self._mpi.size
            self.local_rank, self.local_size = local.rank, local.size
        if launchers and self.size == 1:  # each would do all the work
            mpiexec = pathlib.Path(sys.executable).with_name('mpiexec')
            raise InputError(
                f'{launchers[0]} says that this is one of '
                f'{os.environ[launchers[0]]} processes, which do not find each '
                f'other: start them with {mpiexec}; or unset {launchers[0]}')

    def wait(self, seconds=math.inf):
        """Return once all processes are here, or so many seconds have passed;
        MPI's own wait keeps a core busy.
        """
        if self.size == 1:
            return
        # If Ctrl-C came while it waited, it has asked already.
        self._request = self._request or self._mpi.Ibarrier()
        end = time.monotonic() + seconds
        while not self._request.Test() and time.monotonic() < end:
            time.sleep(0.02)

    def share(self, value):
        """Return the values of all processes, on each of them."""
        return [value] if self.size == 1 else self._mpi.allgather(value)

    def abort(self, code):
        """End all processes with an exit code."""
        time.sleep(SECONDS_TO_SPEAK)
        self._mpi.Abort(code)
        os._exit(code)  # MPI may take a while to end this one as well


def _has_mpiexec():
    """Return whether MPI can start; below one of mpiexec it may be cut off."""
    try:
        return stat.S_ISSOCK(os.fstat(int(os.environ['PMI_FD'])).st_mode)
    except OSError:
        return False
    except KeyError:
        return True  # MPI looks for itself


def with_processes(run):
    """Return what `run` returns, called with the `Processes`; where it raises
    in one, all end.
    """
    with report_errors():
        processes = Processes()
    try:
        with report_errors():
            result = run(processes)
            processes.wait()  # at its end, MPI heeds no signal
            return result
    except BaseException as error:
        if processes.size == 1:
            raise
        if processes.rank > 0:  # process 0 ends all where it fails as well
            time.sleep(2 * SECONDS_TO_SPEAK)
        code = getattr(error, 'code', None)
        if isinstance(code, str):
            print(code, file=sys.stderr)
        elif not isinstance(error, SystemExit):  # else it has been said
            traceback.print_exc()
        if isinstance(code, int) and code > 128:  # the others end as well
            processes.wait(SECONDS_TO_SAVE)
        processes.abort(code if isinstance(code, int) else 1)
