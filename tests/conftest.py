"""Fixtures shared by the tests; the expensive ones are made once."""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from fixture_graph import FixtureGraph
from fixture_host import Host
from fixture_weights import (
    convert,
    palette_weights,
    write_palette_graph,
    write_random_graph,
)
from tensorboard.compat.proto.types_pb2 import DT_FLOAT

import models  # before Chainer is imported
from media.images import read_image
from models.classes import label_colors
from models.utils import download

ROOT = Path(__file__).parents[1]
for variable in 'DISPLAY', 'WAYLAND_DISPLAY':  # no windows on a desktop
    os.environ.pop(variable, None)
os.environ['ORT_DISABLE_TELEMETRY'] = '1'  # of ONNX Runtime
linux_only = pytest.mark.skipif(sys.platform != 'linux', reason='needs Linux')
CROP = 513, 513
SMALL = 129, 129
needs_tensorflow = pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason='TensorFlow has no wheel for Python 3.14')


@pytest.fixture(scope='session')
def graphs(tmp_path_factory, worker_id):
    """Return a function (name, dataset, write_graph) -> (.pb, .npz).

    `write_graph` is called with the path of the .pb file if it is missing; the
    workers of pytest-xdist share the files.
    """
    folder = tmp_path_factory.getbasetemp()
    if worker_id != 'master':
        folder = folder.parent

    def get(name, dataset, write_graph):
        pb, npz = folder / f'{name}.pb', folder / f'{name}.npz'
        with FileLock(folder / f'{name}.lock'):
            if not npz.exists():
                write_graph(pb)
                convert(pb, dataset, npz)
        return pb, npz

    return get


@pytest.fixture(scope='session')
def random_graphs(graphs):
    """Return a function (dataset, output stride, era, crop) -> (.pb, .npz)."""

    def get(dataset, output_stride=8, era=2018, crop=CROP):
        return graphs(
            f'random_{dataset}_{output_stride}_{era}_{crop[0]}', dataset,
            lambda pb: write_random_graph(pb, dataset, crop, era=era,
                                          output_stride=output_stride))

    return get


@pytest.fixture(scope='session')
def palette_graphs(graphs):
    """Return a function (dataset, crop) -> (.pb, .npz)."""
    return lambda dataset, crop=CROP: graphs(
        f'palette_{dataset}_{crop[0]}', dataset,
        lambda pb: write_palette_graph(pb, dataset, crop))


def thinned(graph):
    """Give each large constant of a graph one value for all: 1 MB."""
    for node in graph.node:
        tensor = node.attr['value'].tensor
        if len(tensor.tensor_content) > 1000:
            tensor.tensor_content = b''
            (tensor.float_val if tensor.dtype == DT_FLOAT else
             tensor.int_val).append(1)
    return graph


@pytest.fixture(scope='session')
def skeleton():
    """A small graph, quick to read."""
    return thinned(FixtureGraph(palette_weights(label_colors(
        'voc')), 21, CROP).graph).SerializeToString()


def start_script(script, *args, before=(), **options):
    """Start a script, behind the words of `before` if any; its stderr is text
    in a pipe. It heeds SIGINT even if the tests, in the background, ignore it.
    """
    return subprocess.Popen(
        [*before, sys.executable, ROOT / script, *map(str, args)], text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options,
        preexec_fn=lambda: signal.signal(  # noqa: PLW1509  (no threads here)
            signal.SIGINT, signal.SIG_DFL))


@pytest.fixture
def run_script(tmp_path):
    """Return a function that runs a script in an empty folder.

    Keyword arguments are environment variables.
    """
    folder = tmp_path / 'work folder'
    folder.mkdir()

    def run(script, *args, **variables):
        return subprocess.run(
            [sys.executable, ROOT / script, *map(str, args)], cwd=folder,
            env={**os.environ, **variables}, capture_output=True, text=True,
            errors='surrogateescape', timeout=300, check=False)

    run.folder = folder
    return run


@pytest.fixture
def demo(palette_graphs, run_script):
    """Return a function that runs the demo with the stand-in; and `predict`,
    what it must come to for an image.
    """
    _, npz = palette_graphs('cityscapes')

    def run(*arguments, **variables):
        return run_script('demo.py', *arguments, '--pretrained-model', npz,
                          '--input-size', 65, **variables)

    def predict(path):
        link = models.DeepLabV3plusXception65(pretrained_model=npz,
                                              min_input_size=65)
        return link.predict([read_image(path)])[0]

    run.folder, run.npz, run.predict = run_script.folder, npz, predict
    return run


@pytest.fixture(scope='session')
def browse():
    """Return a function that opens a page, with a script, in Chromium; it
    returns the page's title afterwards.
    """
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    if chromium is None:
        pytest.skip('needs Chromium')

    def title(path, script, width):
        page = path.with_name(f'with script {path.name}')
        page.write_text(path.read_text() + script)
        dom = subprocess.run(
            [chromium, '--headless', '--no-sandbox', '--disable-gpu',
             f'--window-size={width},800', '--virtual-time-budget=99999',
             '--dump-dom', page.as_uri()],
            capture_output=True, text=True, check=True, timeout=60).stdout
        page.unlink()
        return dom.partition('<title>')[2].partition('</title>')[0]

    return title


@pytest.fixture
def fails(run_script):
    """Return a function: the script ends with one line that has `words`."""

    def check(words, script, *args):
        result = run_script(script, *args)
        assert result.returncode != 0
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        assert words in lines[0]
        assert not list(run_script.folder.iterdir())  # nothing half-written

    check.folder = run_script.folder
    return check


@pytest.fixture
def host(monkeypatch):
    """A server on loopback, with short waits for it."""
    monkeypatch.setattr(download, 'TIMEOUT', 0.5)
    monkeypatch.setattr(download, 'BACKOFF', 0.01)
    host = Host()
    yield host
    host.stop()
