"""One page with all results, to look at in a browser; it needs no network."""
import contextlib
import pathlib

from media.images import to_pillow
from media.page import data_url, load_template
from media.visualization import indexed, shares
from models.utils.files import atomic_path

SIDE = 1024  # pixels at most of an image on the page
TEMPLATE = pathlib.Path(__file__).with_name('results.html')


class ResultsPage:
    """A page that grows with each result; its file appears at the end."""

    def __init__(self, path, names, colors, class_filter):
        self.path, self.names, self.colors = path, list(names), colors
        self.class_filter = class_filter

    def __enter__(self):
        self._parts = load_template(TEMPLATE).module
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._file = stack.enter_context(
                open(temporary, 'w', encoding='utf-8', errors='replace'))
            self._file.write(self._parts.head())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._file.write(self._parts.tail(self.colors.tolist()))
        return self._stack.__exit__(*error)

    def note(self, text):
        """Add a line of text."""
        self._file.write(self._parts.note(text))

    def add(self, name, image, label):
        """Add a result: its name, image (3, H, W) and label (H, W)."""
        from PIL import Image
        scale = min(1, SIDE / max(label.shape))
        size = [max(1, round(side * scale)) for side in label.shape[::-1]]
        classes = indexed(label, self.colors, self.class_filter)
        classes = Image.frombytes('L', classes.size, classes.tobytes())
        present = shares(label, self.names, self.class_filter)
        self._file.write(self._parts.result(
            name, size,
            data_url(to_pillow(image).resize(size), 'JPEG', quality=88),
            data_url(classes.resize(size, Image.Resampling.NEAREST)),
            [(self.names.index(each), each, share)
             for each, share in present.items()], self.colors.tolist()))
