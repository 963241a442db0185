"""Segment many inputs: reading, computing and writing overlap."""
import contextlib
import itertools
import os
import pathlib
import queue
import threading
import time
import typing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from media.images import MAX_PIXELS
from media.inputs import Input
from media.outputs import (
    REFUSE,
    REPLACE,
    SKIP,
    remove_frames,
    write_image,
)
from media.video import Frame, duplicate, open_video, writing
from media.visualization import OPACITY, draw
from models.utils.errors import InputError, describe, shortened
from models.utils.files import atomic_folder, part_path

MAX_WAITING = 2  # results that are computed and not yet written
END = object()
PATIENCE = 1  # second for the thread to end


class Outcome(typing.NamedTuple):
    """What came of an input.

    `records` are those of its images, see `Segmenter.segment`, with the 'name'
    of the input and, of a frame, its 'time' in seconds. `notes` are lines for
    the user; `error` is the one that says why it failed, or None.
    """

    each: Input
    paths: Sequence = ()  # files and folders that were written
    records: Sequence = ()
    seconds: Sequence = ()  # that each image took, with the wait for it
    notes: Sequence = ()
    error: str | None = None
    is_whole: bool = True  # else it was interrupted


class Batch:
    """Writes the results of inputs; one failure does not stop the others.

    Args:
        segmenter (Segmenter): for all images.
        results (dict): see `outputs.Plan`.
        page (ResultsPage): to add images to; or None.
        opacity (float): of overlays, 0 to 1.
        max_pixels (int): larger images are refused.
        existing (str): what to do with results that have appeared since the
            plan was made, see `outputs.plan_outputs`.
        with_records (bool): whether outcomes have records; those of a long
            video take some memory.
    """

    def __init__(self, segmenter, results, page=None, opacity=OPACITY,
                 max_pixels=MAX_PIXELS, existing=REFUSE, with_records=False):
        self.segmenter, self.results, self.page = segmenter, results, page
        self.opacity, self.max_pixels = opacity, max_pixels
        self.existing, self.with_records = existing, with_records

    def run(self):
        """Yield the `Outcome` of each input, in their order, once its results
        are written. After Ctrl-C, those of what was begun come first.
        """
        for is_video, inputs in itertools.groupby(
                self.results, lambda each: each.is_video):
            if is_video:
                for each in inputs:
                    yield from self._skipped(each) or self._video(each)
            else:
                yield from self._images(list(inputs))

    def _skipped(self, each):
        """Return the outcome, in a list, where another run has brought the
        results meanwhile.
        """
        if self.existing != SKIP or not all(
                path.exists() for path in self.results[each].values()):
            return []
        return [Outcome(each, notes=['skipped, another run has written its '
                                     'results'])]

    def _images(self, inputs):
        """One thread reads the next image, one writes, this one computes."""
        waiting = []

        def written(n_waiting=0):
            while len(waiting) > n_waiting:
                outcome = waiting[0]()
                waiting.pop(0)  # not before: Ctrl-C may come
                yield outcome

        with (ThreadPoolExecutor(1) as writer,
              contextlib.closing(prefetch(lambda each: each.read(
                  self.max_pixels), inputs)) as images):
            try:
                begun = time.perf_counter()
                for each, read in images:
                    if skipped := self._skipped(each):
                        waiting.append(lambda found=skipped: found[0])
                    else:
                        waiting.append(self._begun(each, read, writer, begun))
                    begun = time.perf_counter()
                    yield from written(MAX_WAITING)
                yield from written()
            except KeyboardInterrupt:
                yield from written()
                raise

    def _begun(self, each, read, writer, begun):
        """Segment an image; return a function that waits until its results are
        written, and returns the outcome.
        """
        try:
            image = read()
            label, record, notes = self.segmenter.segment(image)
        except Exception as error:  # one bad input never ends a run
            failure = Outcome(each, error=describe(error, each.name))
            return lambda: failure
        seconds = time.perf_counter() - begun
        written = writer.submit(self._write, each, image, label)

        def result():
            try:
                return Outcome(each, written.result(), [
                    {'name': each.name, **record}] * self.with_records,
                    [seconds], notes)
            except Exception as error:
                return Outcome(each, seconds=[seconds], notes=notes,
                               error=describe(error, each.name))
        return result

    def _write(self, each, image, label):
        for kind, path in self.results[each].items():
            write_image(path, self._drawn(kind, image, label),
                        self.existing == REPLACE)
        if self.page is not None:
            self.page.add(each, image, label)
        return list(self.results[each].values())

    def _drawn(self, kind, image, label, **options):
        it = self.segmenter
        return draw(kind, image, label, it.names, it.colors, it.class_filter,
                    self.opacity, **options)

    # Videos

    def _video(self, each):
        """Yield the outcome; after Ctrl-C as well."""
        paths, records, seconds, notes = self.results[each], [], [], []
        try:
            with open_video(each.path, self.max_pixels) as video:
                with (self._writers(paths, video) as writers,
                      tqdm(total=video.n_frames or None, unit='frame',
                           leave=False, disable=None) as bar):
                    self._frames(each, video, writers, bar, records, seconds,
                                 notes)
                notes += _losses(video, paths)
        except (Exception, KeyboardInterrupt) as error:
            parts = [part_path(path) for path in paths.values()
                     if part_path(path).exists()]
            if parts:
                notes.append(f'what was done is in {shortened(parts)}')
            if isinstance(error, KeyboardInterrupt):
                yield Outcome(each, [], records, seconds, notes, None, False)
                raise
            yield Outcome(each, [], records, seconds, notes,
                          describe(error, each.name))
            return
        if self.page is not None:
            self.page.note(each, f'{each.name} is a video, of which this page '
                           'shows nothing.')
        yield Outcome(each, list(paths.values()), records, seconds, notes)

    @contextlib.contextmanager
    def _writers(self, paths, video):
        """Open what a video's results are written with: kind -> writer."""
        with contextlib.ExitStack() as stack:
            yield {kind: stack.enter_context(
                (_folder if kind == 'indexed' else writing)(
                    path, video, self.existing == REPLACE))
                for kind, path in paths.items()}

    def _frames(self, each, video, writers, bar, records, seconds, notes):
        """One thread reads frames, one draws and writes, this one computes."""
        waiting = []
        with (ThreadPoolExecutor(1) as thread,
              contextlib.closing(prefetch(
                  lambda part: None, video.parts())) as parts):
            try:
                begun = time.perf_counter()
                for part, _ in parts:
                    if isinstance(part, Frame):
                        label, record, said = self.segmenter.segment(part.image)
                        notes += [line for line in said if line not in notes]
                        if self.with_records:
                            records.append({
                                'name': each.name, **record,
                                'time': float(part.time * video.time_base)})
                        waiting.append(thread.submit(
                            self._write_frame, writers, part, label))
                        seconds.append(time.perf_counter() - begun)
                        bar.update()
                        begun = time.perf_counter()
                    else:
                        waiting.append(thread.submit(_copy, writers, part))
                    while len(waiting) > MAX_WAITING:
                        waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.result()

    def _write_frame(self, writers, frame, label):
        for kind, writer in writers.items():
            options = {'all_classes': True} if kind == 'figure' else {}
            writer.write(self._drawn(kind, frame.image, label, **options),
                         frame)


