"""Let Chainer 7.8.1 and ChainerCV 0.13.1 run on Python 3.10-3.13 and NumPy 2.

Both are the last releases, made for NumPy below 1.24 and Python up to 3.11.
What they miss since then is little, and is given back here before they are
imported. Only what is missing is added.
"""
import importlib.util
import sys
import types
import warnings


def prepare():
    """Give NumPy the names Chainer wants; call before `import chainer`."""
    if importlib.util.find_spec('numpy') is None:
        return  # nothing is installed yet: let the import of Chainer say so
    _restore_numpy_names()
    _provide_numpy_distutils()
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


def _module(path, **attributes):
    module = types.ModuleType(path)
    vars(module).update(attributes)
    return module
