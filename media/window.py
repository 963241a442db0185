"""Show results in windows."""
import os
import signal
import sys
import time

from media.batch import Outcome
from media.visualization import figure
from models.utils.errors import ENDING_SIGNALS, InputError, describe

SIZE = 1280, 720  # width, height in pixels at most
DPI = 100


def has_display():
    """Return whether a window can be opened."""
    if sys.platform == 'linux' and not (
            os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        return False
    from matplotlib import pyplot as plt
    canvas = plt.figure().canvas
    plt.close()
    return canvas.required_interactive_framework is not None


def show_results(segmenter, inputs, style, max_pixels):
    """Open a window for each image, one after another; yield its `Outcome`.

    From here on, Ctrl-C ends the program at once: a window would heed no
    KeyboardInterrupt, and nothing is written that needs tidying up.
    """
    for number in signal.SIGINT, *ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    from matplotlib import pyplot as plt
    for each in inputs:
        begun = time.perf_counter()
        try:
            if each.is_video:
                raise InputError(f'{each.name} is a video: give --output')
            image = each.read(max_pixels)
            label, _, notes = segmenter.segment(image)
            seconds = time.perf_counter() - begun
            page = figure(image, label, style)
            scale = min(1, *(most / side for most, side in zip(
                SIZE, page.size, strict=True))) / DPI
            window = plt.figure(each.name, dpi=DPI, figsize=(
                page.width * scale, page.height * scale))
            window.add_axes((0, 0, 1, 1)).imshow(page)
            window.axes[0].set_axis_off()
            plt.show()  # until it is closed
            yield Outcome(each, seconds=[seconds], notes=notes)
        except Exception as error:  # one bad input never ends a run
            yield Outcome(each, error=describe(error, each.name))
