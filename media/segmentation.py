"""Read, segment and write, overlapping, one input after another."""
import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from media import visualization
from media.outputs import draw, write_picture
from media.prefetch import read_ahead
from media.tiling import predict_within
from models.utils.errors import InputError, describe_os_error
from models.utils.memory import available_memory

WINDOW = 1280, 720  # width, height in pixels at most
REASONS = (InputError, OSError, MemoryError)  # why one input may fail


class Segmenter:
    """Segments inputs; what goes wrong with one does not stop the others.

    Args:
        model (DeepLabV3plusXception65): the network.
        names, colors: of the classes, see `datasets.labels_of`.
        shown (set of int): only these classes; None: all.
        outputs (Outputs): where results go; None for `show`.
        page (ResultsPage): to add them to; or None.
        args (argparse.Namespace): of demo.py.
        tally (Tally): of demo.py.

    Attributes:
        results (list of dict): what is known of each picture.
        times (list of float): seconds from one picture to the next.

    """

    def __init__(self, model, names, colors, shown, outputs, page, args,
                 tally):
        self.model, self.names, self.colors = model, names, colors
        self.shown, self.outputs, self.page = shown, outputs, page
        self.args, self.tally = args, tally
        self.results, self.times = [], []

    def run(self, inputs):
        """Write the results of all inputs."""
        from tqdm import tqdm
        videos = [each for each in inputs if each.is_video]
        pictures = [each for each in inputs if not each.is_video]
        with tqdm(total=len(inputs), disable=None if len(inputs) > 1 else True,
                  unit='input') as self.tally.bar:
            self._pictures(pictures)
            for each in videos:
                with self._reported(each):
                    self._video(each)
                    self._done()
        self.tally.bar = None

    def _pictures(self, inputs):
        """One thread reads ahead, one writes, this one computes."""
        writing = []
        with ThreadPoolExecutor(1) as writer:
            try:
                begun = time.perf_counter()
                for each, read in read_ahead(
                        lambda each: each.read(self.args.max_pixels), inputs):
                    with self._reported(each):
                        image = read()
                        label, result = self.segment(each.name, image)
                        self.times.append(time.perf_counter() - begun)
                        writing.append((each, writer.submit(
                            self._write, each, image, label, result)))
                    begun = time.perf_counter()
                    if len(writing) > 2:
                        self._written(*writing.pop(0))
            finally:
                for each, future in writing:
                    self._written(each, future)

    def _written(self, each, future):
        with self._reported(each):
            future.result()
            self._done()

    def _done(self):
        self.tally.n_done += 1
        if self.tally.bar is not None:
            self.tally.bar.update()

    @contextlib.contextmanager
    def _reported(self, each):
        """Say why an input fails, and go on."""
        try:
            yield
        except REASONS as error:
            reason = (describe_os_error(error) if isinstance(error, OSError)
                      else error)
            named = each.name in str(reason)
            self.tally.failed(reason if named else f'{each.name}: {reason}')
            if self.tally.bar is not None:
                self.tally.bar.update()

    def segment(self, name, image):
        """Return the label map (H, W), int32, and what is known of it."""
        begun = time.perf_counter()
        small = shrunk(image, self.args.max_size)
        memory = (available_memory() if self.args.memory is None
                  else self.args.memory * 1e9)
        label, n_tiles = predict_within(self.model, small, memory)
        if n_tiles > 1:
            self.tally.say(
                f'{name}: in {n_tiles} overlapping tiles, as the whole needs '
                'more memory', sys.stderr)
        label = enlarged(label, image.shape[1:])
        return label, {
            'name': name, 'height': image.shape[1], 'width': image.shape[2],
            'tiles': n_tiles, 'seconds': time.perf_counter() - begun,
            'shares': visualization.shares(label, self.names, self.shown)}

    def _write(self, each, image, label, result):
        for kind, path in self.outputs.paths[each].items():
            write_picture(path, draw(
                kind, image, label, self.names, self.colors, self.shown,
                self.args.opacity))
            self.tally.say(path)
        if self.page is not None:
            self.page.add(each.name, image, label)
        self.results.append(result)

    def _video(self, each):
        """Write a video with the colours over it."""
        from tqdm import tqdm

        from media.video import open_video, write_video
        path = self.outputs.paths[each].get('overlay')
        if path is None:
            raise InputError(f'{each.name} is a video, for which --json and '
                             '--html have no place')
        with (open_video(each.path) as (rate, n_frames, frames),
              tqdm(total=n_frames or None, unit='frame', leave=False,
                   disable=None) as bar):
            read = read_ahead(lambda frame: frame, frames)
            write_video(path, rate, (
                self._frame(each, image(), bar) for _, image in read))
        self.tally.say(path)

    def _frame(self, each, image, bar):
        begun = time.perf_counter()
        label, _ = self.segment(each.name, image)
        painted = visualization.overlay(
            image, label, self.colors, self.args.opacity, self.shown)
        self.times.append(time.perf_counter() - begun)
        bar.update()
        return painted

    def show(self, inputs):
        """Open a window for each picture, one after another."""
        from matplotlib import pyplot as plt
        for each in inputs:
            with self._reported(each):
                if each.is_video:
                    raise InputError(f'{each.name} is a video: give --output')
                begun = time.perf_counter()
                image = each.read(self.args.max_pixels)
                label, result = self.segment(each.name, image)
                self.times.append(time.perf_counter() - begun)
                self.results.append(result)
                page = visualization.figure(image, label, self.names,
                                            self.colors, self.shown)
                scale = min(1, *(most / side for most, side in zip(
                    WINDOW, page.size, strict=True)))
                figure = plt.figure(each.name, dpi=100, figsize=(
                    page.width * scale / 100, page.height * scale / 100))
                figure.add_axes((0, 0, 1, 1)).imshow(page)
                figure.axes[0].set_axis_off()
                plt.show(block=False)
                # With show's own waiting, Ctrl-C has to wait for the mouse.
                while plt.fignum_exists(figure.number):
                    figure.canvas.start_event_loop(0.1)
                self._done()


def shrunk(image, max_size):
    """Return an image (3, H, W) with its longer side at most max_size."""
    from PIL import Image
    height, width = image.shape[1:]
    if max_size is None or max(height, width) <= max_size:
        return image
    scale = max_size / max(height, width)
    size = [max(1, round(side * scale)) for side in (width, height)]
    picture = Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8))
    pixels = np.asarray(picture.resize(size))
    return pixels.transpose(2, 0, 1).astype(np.float32)


def enlarged(label, size):
    """Return a label map at a size (H, W), by the nearest place."""
    rows, columns = (
        ((np.arange(wanted) + 0.5) * side / wanted).astype(int)
        for wanted, side in zip(size, label.shape, strict=True))
    return label if label.shape == tuple(size) else label[
        rows[:, np.newaxis], columns]
