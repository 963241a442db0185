"""Evaluate image after image, and resume where an earlier run stopped."""
import ast
import contextlib
import hashlib
import json
import pathlib
import re
import sys
import time
import typing
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from evaluation.scores import confusion_matrix, scores
from media.batch import in_turn, prefetch
from models.utils.errors import InputError, Interrupted, exit_code
from models.utils.files import atomic_path

ROOT = pathlib.Path(__file__).parents[1]
STATE = re.compile(r'state(_\d+_of_\d+)?\.npz')
LOG_INTERVAL = 30  # seconds between two lines where there is no terminal
LOG_FORMAT = ('{n_fmt}/{total_fmt} images, {rate_fmt}, {remaining} left'
              '{postfix}\n')
# What scores depend on: the network, and how images and labels are read.
CODE = ('models/*.py', 'models/*.cu', 'media/images.py',
        'evaluation/labelled_images.py', 'evaluation/scores.py')


class State(typing.NamedTuple):
    """What is known of a run so far."""

    matrix: np.ndarray  # (n_class, n_class), int64, see `confusion_matrix`
    ignored: int = 0  # pixels that do not count
    images: tuple = ()  # name, digests and mean IoU of each, from the first on
    seconds: float = 0.  # that all parts of the run took
    finished: float = 0.  # when the last was done, since 1970; 0 before

    @classmethod
    def new(cls, n_class):
        return cls(np.zeros((n_class, n_class), np.int64))

    @classmethod
    def of_image(cls, n_class, name, digests, label, prediction):
        """Return that of one image; its arrays are (H, W), int32."""
        matrix = confusion_matrix(label, prediction, n_class)
        return cls(matrix, label.size - int(matrix.sum()),
                   ((name, digests, float(scores(matrix)['miou'])),))

    def plus(self, image):
        """Return the state with one more image, a `State` of it."""
        return self._replace(matrix=self.matrix + image.matrix,
                             ignored=self.ignored + image.ignored,
                             images=self.images + image.images)

    @property
    def image_miou(self):
        """Mean IoU of each image: list of float."""
        return [miou for _, _, miou in self.images]


def merged(states):
    """Return one state of those of n processes, each of every n-th image."""
    images = [None] * sum(len(state.images) for state in states)
    for rank, state in enumerate(states):
        images[rank::len(states)] = state.images
    return State(sum(state.matrix for state in states),
                 sum(state.ignored for state in states), tuple(images),
                 max(state.seconds for state in states))


def state_path(folder, rank, size):
    """Return where a process of so many saves its state; raise InputError where
    there are states of another number of processes.
    """
    names = ['state.npz'] if size == 1 else [
        f'state_{i}_of_{size}.npz' for i in range(size)]
    for path in states_in(folder):
        if path.name not in names:
            raise InputError(
                f'{path} is of a run with another number of processes than '
                f'{size}: give the same, another --output, or evaluate anew '
                'with --force')
    return folder / names[rank]


def states_in(folder):
    """Return the files in which processes have saved their state."""
    return [path for path in folder.glob('state*.npz')
            if STATE.fullmatch(path.name)]


def code_sha256(root=ROOT):
    """Return a digest of the code that scores depend on, without comments and
    docstrings.
    """
    result = hashlib.sha256()
    for path in sorted(path for code in CODE for path in root.glob(code)):
        if path.suffix != '.py':
            result.update(path.read_bytes())
            continue
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)
                          ) and ast.get_docstring(node) is not None:
                del node.body[0]
        result.update(ast.dump(tree).encode())
    return result.hexdigest()


def save_state(path, state, settings):
    fields = {**state._asdict(), 'images': json.dumps(state.images)}
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        np.savez(file, settings=json.dumps(settings), **fields)


def load_state(path, settings, images):
    """Return the state of an earlier run; raise InputError where its settings
    or its images differ, or the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            before = json.loads(str(saved['settings']))
            state = State(
                saved['matrix'], int(saved['ignored']),
                tuple(map(tuple, json.loads(str(saved['images'])))),
                float(saved['seconds']), float(saved['finished']))
    except (ValueError, KeyError, EOFError, OSError, TypeError,
            zipfile.BadZipFile) as error:
        raise InputError(f'{path} is no state of an evaluation '
                         f'({type(error).__name__}): remove it, or evaluate '
                         'anew with --force') from None
    settings = json.loads(json.dumps(settings))  # tuples become lists
    settings.pop('data_dir', None)  # digests say whether images are the same
    for name in settings:
        if before.get(name) != settings[name]:
            raise InputError(
                f'{path} is of a run with {name} {before.get(name)}, and this '
                f'one has {settings[name]}: give the same options or another '
                '--output, or evaluate anew with --force')
    _check_unchanged(path, state, images)
    return state


def _check_unchanged(path, state, images):
    """Raise InputError unless the images are those that were evaluated."""
    for i, (name, digests, _) in enumerate(state.images):
        changed = (images.changed_file(i, digests) if images.names[i] == name
                   else 'the list of images')
        if changed is not None:
            raise InputError(
                f'{changed} has changed since {path} was written: evaluate '
                'anew with --force, or give another --output')


def evaluate(images, model, state, save, save_interval=20, use=None,
             show=True, n_threads=1):
    """Evaluate the images that are left, one after another.

    Args:
        images (LabelledImages): what to evaluate.
        model: with ChainerCV's `predict`.
        state (State): where to begin.
        save (callable): called with the state at intervals of so many seconds,
            and at the end, after an interrupt or error as well.
        use (callable): called with index and prediction of each image.
        show (bool): print progress to stderr.
        n_threads (int): that read images, and as many that score them.

    Returns:
        State: of all images.

    Raises:
        Interrupted: after Ctrl-C.
    """
    saved = time.monotonic()
    begun = saved - state.seconds
    try:
        with (_progress(len(images), len(state.images), show) as progress,
              contextlib.closing(in_turn(_scored(
                  images, range(len(state.images), len(images)), model,
                  len(state.matrix), use, n_threads), n_threads)) as found):
            for image in found:
                state = state.plus(image)._replace(
                    seconds=time.monotonic() - begun)
                miou = scores(state.matrix)['miou']
                progress.set_postfix_str(f'mIoU so far {miou:.2%}', False)
                progress.update()
                if time.monotonic() - saved >= save_interval:
                    save(state)
                    saved = time.monotonic()
        state = state._replace(finished=state.finished or time.time())
    except KeyboardInterrupt as error:
        raise Interrupted(
            f'interrupted after {len(state.images)} of {len(images)} images; '
            'the same command resumes there', exit_code(error)) from None
    finally:
        save(state)
    return state


def _scored(images, indices, model, n_class, use, n_threads):
    """Yield a future `State` of each image: threads read the next ones, others
    score, this one computes.
    """
    def score(i, label, digests, prediction):
        if use is not None:
            use(i, prediction)
        return State.of_image(n_class, images.names[i], digests, label,
                              prediction)

    with (ThreadPoolExecutor(n_threads) as scorer, contextlib.closing(prefetch(
            images.read, indices, n_threads)) as items):
        for i, read in items:
            image, label, digests = read()
            prediction, = model.predict([image])
            yield scorer.submit(score, i, label, digests, prediction)


def _progress(total, done, show):
    """A bar on a terminal; elsewhere a line now and then."""
    log = {} if sys.stderr.isatty() else {
        'bar_format': LOG_FORMAT, 'mininterval': LOG_INTERVAL,
        'maxinterval': LOG_INTERVAL, 'delay': 1e-3}  # no line before the first
    return tqdm(total=total, initial=done, unit=' images', disable=not show,
                dynamic_ncols=True, **log)
