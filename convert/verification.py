"""Run a frozen graph in TensorFlow and its npz in the link, and compare."""
import contextlib
import math
import os
import pathlib

import numpy as np

from media.images import read_image
from models.utils.errors import InputError

BUILT_IN_IMAGE = pathlib.Path(__file__).parents[1] / 'assets' / 'street.png'
MAX_DIFFERENCE = 0.01  # of the logits, relative to their standard deviation
MIN_EQUAL_LABELS = 0.999


def verify(conversion, npz, paths):
    """Compare the source of a conversion with its result on images.

    Args:
        conversion (Conversion): of a graph.
        npz (str or pathlib.Path): what was written.
        paths (list): of images; the built-in one where it is empty. One that
            is larger than the graph takes is made smaller.

    Yields:
        dict: for each image its 'name' and 'size'; 'max_difference' and
        'mean_difference' of the logits, 'std' of them; and 'equal_labels',
        a share, over the classes that the link keeps.

    Raises:
        InputError: TensorFlow cannot be had, an image cannot be read, or the
            two do not agree.

    """
    from models import DeepLabV3plusXception65
    images = [(str(path), _fitted(read_image(path), conversion.crop_size))
              for path in paths]
    if not images:
        images = [('the built-in image', _fitted(
            read_image(BUILT_IN_IMAGE), conversion.crop_size, fill=True))]
    run_graph = _session(conversion)
    model = DeepLabV3plusXception65(pretrained_model=npz)
    for name, image in images:
        logits, label = run_graph(image)
        result = _compare(model, image, logits, label)
        yield {'name': name, 'size': list(image.shape[1:]), **result}
        if not (result['max_difference'] <= MAX_DIFFERENCE * result['std']
                and result['equal_labels'] >= MIN_EQUAL_LABELS):
            raise InputError(
                f'{name}: the npz does not do what the graph does: logits '
                f'differ by up to {result["max_difference"]:.2g} (standard '
                f'deviation {result["std"]:.2g}), and '
                f'{100 * result["equal_labels"]:.2f} % of the labels are '
                'equal; nothing was written')


def _compare(model, image, logits, label):
    x = model.prepare(image)[np.newaxis]
    difference = np.abs(model.network()(x)[0] - logits)
    predicted, = model.predict([image])
    return {'max_difference': float(difference.max()),
            'mean_difference': float(difference.mean()),
            'std': float(logits.std()),
            'equal_labels': float((predicted == label).mean())}


def _fitted(image, crop_size, fill=False):
    """Shrink an image to the crop where it is larger, or fill most of it: the
    rest shows whether both pad alike.
    """
    from PIL import Image
    height, width = image.shape[1:]
    scale = min(crop_size[0] / height, crop_size[1] / width)
    size = [int(width * scale) or 1, int(height * scale) or 1]
    if fill:
        size = [math.ceil(side * 15 / 16) for side in crop_size[::-1]]
    elif scale >= 1:
        return image
    pixels = image.transpose(1, 2, 0).astype(np.uint8)
    resized = Image.fromarray(pixels).resize(size)
    return np.asarray(resized).transpose(2, 0, 1).astype(np.float32)


def _session(conversion):
    """Return a function from an image to logits (CHW) and labels."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    try:
        import tensorflow as tf
    except ImportError as error:
        raise InputError(f'--verify needs TensorFlow ({error}): install '
                         'requirements.txt, or leave it out') from None
    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.import_graph_def(tf.compat.v1.GraphDef.FromString(
                bytes(conversion.source.data)), name='')
        except ValueError as error:
            raise InputError(f'{conversion.source.path}: TensorFlow does not '
                             f'take the graph ({error})') from None
    session = tf.compat.v1.Session(graph=graph)
    names = [f'{conversion.structure.logits}:0',
             f'{conversion.structure.sized_logits}:0']

    feed = f'{conversion.structure.image}:0'

    def run(image):
        pixels = image.transpose(1, 2, 0).astype(np.uint8)[np.newaxis]
        try:
            with _quiet():
                logits, sized = session.run(names, {feed: pixels})
        except (tf.errors.OpError, KeyError, TypeError, ValueError) as error:
            raise InputError(f'{conversion.source.path}: TensorFlow cannot '
                             f'run the graph ({error})') from None
        kept = slice(conversion.dropped, None)
        label = sized[0, :image.shape[1], :image.shape[2], kept].argmax(axis=2)
        return logits[0, :, :, kept].transpose(2, 0, 1), label

    return run


@contextlib.contextmanager
def _quiet():
    """Drop what TensorFlow logs, which no setting of its own turns off."""
    stderr = os.dup(2)
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
