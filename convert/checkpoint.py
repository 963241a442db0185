"""Read a TensorFlow checkpoint; this needs TensorFlow."""
import pathlib

from convert.verification import import_tensorflow
from models.constants import OUTPUT_STRIDE
from models.utils.errors import InputError
from models.utils.files import sha256

TRAINING = {'global_step', 'Momentum', 'Adam', 'Adam_1', 'beta1_power',
            'beta2_power', 'ExponentialMovingAverage'}


class Checkpoint:
    """A TensorFlow checkpoint of the official training code.

    Args:
        prefix (str): path without '.index' or '.data-...'.
        output_stride (int): a checkpoint does not hold it; by default 8.
        min_input_size ((int, int)): likewise, height and width in pixels; by
            default that of the dataset.

    Attributes:
        path, file_name (str): the prefix, for messages; its last part.
        files (list of pathlib.Path): what is read.
        weights (dict), names (list of str): name -> shape; the names.
        ignored (list of str): variables that only training needs.
        sha256 (str): of its files one after another, in hexadecimal.

    Raises:
        InputError: TensorFlow is not installed or cannot read it.
    """

    is_graph = False

    def __init__(self, prefix, output_stride=None, min_input_size=None):
        self.path = prefix
        self.file_name = pathlib.Path(prefix).name
        self.output_stride = output_stride or OUTPUT_STRIDE
        self.min_input_size = min_input_size
        tensorflow = import_tensorflow(
            f'{prefix} is a checkpoint, and reading one',
            'convert a frozen graph')
        try:
            self._reader = tensorflow.train.load_checkpoint(prefix)
        except Exception as error:  # TensorFlow's own, many kinds
            raise InputError(f'{prefix} is not a whole checkpoint ({error})'
                             ) from None
        shapes = self._reader.get_variable_to_shape_map()
        self.ignored = sorted(name for name in shapes
                              if name.rpartition('/')[2] in TRAINING)
        self.weights = {name: tuple(shape)
                        for name, shape in sorted(shapes.items())
                        if name not in self.ignored}
        self.names = list(self.weights)
        self.files = sorted(
            path for path in pathlib.Path(prefix).parent.iterdir()
            if path.name.startswith((f'{self.file_name}.index',
                                     f'{self.file_name}.data-')))
        self.sha256 = sha256(*self.files)

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
