"""Whether an NVIDIA GPU can be used, and Chainer's settings on it."""
import os

from chainer.backends import cuda

from .chainer_compat import TF32
from .utils.errors import InputError

WORKSPACE = 512 << 20  # bytes: cuDNN is slow with 8 MB, Chainer's default
# Compute capabilities: the first with TF32, and those of data centres' cards
# with 7 to 14 times as many operations in TF32 as in float32 (A100, H100 and
# H200, B200 and B300); it was measured on 9.0.
AMPERE, FAST_TF32 = 80, {80, 90, 100, 103}
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
        cuda.cupy.cuda.nvrtc.getVersion()  # loads it
    except RuntimeError as error:  # CuPy's and CUDA's
        raise InputError(
            f'GPU {gpu} cannot be used ({error}): {ADVICE}') from None


def set_up():
    """Give cuDNN, where Chainer has it, more room than by default."""
    cuda.set_max_workspace_size(max(WORKSPACE, cuda.get_max_workspace_size()))


def uses_tf32():
    """Return whether the current GPU is asked to compute float32 in TF32."""
    return os.environ.get(TF32) == '1' and _capability() >= AMPERE


def tf32_is_fast():
    """Return whether three products in TF32 take less time than a product in
    float32 on the current GPU, and the environment lets TF32 be used at all.
    """
    return os.environ.get(TF32) != '0' and _capability() in FAST_TF32


def _capability():
    return int(cuda.cupy.cuda.Device().compute_capability)
