"""One page with all results, to look at in a browser; it needs no network."""
import base64
import contextlib
import html
import io
import json
import pathlib

from media import visualization
from models.utils.files import atomic_path

SIDE = 1024  # pixels, of the pictures on the page at most
HERE = pathlib.Path(__file__).parent


class ResultsPage:
    """A page that grows with each result and appears when it is closed.

    Args:
        path (str or pathlib.Path): the HTML file.
        names (sequence of str): name of each class.
        colors (numpy.ndarray, (n_class, 3), uint8): the palette.
        shown (collection of int): only these classes; None: all.

    """

    def __init__(self, path, names, colors, shown):
        self.names, self.colors, self.shown = names, colors, shown
        self._stack = contextlib.ExitStack()
        self._whole = atomic_path(path)

    def __enter__(self):
        temporary = self._stack.enter_context(self._whole)
        self._file = self._stack.enter_context(
            open(temporary, 'w', encoding='utf-8', errors='replace'))
        page = (HERE / 'results.html').read_text(encoding='utf-8').replace(
            '[/* palette */]', json.dumps(self.colors.tolist()))
        head, self._tail = page.split('<!-- results -->')
        self._file.write(head)
        return self

    def __exit__(self, *error):
        self._file.write(self._tail)
        return self._stack.__exit__(*error)

    def add(self, name, image, label):
        """Add a result: its name, image (3, H, W) and label (H, W)."""
        from PIL import Image
        size = label.shape[::-1]
        scale = min(1, SIDE / max(size))
        size = [max(1, round(side * scale)) for side in size]
        photograph = Image.fromarray(image.transpose(1, 2, 0).astype('uint8'))
        classes = visualization.indexed(label, self.colors, self.shown)
        classes = Image.frombytes('L', classes.size, classes.tobytes())
        shares = visualization.shares(label, self.names, self.shown)
        self._file.write(f'''
<figure>
<figcaption>{html.escape(name)}</figcaption>
<div class=stage style="--ratio: {size[0] / size[1]:.6f}">
<img class=photograph alt="photograph" src="{_url(
            photograph.resize(size), 'JPEG', quality=88)}">
<img class=classes alt="" hidden src="{_url(
            classes.resize(size, Image.Resampling.NEAREST), 'PNG')}">
<canvas role=img aria-label="segmentation" width={size[0]} height={size[1]}>
</canvas></div>
<label class=slider>photograph
<input type=range min=0 max=100 value=50 aria-label="how much is segmented">
segmentation</label>
<div class=legend>{''.join(self._bar(*each) for each in shares.items())}</div>
</figure>
''')

    def _bar(self, name, share):
        k = list(self.names).index(name)
        color = ', '.join(map(str, self.colors[k]))
        return (f'<button aria-pressed=true data-class={k} style="--color: '
                f'rgb({color}); --share: {100 * share:.2f}%"><span>'
                f'{html.escape(name)}</span> '
                f'{html.escape(visualization.percent(share))}</button>')


def _url(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    data = base64.b64encode(file.getvalue()).decode()
    return f'data:image/{kind.lower()};base64,{data}'