def _losses(video, paths):
    """Return what the results do not have, a line each."""
    losses = list(dict.fromkeys(video.losses))
    if video.sounds and paths and not paths.keys() - {'indexed'}:
        losses.append('the sound is dropped: images have none')
    if video.n_damaged:
        losses.append(f'{video.n_damaged} frames could not be read, or have '
                      'another size than the first')
    return losses


def _copy(writers, packet):
    films = [writer for kind, writer in writers.items() if kind != 'indexed']
    for writer in films:
        writer.copy(packet if len(films) == 1 else duplicate(packet))


class _Pictures:
    """Writes numbered images into a folder."""

    def __init__(self, folder):
        self._folder, self._number = folder, 0

    def write(self, image, frame):
        self._number += 1
        write_image(self._folder / f'{self._number:06}.png', image)


@contextlib.contextmanager
def _folder(path, video, replace):
    """Give what writes into a folder, which has its name when it is whole;
    where the body raises, that of `part_path`.
    """
    path = pathlib.Path(os.path.realpath(path))
    with atomic_folder(path) as temporary:
        try:
            yield _Pictures(temporary)
            if not any(temporary.iterdir()):
                raise InputError(f'{video.name}: the video has no frame')
            if not replace and path.exists():
                raise InputError(f'{path} has appeared meanwhile, and is left '
                                 'as it is')
        except BaseException:
            if any(temporary.iterdir()):
                _replace_frames(temporary, part_path(path))
            raise
        _replace_frames(temporary, path)
    remove_frames(part_path(path))  # of an earlier run


def _replace_frames(folder, target):
    remove_frames(target)
    os.replace(folder, target)


def prefetch(read, items):
    """Take items, and call `read` on them, in a thread that is one item ahead.

    Yield (item, callable): the callable returns what `read` returned, or
    raises what it raised. An error of `items` is raised here. Close the
    generator (`contextlib.closing`) to stop the thread; one that still waits
    after a second, for a slow address say, ends with the program.
    """
    ready, stopped = queue.Queue(1), threading.Event()

    def put(value):
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(value, timeout=0.1)

    def work():
        try:
            for item in items:
                put((item, _outcome(read, item)))
                if stopped.is_set():
                    return
            put(END)
        except BaseException as error:  # it is raised where it is awaited
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not END:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stopped.set()
        thread.join(PATIENCE)


def _outcome(read, item):
    try:
        value = read(item)
    except Exception as error:
        failure = error

        def outcome():
            raise failure
        return outcome
    return lambda: value
