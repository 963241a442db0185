"""Let Chainer 7.8.1 and ChainerCV 0.13.1 run on Python 3.11-3.14 and NumPy 2.

Both are the last releases, made for NumPy below 1.24 and Python up to 3.11.
`restore_names` gives back the few names that they miss since then. It must run
before `import chainer`, as must `load_cuda_libraries` where there is a GPU.
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
# Those of NVIDIA's packages that CuPy 13 does not find; CuPy 14 finds its own.
CUDA_LIBRARIES = ('cublas/lib/libcublas.so.12', 'cuda_nvrtc/lib/libnvrtc.so.12',
                  'cudnn/lib/libcudnn.so.8')


def restore_names():
    """Restore what Chainer and ChainerCV import or use, and is gone."""
    if importlib.util.find_spec('numpy') is None:
        return  # nothing is installed: the import of Chainer will say so
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
    # Chainer's look at installed packages needs numpy.distutils, which Python
    # 3.12 has not, and elsewhere 0.4 s.
    _add_module('chainer._environment_check', check=lambda: None)
    # ChainerCV's one C extension, non-maximum suppression on a GPU: it does
    # not compile on Python 3.11 and later, and segmentation never calls it.
    _add_module('chainercv.utils.bbox._nms_gpu_post', _nms_gpu_post=None)


def _add_module(name, **attributes):
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)


def load_cuda_libraries(tf32=False):
    """Load what CuPy needs from pip's folders, where the system does not look.

    It must come before `import chainer`, which imports CuPy. `tf32` lets
    float32 be computed in TF32, of 10 bits instead of 23; the libraries read
    that in the environment when they are loaded. cuDNN, which CuPy 13 has, does
    so unless told otherwise.
    """
    cupy = importlib.util.find_spec('cupy')
    if cupy is None:
        return
    if tf32:
        os.environ[TF32] = '1'
    elif not os.environ.get(TF32) and cupy.origin and pathlib.Path(
            cupy.origin).with_name('cudnn.py').exists():
        os.environ[TF32] = '0'
    # NCCL is for several GPUs, cuDNN for training: README.md tells of it.
    warnings.filterwarnings(
        'ignore', r'\s*(nccl|cudnn) (library could not|is not enabled)')
    nvidia = importlib.util.find_spec('nvidia')
    for folder in nvidia.submodule_search_locations if nvidia else ():
        for name in CUDA_LIBRARIES:
            with contextlib.suppress(OSError):  # Chainer names a missing one
                ctypes.CDLL(str(pathlib.Path(folder, name)))


def chainercv_module(name):
    """Import one module of ChainerCV alone: the package takes 0.3 s, and brings
    Matplotlib. A later `import chainercv` finds the same module.
    """
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec('chainercv')
    if package is None:
        raise ModuleNotFoundError(name='chainercv')
    path = pathlib.Path(package.submodule_search_locations[0],
                        *name.split('.')[1:]).with_suffix('.py')
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
