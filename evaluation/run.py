"""Mean IoU over a data set, exact, and taken up again where it stopped."""
import json
import sys
import time
import zipfile

import numpy as np

from evaluation.labelled_images import IGNORED
from media.prefetch import read_ahead
from models.utils.errors import InputError
from models.utils.files import atomic_path

LOG_INTERVAL = 30  # seconds between lines where there is no terminal
# Of Cityscapes' 19 classes; flat, construction, object, nature, sky, human,
# vehicle (cityscapesScripts, helpers/labels.py).
CITYSCAPES_CATEGORIES = {
    'flat': (0, 1), 'construction': (2, 3, 4), 'object': (5, 6, 7),
    'nature': (8, 9), 'sky': (10,), 'human': (11, 12),
    'vehicle': (13, 14, 15, 16, 17, 18)}


def confusion_matrix(label: np.ndarray, prediction: np.ndarray,
                     n_class: int) -> np.ndarray:
    """Count the pixels of an image by true and predicted class.

    Args:
        label (numpy.ndarray, (H, W), int): true classes; -1 is not counted.
        prediction (numpy.ndarray, (H, W), int): predicted classes.
        n_class (int): number of classes.

    Returns:
        numpy.ndarray, (n_class, n_class), int64: row true, column predicted.

    """
    pairs = n_class * (label.astype(np.int64) - IGNORED) + prediction
    counts = np.bincount(pairs.ravel(), minlength=n_class * (n_class + 1))
    return counts.reshape(-1, n_class)[1:]  # row 0 has the ignored pixels


def scores(matrix: np.ndarray) -> dict:
    """Compute what `chainercv.evaluations.eval_semantic_segmentation` does.

    Args:
        matrix (numpy.ndarray, (n_class, n_class), int64): see
            `confusion_matrix`.

    Returns:
        dict: 'iou' and 'class_accuracy' (n_class,), nan for a class that is
        not there; their means 'miou' and 'mean_class_accuracy' over the
        classes that are; and 'pixel_accuracy'. All in [0, 1].

    """
    right = np.diag(matrix)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = right / (matrix.sum(axis=1) + matrix.sum(axis=0) - right)
        class_accuracy = right / matrix.sum(axis=1)
        pixel_accuracy = right.sum() / matrix.sum()
    return {
        'iou': iou, 'miou': _mean(iou), 'pixel_accuracy': pixel_accuracy,
        'class_accuracy': class_accuracy,
        'mean_class_accuracy': _mean(class_accuracy)}


def _mean(values):
    return np.nan if np.isnan(values).all() else np.nanmean(values)


def category_iou(matrix: np.ndarray) -> dict[str, float]:
    """Return Cityscapes' category -> IoU, of the matrix of its 19 classes."""
    members = np.zeros((len(CITYSCAPES_CATEGORIES), len(matrix)), np.int64)
    for row, classes in zip(members, CITYSCAPES_CATEGORIES.values(),
                            strict=True):
        row[list(classes)] = 1
    iou = scores(members @ matrix @ members.T)['iou']
    return dict(zip(CITYSCAPES_CATEGORIES, iou, strict=True))


class State:

    """What is known of a run so far.

    Args:
        n_class (int): number of classes.

    """

    def __init__(self, n_class):
        self._counts = np.zeros((n_class, n_class), np.int64), []
        self.seconds = 0.

    @property
    def done(self):
        """Images judged, from the first one on."""
        return len(self.image_miou)

    @property
    def matrix(self):
        """Their counts: (n_class, n_class), int64, see `confusion_matrix`."""
        return self._counts[0]

    @property
    def image_miou(self):
        """Mean IoU of each of them: list of float."""
        return self._counts[1]

    def add(self, matrix):
        miou = float(scores(matrix)['miou'])
        # One assignment: an interrupt comes before both or after both.
        self._counts = self.matrix + matrix, [*self.image_miou, miou]

    def save(self, path, settings):
        matrix, image_miou = self._counts
        with atomic_path(path) as temporary, open(temporary, 'wb') as file:
            np.savez(file, settings=json.dumps(settings), matrix=matrix,
                     image_miou=np.array(image_miou), seconds=self.seconds)

    @classmethod
    def load(cls, path, settings):
        """Take up a run that was saved with the same settings.

        Raises:
            InputError: the settings differ, or the file is damaged.

        """
        state = cls(0)
        try:
            with np.load(path, allow_pickle=False) as saved:
                before = json.loads(str(saved['settings']))
                state._counts = saved['matrix'], saved['image_miou'].tolist()
                state.seconds = float(saved['seconds'])
        except (ValueError, KeyError, EOFError, OSError,
                zipfile.BadZipFile) as error:
            raise InputError(f'{path} is no state of an evaluation ({error}): '
                             'remove it to start anew') from None
        settings = json.loads(json.dumps(settings))  # tuples become lists
        for name in settings:
            if before.get(name) != settings[name]:
                raise InputError(
                    f'{path} is of a run with {name} {before.get(name)}, and '
                    f'this one has {settings[name]}: give the same options '
                    'or another --output, or remove it')
        return state


def evaluate(images, model, state, save, save_interval=20, use=None,
             show=True):
    """Judge the images that are left, one after another.

    The next image is read while the present one is computed.

    Args:
        images (sequence): of (image, label), see `LabelledImages`.
        model: with ChainerCV's `predict` and `n_class`.
        state (State): where to begin; it is brought to the end.
        save (callable): called with no argument at intervals, at the end and
            when the run is interrupted or an image cannot be used.
        save_interval (float): seconds between two saves.
        use (callable): called with the index and prediction of each image.
        show (bool): print how far it is, to stderr.

    """
    saved = time.monotonic()
    begun = saved - state.seconds
    progress = Progress(len(images), state.done)
    try:
        for i, result in read_ahead(images.__getitem__,
                                    range(state.done, len(images))):
            image, label = result()
            prediction, = model.predict([image])
            if use is not None:
                use(i, prediction)
            state.add(confusion_matrix(label, prediction, model.n_class))
            state.seconds = time.monotonic() - begun
            if show:
                progress.show(state)
            if time.monotonic() - saved >= save_interval:
                save()
                saved = time.monotonic()
    finally:
        if show:
            progress.end()
        save()


class Progress:

    """How far the run is: one line that changes, or lines in a log."""

    def __init__(self, total, done):
        self.total, self.first = total, done
        self.start = self.shown = time.monotonic()
        self.on_terminal = sys.stderr.isatty()

    def show(self, state):
        now = time.monotonic()
        due = now - self.shown >= LOG_INTERVAL or state.done == self.total
        if not (due or self.on_terminal):
            return
        self.shown = now
        rate = (state.done - self.first) / max(now - self.start, 1e-9)
        left = time.strftime('%H:%M:%S', time.gmtime(
            (self.total - state.done) / rate))
        line = (f'{state.done}/{self.total} images, {rate:.2f} a second, '
                f'{left} left, mIoU so far {scores(state.matrix)["miou"]:.2%}')
        if self.on_terminal:
            print(f'\r\x1b[K{line}', end='', file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self):
        if self.on_terminal:
            print(file=sys.stderr)
