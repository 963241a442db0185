"""Segment many inputs: reading, computing and writing overlap."""
import contextlib
import dataclasses
import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from media import MAX_PIXELS
from media.inputs import Input
from media.outputs import REFUSE, REPLACE, SKIP, write_image
from media.results_page import ResultsPage
from media.segmentation import Segmenter
from media.visualization import Style, draw, shares
from models.memory import cores
from models.utils.errors import describe, shortened
from models.utils.files import part_path

MAX_THREADS = 8  # that read, and as many that write; each holds an image
PATIENCE = 1  # second for threads to end
SKIPPED = 'skipped, another run has written its results'


class Outcome(NamedTuple):
    """What came of an input."""

    each: Input
    paths: Sequence = ()  # files and folders that were written
    # Of its images, see `Segmenter.segment`; with the 'name' of the input, the
    # 'shares' of the classes and, of a frame, its 'time' in seconds.
    records: Sequence[dict] = ()
    seconds: Sequence[float] = ()  # that each image took, with the wait for it
    notes: Sequence[str] = ()  # for the user
    error: str | None = None  # why it failed
    is_whole: bool = True  # else it was interrupted


@dataclasses.dataclass
class Batch:
    """Writes the results of inputs; one failure does not stop the others."""

    segmenter: Segmenter
    style: Style
    results: dict[Input, dict]  # see `outputs.Plan`
    page: ResultsPage | None = None  # to add images to
    max_pixels: int = MAX_PIXELS  # larger images are refused
    existing: str = REFUSE  # as for `outputs.plan_outputs`, meanwhile
    with_records: bool = False  # outcomes have them; they take some memory
    n_threads: int = 1  # that read images, and as many that write

    def run(self):
        """Yield the `Outcome` of each input, in their order, once its results
        are written. After Ctrl-C, those of what was begun come first.
        """
        for is_video, inputs in itertools.groupby(
                self.results, lambda each: each.is_video):
            if is_video:
                for each in inputs:
                    yield from self._video(each)
            else:
                yield from in_turn(self._images(list(inputs)), self.n_threads)

    def _is_there(self, each):
        """Return whether another run has brought the results meanwhile."""
        return self.existing == SKIP and all(
            path.exists() for path in self.results[each].values())

    def _images(self, inputs):
        """Yield a future `Outcome` of each image: threads read the next ones,
        others write, this one computes.
        """
        # The page takes images in their order.
        n_writers = self.n_threads if self.page is None else 1
        with (ThreadPoolExecutor(n_writers) as writer,
              contextlib.closing(prefetch(
                  lambda each: each.read(self.max_pixels), inputs,
                  self.n_threads)) as images):
            begun = time.perf_counter()
            for each, read in images:
                try:
                    if self._is_there(each):
                        future = writer.submit(Outcome, each, notes=[SKIPPED])
                    else:
                        image = read()
                        label, record, notes = self.segmenter.segment(image)
                        future = writer.submit(self._written, Outcome(
                            each, seconds=[time.perf_counter() - begun],
                            notes=notes), image, label, record)
                except Exception as error:  # one bad input never ends a run
                    future = writer.submit(Outcome, each,
                                           error=describe(error, each.name))
                begun = time.perf_counter()
                yield future

    def _written(self, outcome, image, label, record):
        """Write the results of an image; return its outcome."""
        each, paths = outcome.each, self.results[outcome.each]
        try:
            for kind, path in paths.items():
                write_image(path, draw(kind, image, label, self.style),
                            self.existing == REPLACE)
            if self.page is not None:
                self.page.add(each, image, label)
        except Exception as error:
            return outcome._replace(error=describe(error, each.name))
        return outcome._replace(paths=list(paths.values()),
                                records=self._records(each, label, record))

    def _records(self, each, label, record, **more):
        return [{'name': each.name, **record, 'shares': shares(
            label, self.style.names, self.style.class_filter), **more}
                ] if self.with_records else []

    def _video(self, each):
        """Yield the outcome; after Ctrl-C as well."""
        from media.video import open_video, writing
        if self._is_there(each):
            yield Outcome(each, notes=[SKIPPED])
            return
        paths, records, seconds, notes = self.results[each], [], [], []
        try:
            with (open_video(each.source(), self.max_pixels, each.name,
                             with_sound=set(paths) != {'indexed'}) as video,
                  contextlib.ExitStack() as stack):
                writers = {kind: stack.enter_context(writing(
                    path, video, self.existing == REPLACE, kind == 'indexed'))
                    for kind, path in paths.items()}
                bar = stack.enter_context(tqdm(
                    total=video.n_frames or None, unit='frame', leave=False,
                    disable=None))
                for found in in_turn(self._frames(each, video, writers)):
                    records += found.records
                    seconds += found.seconds
                    notes += [line for line in found.notes if line not in notes]
                    bar.update(len(found.seconds))
            notes += video.losses
            if video.n_damaged:
                notes.append(f'{video.n_damaged} frames could not be read, or '
                             'have another size than the first')
        except (Exception, KeyboardInterrupt) as error:
            kept = [part for path in paths.values()
                    if (part := part_path(path)).exists()]
            if kept:
                notes.append(f'what was done is in {shortened(kept)}')
            outcome = Outcome(each, [], records, seconds, notes)
            if isinstance(error, KeyboardInterrupt):
                yield outcome._replace(is_whole=False)
                raise
            yield outcome._replace(error=describe(error, each.name))
            return
        yield Outcome(each, list(paths.values()), records, seconds, notes)

    def _frames(self, each, video, writers):
        """Yield a future `Outcome` of each frame, as `_images`."""
        with (ThreadPoolExecutor(1) as writer,
              contextlib.closing(prefetch(
                  lambda frame: None, video.frames)) as frames):
            begun = time.perf_counter()
            for frame, _ in frames:
                label, outcome = None, Outcome(each)
                if frame.image is not None:
                    label, record, notes = self.segmenter.segment(frame.image)
                    records = self._records(each, label, record, time=float(
                        frame.time * video.time_base))
                    outcome = Outcome(each, (), records,
                                      [time.perf_counter() - begun], notes)
                    begun = time.perf_counter()
                yield writer.submit(self._write_frame, frame, label, writers,
                                    outcome)

    def _write_frame(self, frame, label, writers, outcome):
        for kind, writer in writers.items():
            writer.write(None if label is None else draw(
                kind, frame.image, label, self.style, all_classes=True), frame)
        return outcome


