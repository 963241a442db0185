"""Run a frozen graph in TensorFlow and its npz in the link, and compare."""
import contextlib
import math
import os
import pathlib
import sys

import numpy as np

from models.resizing import resize_image, resize_labels
from models.utils.errors import InputError

BUILT_IN_IMAGE = pathlib.Path(__file__).parents[1] / 'assets' / 'street.png'
# The built-in image takes this part of the crop: padding is compared as well.
FILLED = 15 / 16
MAX_DIFFERENCE = 0.01  # of the logits, relative to their standard deviation
MIN_EQUAL_LABELS = 0.999


def verify(conversion, npz, images):
    """Compare the source of a conversion with its npz on images.

    `images` is name -> float32, (3, H, W), RGB in [0, 255]; one that exceeds
    the graph's crop is made smaller. Yield for each image a dict: 'name',
    'size', 'equal_labels', a share, and where the graph has one scale,
    'max_difference' and 'mean_difference' of the logits and their 'std'.
    Raise InputError where there is no graph, TensorFlow is missing or the two
    do not agree.
    """
    from models import DeepLabV3plusXception65
    if conversion.wiring is None:
        raise InputError(f'{conversion.source.path} is a checkpoint, which has '
                         'no graph to run: leave --verify out, or export a '
                         'graph')
    model = DeepLabV3plusXception65(pretrained_model=npz)
    images = {name: shrunk(image, conversion.min_input_size)
              for name, image in images.items()}
    outputs = _outputs(conversion, images.values())
    for name, image in images.items():
        result = _compare(model, image, *next(outputs))
        yield {'name': name, 'size': list(image.shape[1:]), **result}
        difference = result.get('max_difference', 0)
        if not (difference <= MAX_DIFFERENCE * result.get('std', 1)
                and result['equal_labels'] >= MIN_EQUAL_LABELS):
            raise InputError(f'{name}: the npz does not do what the graph '
                             'does; nothing was written')


def _outputs(conversion, images):
    """Yield what a graph makes of each image in TensorFlow: scores, (H, W, C),
    and logits, (h, w, C), if these are of one scale.
    """
    tf = import_tensorflow('--verify', 'leave --verify out')
    source, wiring = conversion.source, conversion.wiring
    names = [f'{name}:0' for name in (wiring.scores, wiring.logits) if name]
    try:
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(tf.compat.v1.GraphDef.FromString(
                bytes(source.data)), name='')
        session = tf.compat.v1.Session(graph=graph)
        for image in images:
            pixels = image.transpose(1, 2, 0).astype(np.uint8)[np.newaxis]
            with silent():
                found = session.run(names, {f'{wiring.image}:0': pixels})
            yield [each[0, ..., conversion.background_offset:]
                   for each in found]
    except (tf.errors.OpError, KeyError, TypeError, ValueError) as error:
        raise InputError(f'{source.path}: TensorFlow cannot run the graph '
                         f'({error})') from None


def _compare(model, image, scores, *logits):
    height, width = model.resized_size(*image.shape[1:])
    label = resize_labels(scores[:height, :width].argmax(2), image.shape[1:])
    predicted, = model.predict([image])
    result = {'equal_labels': float((predicted == label).mean())}
    if logits:
        found = model.compile()(model.prepare(image)[np.newaxis])[0]
        difference = np.abs(found - logits[0].transpose(2, 0, 1))
        result.update(max_difference=float(difference.max()),
                      mean_difference=float(difference.mean()),
                      std=float(logits[0].std()))
    return result


def built_in_image(size):
    """Return the built-in image, float32 (3, h, w), for a crop of a size."""
    from PIL import Image
    with Image.open(BUILT_IN_IMAGE) as image:
        pixels = np.asarray(image.convert('RGB')).transpose(2, 0, 1)
    return resize_image(
        pixels, [math.ceil(side * FILLED) for side in size]).round()


def shrunk(image, size):
    """Return an image (3, H, W), smaller where it exceeds a size (H, W)."""
    scale = min(most / side for most, side in zip(
        size, image.shape[1:], strict=True))
    return image if scale >= 1 else resize_image(
        image, [int(side * scale) or 1 for side in image.shape[1:]]).round()


def import_tensorflow(purpose, instead):
    """Return the module tensorflow, silent; raise InputError if it is missing.

    The line begins with the purpose and ends with what to do instead.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    try:
        with silent():
            import tensorflow
    except ImportError:
        raise InputError(
            f'{purpose} needs TensorFlow: install it with `make setup-dev` (on '
            f'Python 3.13 at most), or {instead}') from None
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
