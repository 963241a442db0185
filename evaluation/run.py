"""Evaluate image after image, and resume where an earlier run stopped."""
import json
import sys
import time
import zipfile

import numpy as np

from evaluation.scores import confusion_matrix, scores
from media.prefetch import prefetch
from models.utils.errors import InputError
from models.utils.files import atomic_path

LOG_INTERVAL = 30  # seconds between two lines where there is no terminal
LOG_FORMAT = '{n_fmt}/{total_fmt} images, {rate_fmt}, {remaining} left{postfix}'


class State:
    """What is known of a run so far; `seconds` are those of all its parts."""

    def __init__(self, n_class):
        self._counts = np.zeros((n_class, n_class), np.int64), []
        self.seconds = 0.

    @property
    def done(self):
        """Number of evaluated images, from the first one on."""
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
        """Resume a run; raise InputError where its settings differ or the
        file is damaged.
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
    """Evaluate the images that are left, one after another.

    Args:
        images (sequence): of (image, label), see `LabelledImages`.
        model: with ChainerCV's `predict` and `n_class`.
        state (State): where to begin; it is updated.
        save (callable): called at intervals of so many seconds, and at the
            end, after an interrupt or error as well.
        use (callable): called with index and prediction of each image.
        show (bool): print progress to stderr.
    """
    saved = time.monotonic()
    begun = saved - state.seconds
    try:
        with _progress(len(images), state.done, show) as progress:
            for i, read in prefetch(images.__getitem__,
                                    range(state.done, len(images))):
                image, label = read()
                prediction, = model.predict([image])
                if use is not None:
                    use(i, prediction)
                state.add(confusion_matrix(label, prediction, model.n_class))
                state.seconds = time.monotonic() - begun
                miou = scores(state.matrix)['miou']
                progress.set_postfix_str(f'mIoU so far {miou:.2%}', False)
                progress.update()
                if time.monotonic() - saved >= save_interval:
                    save()
                    saved = time.monotonic()
    finally:
        save()


def _progress(total, done, show):
    """A bar on a terminal; elsewhere a line now and then."""
    from tqdm import tqdm
    log = {} if sys.stderr.isatty() else {
        'file': _Lines(), 'bar_format': LOG_FORMAT, 'mininterval': LOG_INTERVAL,
        'maxinterval': LOG_INTERVAL}
    return tqdm(total=total, initial=done, unit=' images', disable=not show,
                dynamic_ncols=True, **log)


class _Lines:
    """Prints a progress bar as lines of stderr, once its rate is known."""

    def __init__(self):
        self._count = None  # of the last line; at its end a bar repeats itself

    def write(self, text):
        count = text.strip().partition(' ')[0]
        if count and '?' not in text and count != self._count:
            print(text.strip(), file=sys.stderr, flush=True)
            self._count = count

    def flush(self):
        pass
