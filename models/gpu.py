"""Chainer on an NVIDIA GPU: whether it can be used, its settings, its memory.

All but `check_gpu` is for the current device. Figures are those of CuPy 13.6
with cuDNN 8.9.
"""
import math
import os
import warnings

import chainer
from chainer.backends import cuda

from .chainer_compat import TF32
from .constants import LOGITS_STRIDE
from .utils.errors import InputError

CHAINER_WORKSPACE = 8 << 20  # bytes; with so few, cuDNN takes slow convolutions
WORKSPACE = 512 << 20
# Bytes, and bytes for a pixel, at output stride 8; measured on an emulated
# device, with cuDNN and without.
MEMORY = 0.2e9, 1500
MEMORY_WITHOUT_CUDNN = 0.2e9, 3500
OLDEST_CARD = 50  # compute capability 5.0, Maxwell: the oldest of CUDA 12
MAX_NUMBERS = 1 << 31  # of an array: cuDNN 8 and Chainer take no more
NUMBERS_PER_PIXEL = 32  # of the backbone's largest arrays
AMPERE = 80  # the first with TF32
BLACKWELL, CUDNN_OF_BLACKWELL = 100, 90000  # capability 10.0; cuDNN 9.0
# CUDA's errors (driver_types.h): what to say of a GPU.
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
        capability = int(cuda.cupy.cuda.Device(gpu).compute_capability)
    except runtime.CUDARuntimeError as error:
        reason = ERRORS.get(error.status, f'cannot be used ({error})')
        raise InputError(f'GPU {gpu} {reason}; {ADVICE}') from None
    if capability < OLDEST_CARD:
        raise InputError(
            f'GPU {gpu} has compute capability {capability / 10}, and CUDA 12 '
            f'needs {OLDEST_CARD / 10}: {ADVICE}')


def set_up():
    """Choose Chainer's settings for the current GPU; a user's own are kept.

    Warn where the card cannot be used with cuDNN.
    """
    if not cuda.cudnn_enabled or chainer.config.use_cudnn == 'never':
        return
    if cuda.get_max_workspace_size() == CHAINER_WORKSPACE:
        cuda.set_max_workspace_size(WORKSPACE)
    capability = int(cuda.cupy.cuda.Device().compute_capability)
    version = cuda.cupy.cuda.cudnn.getVersion()
    if capability >= BLACKWELL and version < CUDNN_OF_BLACKWELL:
        chainer.global_config.use_cudnn = 'never'
        warnings.warn(
            f'cuDNN {version // 1000} has no code for this GPU (compute '
            f'capability {capability / 10}): Chainer runs without it, more '
            'slowly and in twice the memory', stacklevel=2)


def uses_tf32():
    """Return whether float32 may be computed in TF32, of 10 bits instead of 23:
    on cards since Ampere, where the environment allows it.
    """
    return (os.environ.get(TF32) != '0' and int(
        cuda.cupy.cuda.Device().compute_capability) >= AMPERE)


def memory_needed(link, height, width, scaled):
    """Return about how many bytes `link.predict` takes for a padded image;
    infinity where an array would have too many numbers.

    `scaled` are height and width at the largest scale.
    """
    if max(link.n_class * height * width, scaled[0] * scaled[1] * max(
            NUMBERS_PER_PIXEL, link.n_class / LOGITS_STRIDE ** 2)
           ) >= MAX_NUMBERS:
        return math.inf
    fixed, per_pixel = (MEMORY if cuda.cudnn_enabled and
                        chainer.config.use_cudnn != 'never'
                        else MEMORY_WITHOUT_CUDNN)
    n_maps = len(link.scales) * (2 if link.flip else 1) + 2
    return (fixed + per_pixel * scaled[0] * scaled[1]
            + n_maps * 4 * link.n_class * height * width)


def free_memory():
    """Return the bytes that are free, with those that CuPy keeps for later."""
    cupy = cuda.cupy
    return (cupy.cuda.runtime.memGetInfo()[0]
            + cupy.get_default_memory_pool().free_bytes())


def make_room(needed):
    """Give back what CuPy keeps for later where so many bytes do not fit
    beside it: after images of other sizes. Raise InputError where nothing
    would help.
    """
    if needed == math.inf:
        raise InputError('the image is too large for a GPU: an array would '
                         f'have more than {MAX_NUMBERS} numbers (demo.py works '
                         'in tiles)')
    if needed > cuda.cupy.cuda.runtime.memGetInfo()[0]:
        cuda.cupy.get_default_memory_pool().free_all_blocks()
