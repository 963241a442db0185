"""Segment many inputs: reading, computing and writing overlap."""
import contextlib
import itertools
import os
import pathlib
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from media.outputs import remove_frames, write_image
from media.video import Frame, duplicate, open_video, writing
from media.visualization import draw
from models.utils.errors import InputError, shortened
from models.utils.files import part_path

MAX_WAITING = 2  # results that are computed and not yet written
END = object()
PATIENCE = 1  # second for the thread to end


class Batch:
    """Writes the results of inputs; one failure does not stop the others.

    Args:
        segmenter (Segmenter): its tally counts.
        outputs (dict): see `outputs.plan_outputs`.
        page (ResultsPage): to add images to; or None.
        opacity (float): of overlays, 0 to 1.
        max_pixels (int): larger images are refused.
        skip_existing (bool): look again before each input whether another run
            has brought its results.
        records (dict): input -> list, to add a dict to for each image and
            frame, see `Segmenter.segment`; a frame's has its 'time' in
            seconds as well. None: they are not kept.
    """

    def __init__(self, segmenter, outputs, page, opacity, max_pixels,
                 skip_existing=False, records=None):
        self.segmenter, self.tally = segmenter, segmenter.tally
        self.outputs, self.page, self.opacity = outputs, page, opacity
        self.max_pixels, self.skip_existing = max_pixels, skip_existing
        self.records = records

    def run(self):
        """Write the results of all inputs, in their order."""
        from tqdm import tqdm
        with tqdm(total=len(self.outputs), unit='input', disable=None if len(
                self.outputs) > 1 else True) as self.tally.bar:
            for is_video, inputs in itertools.groupby(
                    self.outputs, lambda each: each.is_video):
                if is_video:
                    self._videos(inputs)
                else:
                    self._images(list(inputs))
        self.tally.bar = None

    def _images(self, inputs):
        """One thread reads the next image, one writes, this one computes."""
        waiting = []
        with (ThreadPoolExecutor(1) as writer,
              contextlib.closing(prefetch(lambda each: each.read(
                  self.max_pixels), inputs)) as images):
            try:
                begun = time.perf_counter()
                for each, read in images:
                    if self._skipped(each):
                        continue
                    with self.tally.reporting(each.name):
                        image = read()
                        label, record = self.segmenter.segment(
                            each.name, image)
                        self.tally.times.append(
                            time.perf_counter() - begun)
                        waiting.append((each, writer.submit(
                            self._write, each, image, label, record)))
                    begun = time.perf_counter()
                    if len(waiting) > MAX_WAITING:
                        self._written(*waiting.pop(0))
            finally:
                for each, future in waiting:
                    self._written(each, future)

    def _skipped(self, each):
        """Return whether another run has brought the results meanwhile."""
        if not self.skip_existing or not all(
                path.exists() for path in self.outputs[each].values()):
            return False
        self.tally.say(f'{each.name}: skipped, another run has written its '
                       'results', sys.stderr)
        self.tally.done()
        return True

    def _written(self, each, future):
        with self.tally.reporting(each.name):
            future.result()
            self.tally.done()

    def _write(self, each, image, label, record):
        for kind, path in self.outputs[each].items():
            write_image(path, self._drawn(kind, image, label))
            self.tally.say(path)
        if self.page is not None:
            self.page.add(each, image, label)
        self._record(each, record)

    def _record(self, each, record):
        if self.records is not None:
            self.records.setdefault(each, []).append(record)

    def _drawn(self, kind, image, label, **options):
        it = self.segmenter
        return draw(kind, image, label, it.names, it.colors, it.class_filter,
                    self.opacity, **options)

    # Videos

    def _videos(self, inputs):
        for each in inputs:
            if self._skipped(each):
                continue
            with self.tally.reporting(each.name):
                self._video(each)
                self.tally.done()

    def _video(self, each):
        from tqdm import tqdm
        paths = self.outputs[each]
        with open_video(each.path, self.max_pixels) as video:
            with (self._writers(paths, video) as writers,
                  tqdm(total=video.n_frames or None, unit='frame',
                       leave=False, disable=None) as bar):
                self._frames(each, video, writers, bar)
            self._tell(each, video)
        for path in paths.values():
            self.tally.say(path)

    @contextlib.contextmanager
    def _writers(self, paths, video):
        """Open what a video's results are written with: kind -> writer."""
        try:
            with contextlib.ExitStack() as stack:
                yield {kind: stack.enter_context(
                    (_folder if kind == 'indexed' else writing)(path, video))
                    for kind, path in paths.items()}
        except BaseException:
            parts = [part_path(path) for path in paths.values()
                     if part_path(path).exists()]
            if parts:
                self.tally.say(f'{video.name}: what was done is in '
                               f'{shortened(parts)}', sys.stderr)
            raise

    def _frames(self, each, video, writers, bar):
        """One thread reads frames, one draws and writes, this one computes."""
        waiting = []
        with (ThreadPoolExecutor(1) as thread,
              contextlib.closing(prefetch(
                  lambda part: None, video.parts())) as parts):
            try:
                begun = time.perf_counter()
                for part, _ in parts:
                    if isinstance(part, Frame):
                        label, record = self.segmenter.segment(
                            each.name, part.image)
                        record['time'] = float(part.time * video.time_base)
                        self._record(each, record)
                        waiting.append(thread.submit(
                            self._write_frame, writers, part, label))
                        self.tally.times.append(time.perf_counter() - begun)
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

    def _tell(self, each, video):
        """Name what the results do not have."""
        losses = list(dict.fromkeys(video.losses))
        films = self.outputs[each].keys() - {'indexed'}
        if video.sounds and self.outputs[each] and not films:
            losses.append('the sound is dropped: images have none')
        if video.n_damaged:
            losses.append(f'{video.n_damaged} frames could not be read, or '
                          'have another size than the first')
        for line in losses:
            self.tally.say(f'{each.name}: {line}', sys.stderr)
        if self.page is not None:
            self.page.note(each, f'{each.name} is a video, of which this page '
                           'shows nothing.')


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
def _folder(path, video):
    """Give what writes into a folder; the folder has its name when it is whole.
    """
    path, part = pathlib.Path(os.path.realpath(path)), part_path(path)
    remove_frames(part)
    part.mkdir(parents=True)
    try:
        yield _Pictures(part)
    finally:
        is_empty = not any(part.iterdir())
        if is_empty:
            part.rmdir()
    if is_empty:
        raise InputError(f'{video.name}: the video has no frame')
    remove_frames(path)
    os.replace(part, path)


def prefetch(read, items):
    """Call `read` on items in a thread, one item ahead; so is `items` taken.

    Yield (item, callable): the callable returns what `read` returned, or
    raises what it raised. What `items` raises is raised. Once the generator is
    closed (`contextlib.closing`), the thread reads no more; only where it
    waits, for a slow address say, it is left behind, and ends with the program.
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
