"""Whether an NVIDIA GPU can be used, and Chainer's settings on it.

CuPy's libraries must be loaded before (`chainer_compat.load_cuda_libraries`).
"""
import os

from chainer.backends import cuda

from .chainer_compat import TF32
from .utils.errors import InputError

CHAINER_WORKSPACE = 8 << 20  # bytes, Chainer's default: cuDNN is slow with it
WORKSPACE = 512 << 20
AMPERE = 80  # compute capability 8.0: the first with TF32
# Messages for CUDA's error codes (driver_types.h).
ERRORS = {
    2: 'is out of memory: other processes hold it (nvidia-smi names them)',
    35: "needs a newer driver: CUDA 12 runs on NVIDIA's 525.60 and later",
    46: 'is held by another process alone: wait for it, or name another GPU',
    100: 'cannot be used: CUDA finds no NVIDIA GPU',
}
ADVICE = 'leave --gpu out to run on the CPU, or see "On a GPU" in README.md'


def check_gpu(gpu):
    """Raise InputError where Chainer cannot use the GPU of this number."""
    if not cuda.available:
        raise InputError(f'--gpu {gpu} needs CuPy, and Chainer cannot load it '
                         f'({cuda._resolution_error}): {ADVICE}')
    runtime = cuda.cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
        if gpu >= count:
            raise InputError(f'there is no GPU {gpu}: they are numbered 0 to '
                             f'{count - 1}')
        runtime.setDevice(gpu)
        runtime.free(0)  # makes the context
    except runtime.CUDARuntimeError as error:
        reason = ERRORS.get(error.status, f'cannot be used ({error})')
        raise InputError(f'GPU {gpu} {reason}; {ADVICE}') from None


def set_up():
    """Give cuDNN, where Chainer has it, more room than by default."""
    if cuda.cudnn_enabled and (
            cuda.get_max_workspace_size() == CHAINER_WORKSPACE):
        cuda.set_max_workspace_size(WORKSPACE)


def uses_tf32():
    """Return whether the current GPU may compute float32 in TF32: since Ampere,
    where the environment allows it.
    """
    return os.environ.get(TF32) != '0' and (
        int(cuda.cupy.cuda.Device().compute_capability) >= AMPERE)
