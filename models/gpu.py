"""Chainer on an NVIDIA GPU: whether it can be used, and its settings.

All but `check_gpu` is for the current device. CuPy's libraries must be loaded
before (`chainer_compat.load_cuda_libraries`). Figures are those of CuPy 13.6
with cuDNN 8.9.
"""
import os
import warnings

import chainer
from chainer.backends import cuda

from .chainer_compat import TF32
from .utils.errors import InputError

CHAINER_WORKSPACE = 8 << 20  # bytes, Chainer's default: cuDNN is slow with it
WORKSPACE = 512 << 20
OLDEST_CARD = 50  # compute capability 5.0, Maxwell: the oldest of CUDA 12
AMPERE = 80  # the first with TF32
BLACKWELL, CUDNN_OF_BLACKWELL = 100, 90000  # capability 10.0; cuDNN 9.0
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
        capability = compute_capability()
    except runtime.CUDARuntimeError as error:
        reason = ERRORS.get(error.status, f'cannot be used ({error})')
        raise InputError(f'GPU {gpu} {reason}; {ADVICE}') from None
    if capability < OLDEST_CARD:
        raise InputError(
            f'GPU {gpu} has compute capability {capability / 10}, and CUDA 12 '
            f'needs {OLDEST_CARD / 10}: {ADVICE}')


def compute_capability():
    """Return ten times the card's compute capability: 86 for 8.6."""
    return int(cuda.cupy.cuda.Device().compute_capability)


def set_up():
    """Choose Chainer's settings for the card; a user's own are kept. Warn where
    cuDNN has no code for it.
    """
    if not cuda.cudnn_enabled or chainer.config.use_cudnn == 'never':
        return
    if cuda.get_max_workspace_size() == CHAINER_WORKSPACE:
        cuda.set_max_workspace_size(WORKSPACE)
    capability = compute_capability()
    version = cuda.cupy.cuda.cudnn.getVersion()
    if capability >= BLACKWELL and version < CUDNN_OF_BLACKWELL:
        chainer.global_config.use_cudnn = 'never'
        warnings.warn(
            f'cuDNN {version // 1000} has no code for this GPU (compute '
            f'capability {capability / 10}): Chainer runs without it, more '
            'slowly and in twice the memory', stacklevel=2)


def uses_tf32():
    """Return whether float32 may be computed in TF32: on cards since Ampere,
    where the environment allows it.
    """
    return os.environ.get(TF32) != '0' and compute_capability() >= AMPERE
