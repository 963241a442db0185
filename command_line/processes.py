"""The processes that share a script's work, by ChainerMN over MPI."""
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
            _check_shared_memory()
            import models  # noqa: F401, I001  (before Chainer)
            import chainermn
            warnings.filterwarnings('ignore', 'suspicious MPI')  # said below
            self._mpi = chainermn.create_communicator('naive')
            self.rank, self.size = self._mpi.rank, self._mpi.size
            self.local_rank = self._mpi.intra_rank
            self.local_size = self._mpi.intra_size
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
        if self._request is None:  # else Ctrl-C came while it waited
            self._request = self._mpi.mpi_comm.Ibarrier()
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            if self._request.Test():
                self._request = None
                return
            time.sleep(0.02)

    def share(self, value):
        """Return the values of all processes, on each of them."""
        if self.size == 1:
            return [value]
        return self._mpi.mpi_comm.allgather(value)

    def abort(self, code):
        """End all processes with an exit code."""
        time.sleep(SECONDS_TO_SPEAK)
        self._mpi.mpi_comm.Abort(code)


def _has_mpiexec():
    """Return whether MPI can start: below a process of mpiexec its connection
    may be closed.
    """
    try:
        return stat.S_ISSOCK(os.fstat(int(os.environ['PMI_FD'])).st_mode)
    except OSError:
        return False
    except KeyError:
        return True  # MPI looks for itself


def _check_shared_memory():
    """Raise InputError where MPI would end without a clear word."""
    with contextlib.suppress(FileNotFoundError):
        found = os.statvfs('/dev/shm')
        free = found.f_bavail * found.f_frsize
        needed = SHARED_MEMORY * int(os.environ.get('MPI_LOCALNRANKS') or 1)
        if free < needed:
            raise InputError(
                f'/dev/shm has {free / 1e6:.0f} MB free, and several processes '
                f'need {needed / 1e6:.0f}: make it larger (docker --shm-size), '
                'or leave mpiexec out')


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
        sys.stderr.flush()
        if isinstance(code, int) and code > 128:  # the others end as well
            processes.wait(SECONDS_TO_SAVE)
        code = code if isinstance(code, int) else 1
        processes.abort(code)
        os._exit(code)  # MPI may take a while to end this one as well


def share_of_machine(processes, gpu, threads):
    """Return the number of the GPU (-1: none) and of the threads that this
    process takes, where `gpu` and `threads` are as given, or None.
    """
    if processes.size > 1 and gpu > 0:
        raise InputError(
            f'--gpu is {gpu}, and of several processes each takes the GPU of '
            'its own number: give --gpu 0')
    if processes.size > 1 and gpu == 0:
        return processes.local_rank, threads
    if processes.size > 1 and threads is None:
        from models.memory import cores
        threads = max(1, cores() // processes.local_size)
    return gpu, threads
