"""Evaluate image after image, and resume where an earlier run stopped."""
import contextlib
import json
import sys
import time
import zipfile

import numpy as np

from evaluation.scores import confusion_matrix, scores
from media.batch import prefetch
from models.utils.errors import InputError
from models.utils.files import atomic_path

LOG_INTERVAL = 30  # seconds between two lines where there is no terminal
LOG_FORMAT = '{n_fmt}/{total_fmt} images, {rate_fmt}, {remaining} left{postfix}'


class State:
    """What is known of a run so far.

    Attributes:
        seconds (float): that all parts of the run took.
        finished (float): when the last image was done, in seconds since 1970;
            0 before.
    """

    def __init__(self, n_class):
        self._done = np.zeros((n_class, n_class), np.int64), 0, ()
        self.seconds = self.finished = 0.

    @property
    def done(self):
        """Number of evaluated images, from the first one on."""
        return len(self.images)

    @property
    def matrix(self):
        """Their counts: (n_class, n_class), int64, see `confusion_matrix`."""
        return self._done[0]

    @property
    def ignored(self):
        """Number of their pixels that do not count."""
        return self._done[1]

    @property
    def images(self):
        """The name, digests and mean IoU of each of them."""
        return self._done[2]

    @property
    def image_miou(self):
        """Mean IoU of each of them: list of float."""
        return [miou for _, _, miou in self.images]

    def add(self, name, digests, label, prediction):
        """Count an image: `label` and `prediction` are (H, W), int32."""
        matrix = confusion_matrix(label, prediction, len(self.matrix))
        miou = float(scores(matrix)['miou'])
        # One assignment: an interrupt comes before all or after all.
        self._done = (self.matrix + matrix,
                      self.ignored + label.size - int(matrix.sum()),
                      (*self.images, (name, digests, miou)))

    def save(self, path, settings):
        matrix, ignored, images = self._done
        with atomic_path(path) as temporary, open(temporary, 'wb') as file:
            np.savez(file, settings=json.dumps(settings), matrix=matrix,
                     ignored=ignored, images=json.dumps(images),
                     seconds=self.seconds, finished=self.finished)

    @classmethod
    def load(cls, path, settings, images):
        """Resume a run on images; raise InputError where its settings or its
        images differ, or the file is damaged.
        """
        state = cls(0)
        try:
            with np.load(path, allow_pickle=False) as saved:
                before = json.loads(str(saved['settings']))
                state._done = (
                    saved['matrix'], int(saved['ignored']),
                    tuple(map(tuple, json.loads(str(saved['images'])))))
                state.seconds = float(saved['seconds'])
                state.finished = float(saved['finished'])
        except (ValueError, KeyError, EOFError, OSError, TypeError,
                zipfile.BadZipFile) as error:
            raise InputError(f'{path} is no state of an evaluation '
                             f'({type(error).__name__}): remove it, or '
                             'evaluate anew with --force') from None
        settings = json.loads(json.dumps(settings))  # tuples become lists
        for name in settings:
            if before.get(name) != settings[name]:
                raise InputError(
                    f'{path} is of a run with {name} {before.get(name)}, and '
                    f'this one has {settings[name]}: give the same options '
                    'or another --output, or evaluate anew with --force')
        state._check_unchanged(path, images)
        return state

    def _check_unchanged(self, path, images):
        """Raise InputError unless the images are those that were evaluated."""
        advice = 'evaluate anew with --force, or give another --output'
        for i, (name, digests, _) in enumerate(self.images):
            if images.names[i] != name:
                raise InputError(f'the list of images has changed since {path} '
                                 f'was written (at {name}): {advice}')
            changed = images.changed_file(i, digests)
            if changed is not None:
                raise InputError(f'{changed} has changed since {path} was '
                                 f'written: {advice}')


def evaluate(images, model, state, save, save_interval=20, use=None,
             show=True):
    """Evaluate the images that are left, one after another.

    Args:
        images (LabelledImages or Subset): what to evaluate.
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
        with (_progress(len(images), state.done, show) as progress,
              contextlib.closing(prefetch(images.read, range(
                  state.done, len(images)))) as items):
            for i, read in items:
                image, label, digests = read()
                prediction, = model.predict([image])
                if use is not None:
                    use(i, prediction)
                state.add(images.names[i], digests, label, prediction)
                state.seconds = time.monotonic() - begun
                miou = scores(state.matrix)['miou']
                progress.set_postfix_str(f'mIoU so far {miou:.2%}', False)
                progress.update()
                if time.monotonic() - saved >= save_interval:
                    save()
                    saved = time.monotonic()
        state.finished = state.finished or time.time()
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
