"""Let Chainer 7.8.1 and ChainerCV 0.13.1 run on Python 3.10-3.13 and NumPy 2.

Both are the last releases, made for NumPy below 1.24 and Python up to 3.11.
What they miss since then is little, and is given back here before they are
imported. Only what is missing is added. For a GPU, CuPy is shown the CUDA
libraries that pip installed.
"""
import contextlib
import ctypes
import importlib.util
import pathlib
import sys
import types
import warnings

# What CuPy loads, in NVIDIA's packages of requirements-gpu.txt; each after
# those that it needs itself.
CUDA_LIBRARIES = (
    'cuda_runtime/lib/libcudart.so.12', 'nvjitlink/lib/libnvJitLink.so.12',
    'cublas/lib/libcublasLt.so.12', 'cublas/lib/libcublas.so.12',
    'cufft/lib/libcufft.so.11', 'curand/lib/libcurand.so.10',
    'cusparse/lib/libcusparse.so.12', 'cusolver/lib/libcusolver.so.11',
    'cuda_nvrtc/lib/libnvrtc.so.12', 'cudnn/lib/libcudnn.so.8')


def prepare():
    """Give NumPy the names Chainer wants; call before `import chainer`."""
    if importlib.util.find_spec('numpy') is None:
        return  # nothing is installed yet: let the import of Chainer say so
    _restore_numpy_names()
    _provide_numpy_distutils()
    _load_cuda_libraries()
    # ChainerCV's one C extension, non-maximum suppression on a GPU: it does
    # not compile on Python 3.11 and later, and segmentation never calls it.
    sys.modules.setdefault(
        'chainercv.utils.bbox._nms_gpu_post',
        _module('chainercv.utils.bbox._nms_gpu_post', _nms_gpu_post=None))
    # Chainer still imports pkg_resources, and a few of its strings hold
    # escapes that Python 3.12 warns of: nothing a user could act on.
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
    warnings.filterwarnings('ignore', category=SyntaxWarning,
                            module='.*chainer')
    # CuPy misses what only serves several GPUs.
    warnings.filterwarnings('ignore', r'\s*nccl library could not be loaded')


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


def _provide_numpy_distutils():
    """Chainer asks it for the BLAS on macOS; it is gone in Python 3.12."""
    if importlib.util.find_spec('numpy.distutils') is not None:
        return
    import numpy
    system_info = _module('numpy.distutils.system_info',
                          get_info=lambda *args, **kwargs: {})
    numpy.distutils = _module('numpy.distutils', __path__=[],
                              system_info=system_info)
    sys.modules['numpy.distutils'] = numpy.distutils
    sys.modules['numpy.distutils.system_info'] = system_info


def _load_cuda_libraries():
    """They lie where the system does not look; loaded once, CuPy has them."""
    cupy, nvidia = map(importlib.util.find_spec, ('cupy', 'nvidia'))
    if cupy is None or nvidia is None:
        return
    for folder in nvidia.submodule_search_locations or ():
        for name in CUDA_LIBRARIES:
            with contextlib.suppress(OSError):  # Chainer says what it misses
                ctypes.CDLL(str(pathlib.Path(folder, name)))


def _module(path, **attributes):
    module = types.ModuleType(path)
    vars(module).update(attributes)
    return module
