"""Let Chainer 7.8.1 and ChainerCV 0.13.1 run on Python 3.11-3.14 and NumPy 2.

Both are the last releases, made for NumPy below 1.24 and Python up to 3.11.
The few names that they miss since then are restored here before they are
imported. For a GPU, CuPy gets the CUDA libraries that pip installed. What they
import and this project does not need is left out where it takes long.
"""
import contextlib
import ctypes
import importlib.util
import os
import pathlib
import sys
import types
import warnings

TF32 = 'NVIDIA_TF32_OVERRIDE'  # environment: 0 keeps float32 as it is
# The libraries that CuPy loads from NVIDIA's packages in requirements-gpu.txt,
# each after those that it needs.
CUDA_LIBRARIES = (
    'cuda_runtime/lib/libcudart.so.12', 'nvjitlink/lib/libnvJitLink.so.12',
    'cublas/lib/libcublasLt.so.12', 'cublas/lib/libcublas.so.12',
    'cufft/lib/libcufft.so.11', 'curand/lib/libcurand.so.10',
    'cusparse/lib/libcusparse.so.12', 'cusolver/lib/libcusolver.so.11',
    'cuda_nvrtc/lib/libnvrtc.so.12', 'cudnn/lib/libcudnn.so.8')


def prepare():
    """Restore what Chainer misses; call it before `import chainer`."""
    if importlib.util.find_spec('numpy') is None:
        return  # nothing is installed: the import of Chainer will say so
    _restore_numpy_names()
    # Chainer's look at installed packages, 0.4 s: they are pinned.
    sys.modules.setdefault(
        'chainer._environment_check',
        _module('chainer._environment_check', check=lambda: None))
    # Parity first: NVIDIA's libraries read this once. 1 in the environment
    # allows TF32, where up to 4 % of the labels change with random weights.
    os.environ.setdefault(TF32, '0')
    _load_cuda_libraries()
    # ChainerCV's one C extension, non-maximum suppression on a GPU: it does
    # not compile on Python 3.11 and later, and segmentation never calls it.
    sys.modules.setdefault(
        'chainercv.utils.bbox._nms_gpu_post',
        _module('chainercv.utils.bbox._nms_gpu_post', _nms_gpu_post=None))
    # Warnings about Chainer's own code, which a user cannot fix.
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
    warnings.filterwarnings('ignore', category=SyntaxWarning,
                            module='.*chainer')
    # NCCL only serves several GPUs.
    warnings.filterwarnings('ignore', r'\s*nccl library could not be loaded')


def chainercv_module(name):
    """Import one module of ChainerCV alone: the package takes 0.3 s, and brings
    Matplotlib. A later `import chainercv` finds the same module.
    """
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec('chainercv')
    if package is None:
        raise ModuleNotFoundError("No module named 'chainercv'",
                                  name='chainercv')
    path = pathlib.Path(package.submodule_search_locations[0],
                        *name.split('.')[1:]).with_suffix('.py')
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _restore_numpy_names():
    import numpy
    removed = {
        'float': float,  # chainer.functions.resize_images
        'int': int,  # chainercv.experimental
        'sctypes': {  # chainer.functions.as_strided
            'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
            'float': [numpy.float16, numpy.float32, numpy.float64],
        },
    }
    for name, value in removed.items():
        if name not in vars(numpy):
            setattr(numpy, name, value)


def _load_cuda_libraries():
    """Load them by path, as the system does not search pip's folders."""
    cupy, nvidia = map(importlib.util.find_spec, ('cupy', 'nvidia'))
    if cupy is None or nvidia is None:
        return
    for folder in nvidia.submodule_search_locations or ():
        for name in CUDA_LIBRARIES:
            with contextlib.suppress(OSError):  # Chainer names a missing one
                ctypes.CDLL(str(pathlib.Path(folder, name)))


def _module(path, **attributes):
    module = types.ModuleType(path)
    vars(module).update(attributes)
    return module
