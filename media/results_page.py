"""One page with all results, to look at in a browser; it needs no network."""
import base64
import io
import pathlib
import shutil
import tempfile

import numpy as np
from PIL import Image

from media.images import to_pillow
from media.segmentation import shrunk
from media.visualization import indexed, percent, shares
from models.utils.files import atomic_path

SIDE = 1024  # pixels at most of an image on the page
QUALITY = 88  # of its JPEG
TEMPLATE = pathlib.Path(__file__).with_name('results.html')


class ResultsPage:
    """Collects results, and writes the page of them.

    Args:
        path (str or pathlib.Path): of the page.
        inputs (list of Input): all that a run segments.
        style (Style): how classes are drawn.
    """

    def __init__(self, path, inputs, style):
        self._path, self._style = pathlib.Path(path), style
        self._template = load_template(TEMPLATE).module
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(  # noqa: SIM115  (it is kept)
            'w+', encoding='utf-8', errors='replace', dir=self._path.parent)
        self._file.write(self._template.head(
            [each.name for each in inputs if each.is_video]))

    def add(self, each, image, label):
        """Add an input's image (3, H, W) and label (H, W)."""
        names, colors, class_filter, _ = self._style
        small = to_pillow(shrunk(image, SIDE))
        classes = Image.fromarray(np.asarray(  # as grey
            indexed(label, colors, class_filter)))
        self._file.write(self._template.result(
            each.name, small.size, data_url(small, 'JPEG', quality=QUALITY),
            data_url(classes.resize(small.size, Image.Resampling.NEAREST)),
            [(names.index(name), name, share) for name, share in shares(
                label, names, class_filter).items()], colors))

    def write(self):
        """Write the page; the file appears whole."""
        self._file.write(self._template.tail(self._style.colors.tolist()))
        self._file.seek(0)
        with (self._file, atomic_path(self._path) as temporary,
              open(temporary, 'w', encoding='utf-8') as file):
            shutil.copyfileobj(self._file, file)


def load_template(path):
    """Return a jinja2.Template; what it inserts is escaped."""
    import jinja2
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
