"""HTML pages that need no network: templates, and images inside the page."""
import base64
import io
import pathlib


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
