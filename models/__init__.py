"""DeepLabV3+ with Xception65 for Chainer.

    from . import DeepLabV3plusXception65

Importing this package is quick and also makes `import chainer` work on
today's Python and NumPy (see `chainer_compat.py`), so import it before
Chainer. Chainer itself is only loaded with the link, on its first use:
that keeps `--help` of every script instant.
"""
from typing import TYPE_CHECKING

from . import chainer_compat

if TYPE_CHECKING:
    from .deeplab_v3_plus import DeepLabV3plusXception65

__all__ = ['DeepLabV3plusXception65']

chainer_compat.prepare()


def __getattr__(name):
    if name == 'DeepLabV3plusXception65':
        from .deeplab_v3_plus import DeepLabV3plusXception65
        return DeepLabV3plusXception65
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
