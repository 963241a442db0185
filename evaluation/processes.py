"""The processes that share an evaluation, by ChainerMN over MPI."""
import os
import time


class Processes:
    """This process among those that mpiexec started, else one alone.

    Attributes:
        rank, size (int): number of this process, and of all.
        local_rank, local_size (int): the same on this machine.
    """

    def __init__(self):
        self.rank = self.local_rank = 0
        self.size = self.local_size = 1
        # Set by MPICH's and Open MPI's mpiexec.
        if os.environ.get('PMI_SIZE') or os.environ.get('OMPI_COMM_WORLD_SIZE'):
            import models  # noqa: F401, I001  (before Chainer)
            import chainermn
            self._mpi = chainermn.create_communicator('naive')
            self.rank, self.size = self._mpi.rank, self._mpi.size
            self.local_rank = self._mpi.intra_rank
            self.local_size = self._mpi.intra_size

    def wait(self):
        """Return once all processes are here; MPI's own wait keeps a core
        busy.
        """
        if self.size == 1:
            return
        request = self._mpi.mpi_comm.Ibarrier()
        while not request.Test():
            time.sleep(0.02)

    def gather(self, value):
        """Return the values of all processes on process 0, None elsewhere."""
        if self.size == 1:
            return [value]
        return self._mpi.gather_obj(value)

    def share(self, value):
        """Return the values of all processes, on each of them."""
        if self.size == 1:
            return [value]
        return self._mpi.mpi_comm.allgather(value)

    def abort(self):
        """End all processes with exit code 1."""
        self._mpi.mpi_comm.Abort(1)


def cores():
    """Return how many cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()  # macOS
