"""Read a TensorFlow checkpoint; this needs TensorFlow."""
import os
import pathlib

from models.utils.errors import InputError
from models.utils.files import sha256

TRAINING = {'global_step', 'Momentum', 'Adam', 'Adam_1', 'beta1_power',
            'beta2_power', 'ExponentialMovingAverage'}


class Checkpoint:
    """A TensorFlow checkpoint of the official training code.

    Args:
        prefix (str): path without '.index' or '.data-...'.
        output_stride (int): which a checkpoint does not know.
        crop_size ((int, int)): likewise, height and width in pixels; None
            where the task tells.

    Attributes:
        path (str): the prefix, for messages.
        file_name (str): its last part.
        weights (dict): name to shape.
        ignored (list of str): what only training needs.
        sha256 (str): hexadecimal, of its files one after another.

    Raises:
        InputError: TensorFlow is not installed or cannot read it.

    """

    def __init__(self, prefix, output_stride, crop_size):
        self.path = prefix
        self.file_name = pathlib.Path(prefix).name
        self.output_stride, self.crop_size = output_stride, crop_size
        self._reader = _reader(prefix)
        shapes = self._reader.get_variable_to_shape_map()
        self.ignored = sorted(filter(_is_for_training, shapes))
        self.weights = {name: tuple(shape)
                        for name, shape in sorted(shapes.items())
                        if not _is_for_training(name)}
        self.sha256 = _digest(prefix)

    def weight(self, name):
        """Return the values of a weight as float32."""
        try:
            array = self._reader.get_tensor(name)
        except Exception as error:  # TensorFlow's own, many kinds
            raise InputError(f'{self.path}: {name} cannot be read ({error})'
                             ) from None
        if array.dtype.kind != 'f':
            raise InputError(f'{self.path}: the weight {name} is '
                             f'{array.dtype}, and must be float32')
        return array.astype('float32', copy=False)


def _is_for_training(name):
    return name.rpartition('/')[2] in TRAINING


def _reader(prefix):
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    try:
        import tensorflow
    except ImportError as error:
        raise InputError(f'{prefix} is a checkpoint, and reading one needs '
                         f'TensorFlow ({error}): install requirements.txt, or '
                         'convert a frozen graph') from None
    try:
        return tensorflow.train.load_checkpoint(prefix)
    except Exception as error:  # TensorFlow's own, many kinds
        raise InputError(f'{prefix} is not a whole checkpoint ({error})'
                         ) from None


def _digest(prefix):
    path = pathlib.Path(prefix)
    return sha256(*sorted(
        each for each in path.parent.iterdir()
        if each.name.startswith((f'{path.name}.index', f'{path.name}.data-'))))