def threads_beside(model):
    """Return how many threads read, and as many write, beside a network: on a
    CPU it takes all cores.
    """
    return 1 if model.xp is np else min(MAX_THREADS, cores())


def in_turn(futures, n_threads=1):
    """Yield the results of futures, a generator, as many behind as threads work
    on them, and one; after Ctrl-C or an error those of all that were begun, and
    raise it again.
    """
    waiting = deque()

    def first():
        result = waiting[0].result()
        waiting.popleft()  # not before: Ctrl-C may come
        return result

    with contextlib.closing(futures):
        try:
            for future in futures:
                waiting.append(future)
                while len(waiting) > n_threads + 1:
                    yield first()
            while waiting:
                yield first()
        except (Exception, KeyboardInterrupt):
            while waiting:
                yield first()
            raise


def prefetch(read, items, n_threads=1):
    """Take items in order, and call `read` on them, in as many threads, each of
    which is an item ahead.

    Yield (item, callable): the callable returns what `read` returned, or
    raises what it raised. An error of `items` is raised here. Close the
    generator (`contextlib.closing`) to stop the threads; those that still wait
    after a second, for a slow address say, end with the program.
    """
    items = iter(items)

    def take(before, taken, value):
        wait(before)
        try:
            item = next(items)
        except BaseException as error:  # it is raised where it is awaited
            taken.set_exception(error)
            value.set_exception(error)
            return
        taken.set_result(item)
        try:
            value.set_result(read(item))
        except Exception as error:
            value.set_exception(error)

    ahead = deque()

    def begin():
        before, taken, value = [each[1] for each in ahead], Future(), Future()
        thread = threading.Thread(target=take, args=(before, taken, value),
                                  daemon=True)
        thread.start()
        ahead.append((thread, taken, value))

    try:
        for _ in range(n_threads):
            begin()
        while True:
            _, taken, value = ahead[0]
            item = taken.result()
            ahead.popleft()
            begin()
            yield item, value.result
    except StopIteration:
        return
    finally:
        end = time.monotonic() + PATIENCE
        for thread, *_ in ahead:
            thread.join(max(0, end - time.monotonic()))
