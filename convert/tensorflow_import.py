"""TensorFlow, for the two uses that need it: `--verify` and checkpoints."""
import contextlib
import os
import sys

from models.utils.errors import InputError


def import_tensorflow(purpose, instead):
    """Return the module tensorflow, silent; raise InputError if it is missing.

    The line begins with the purpose and ends with what to do instead.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    try:
        with silent():
            import tensorflow
    except ImportError:
        command = '`make setup-dev`'
        if sys.version_info >= (3, 14):
            command = ('`make PYTHON=python3.13 setup-dev` (it has no wheel '
                       'for Python 3.14)')
        raise InputError(f'{purpose} needs TensorFlow: install it with '
                         f'{command}, or {instead}') from None
    return tensorflow


@contextlib.contextmanager
def silent():
    """Hide what TensorFlow logs on stderr, which none of its settings does:
    on some processors, that oneDNN is used.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
