"""One page with all results, to look at in a browser; it needs no network."""
import base64
import io
import os
import pathlib
import tempfile

from media.images import to_pillow
from media.visualization import indexed, shares
from models.utils.files import atomic_path

SIDE = 1024  # pixels at most of an image on the page
QUALITY = 88  # of its JPEG
TEMPLATE = pathlib.Path(__file__).with_name('results.html')


class ResultsPage:
    """Collects results, and writes the page of them.

    Args:
        path (str or pathlib.Path): of the page.
        order (list): the inputs (`inputs.Input`), in the order of the page.
        names, colors, class_filter: see `visualization`.
    """

    def __init__(self, path, order, names, colors, class_filter):
        self.path, self.names, self.colors = path, list(names), colors
        self.class_filter = class_filter
        self._place = {each: i for i, each in enumerate(order)}
        self._template = load_template(TEMPLATE).module
        self._pieces = []  # (place on the page, first byte, bytes)
        folder = pathlib.Path(path).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(  # noqa: SIM115  (it is kept)
                dir=folder)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from None

    def note(self, each, text):
        """Add a line of text in the place of an input."""
        self._append(self._place[each], self._template.note(text))

    def add(self, each, image, label):
        """Add an input's image (3, H, W) and label (H, W)."""
        from PIL import Image
        scale = min(1, SIDE / max(label.shape))
        size = [max(1, round(side * scale)) for side in label.shape[::-1]]
        classes = indexed(label, self.colors, self.class_filter)
        classes = Image.frombytes('L', classes.size, classes.tobytes())
        present = shares(label, self.names, self.class_filter)
        self._append(self._place[each], self._template.result(
            each.name, size,
            data_url(to_pillow(image).resize(size), 'JPEG', quality=QUALITY),
            data_url(classes.resize(size, Image.Resampling.NEAREST)),
            [(self.names.index(name), name, share)
             for name, share in present.items()], self.colors.tolist()))

    def write(self):
        """Write the page; the file appears whole."""
        with (self._file, atomic_path(self.path) as temporary,
              open(temporary, 'wb') as file):
            file.write(self._template.head().encode())
            for i in sorted(range(len(self._pieces)),
                            key=lambda i: self._pieces[i]):
                file.write(self._read(i))
            file.write(self._template.tail(self.colors.tolist()).encode())

    def _append(self, place, text):
        data = text.encode(errors='replace')
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        self._pieces.append((place, start, len(data)))

    def _read(self, i):
        _, start, size = self._pieces[i]
        self._file.seek(start)
        return self._file.read(size)


def load_template(path):
    """Return a jinja2.Template; what it inserts is escaped."""
    import jinja2

    from media.visualization import percent
    environment = jinja2.Environment(autoescape=True)
    environment.filters['percent'] = percent
    return environment.from_string(
        pathlib.Path(path).read_text(encoding='utf-8'))


def data_url(image, kind='PNG', **options):
    """Return a PIL.Image.Image as the address of an image in a page."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    data = base64.b64encode(file.getvalue()).decode()
    return f'data:image/{kind.lower()};base64,{data}'
