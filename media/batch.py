"""Segment many inputs: reading, computing and writing overlap."""
import time
from concurrent.futures import ThreadPoolExecutor

from media.outputs import write_image
from media.prefetch import prefetch
from media.video import open_video, write_video
from media.visualization import draw, overlay
from models.utils.errors import InputError

MAX_WAITING = 2  # results that are computed and not yet written


class Batch:
    """Writes the results of inputs; one failure does not stop the others.

    Args:
        segmenter (Segmenter): its tally counts.
        outputs (dict): see `outputs.plan_outputs`.
        page (ResultsPage): to add results to; or None.
        opacity (float): of overlays, 0 to 1.
        max_pixels (int): larger images are refused.

    Attributes:
        records (list of dict): of the images, see `Segmenter.segment`.
    """

    def __init__(self, segmenter, outputs, page, opacity, max_pixels):
        self.segmenter, self.tally = segmenter, segmenter.tally
        self.outputs, self.page, self.opacity = outputs, page, opacity
        self.max_pixels = max_pixels
        self.records = []

    def run(self):
        """Write the results of all inputs: the images, then the videos."""
        from tqdm import tqdm
        videos = [each for each in self.outputs if each.is_video]
        images = [each for each in self.outputs if not each.is_video]
        with tqdm(total=len(self.outputs), unit='input', disable=None if len(
                self.outputs) > 1 else True) as self.tally.bar:
            self._images(images)
            for each in videos:
                with self.tally.reporting(each.name):
                    self._video(each)
                    self.tally.done()
        self.tally.bar = None

    def _images(self, inputs):
        """One thread reads the next image, one writes, this one computes."""
        waiting = []
        with ThreadPoolExecutor(1) as writer:
            try:
                begun = time.perf_counter()
                for each, read in prefetch(
                        lambda each: each.read(self.max_pixels), inputs):
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

    def _written(self, each, future):
        with self.tally.reporting(each.name):
            future.result()
            self.tally.done()

    def _write(self, each, image, label, record):
        it = self.segmenter
        for kind, path in self.outputs[each].items():
            write_image(path, draw(kind, image, label, it.names, it.colors,
                                   it.class_filter, self.opacity))
            self.tally.say(path)
        if self.page is not None:
            self.page.add(each.name, image, label)
        self.records.append(record)

    def _video(self, each):
        """Write a video with the colours of the classes over it."""
        from tqdm import tqdm
        path = self.outputs[each].get('overlay')
        if path is None:
            raise InputError(f'{each.name} is a video, which --json and --html '
                             'cannot show')
        with (open_video(each.path) as (rate, n_frames, frames),
              tqdm(total=n_frames or None, unit='frame', leave=False,
                   disable=None) as bar):
            write_video(path, rate, (
                self._frame(each.name, image(), bar)
                for _, image in prefetch(lambda frame: frame, frames)))
        self.tally.say(path)

    def _frame(self, name, image, bar):
        it = self.segmenter
        begun = time.perf_counter()
        label, _ = it.segment(name, image)
        painted = overlay(image, label, it.colors, self.opacity,
                          it.class_filter)
        self.tally.times.append(time.perf_counter() - begun)
        bar.update()
        return painted
