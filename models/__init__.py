"""DeepLabV3+ with Xception65 for Chainer.

    from models import DeepLabV3plusXception65

This package needs nothing else of the project: copied under any name, it works
in another. Import it before Chainer: it gives back the few names that Chainer
misses on today's Python and NumPy, and changes nothing else. Chainer is loaded
at the first use of the link, so that `--help` of the scripts is instant; before
it, where CuPy is installed, the CUDA libraries (chainer_compat.py).

The network is written down four times, and each one checks another: as a link
(xception.py, head.py, deeplab_v3_plus.py), as a graph (network_graph.py), and
in convert/ as the wiring of TensorFlow's graph (graph_structure.py) and as a
table of weight names (name_table.py). The graph has three writers:
onnx_graph.py writes a file, openvino_engine.py runs on a CPU, cupy_engine.py on
a GPU.
"""
import sys
from typing import TYPE_CHECKING

if sys.platform == 'win32':
    raise ImportError('this runs on Linux and macOS: on Windows use Linux in '
                      'WSL (wsl --install)')

from . import chainer_compat

if TYPE_CHECKING:
    from .deeplab_v3_plus import DeepLabV3plusXception65

__all__ = ['DeepLabV3plusXception65']

chainer_compat.restore_names()


def __getattr__(name):
    if name == 'DeepLabV3plusXception65':
        chainer_compat.load_cuda_libraries()
        from .deeplab_v3_plus import DeepLabV3plusXception65
        return DeepLabV3plusXception65
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
