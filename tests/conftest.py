"""Fixtures shared by the tests; the expensive ones are made once."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixture_graph import FixtureGraph
from fixture_weights import palette_weights, random_weights, write_palette_graph

import models  # before Chainer is imported
from convert.conversion import check, write
from convert.sources import open_source
from media.images import read_image
from models.classes import label_colors
from models.constants import DATASETS
from models.utils.files import atomic_path

ROOT = Path(__file__).parents[1]
for variable in 'DISPLAY', 'WAYLAND_DISPLAY':  # no windows on a desktop
    os.environ.pop(variable, None)
CROP = 513, 513


def n_outputs(dataset):
    known = DATASETS[dataset]
    return known['n_class'] + known['background_offset']


def convert(source, dataset, target):
    """Convert as tf2npz.py does, in this process."""
    conversion = check(open_source(source), dataset)
    with atomic_path(target) as temporary:
        write(conversion, temporary)
    return conversion


@pytest.fixture(scope='session')
def random_graphs(tmp_path_factory):
    """Return a function (task, output stride, era) -> (.pb, .npz)."""
    folder, made = tmp_path_factory.mktemp('random'), {}

    def get(task, output_stride=8, era=2018):
        key = task, output_stride, era
        if key not in made:
            n_output = n_outputs(task)
            graph = FixtureGraph(random_weights(n_output), n_output, CROP,
                                 output_stride, era).graph
            pb = folder / f'{task}{output_stride}{era}.pb'
            pb.write_bytes(graph.SerializeToString())
            npz = pb.with_suffix('.npz')
            convert(pb, task, npz)
            made[key] = pb, npz
        return made[key]

    return get


@pytest.fixture(scope='session')
def palette_graphs(tmp_path_factory):
    """Return a function (task) -> (.pb, .npz)."""
    folder, made = tmp_path_factory.mktemp('palette'), {}

    def get(task):
        if task not in made:
            pb = folder / f'{task}.pb'
            write_palette_graph(pb, task, CROP)
            convert(pb, task, pb.with_suffix('.npz'))
            made[task] = pb, pb.with_suffix('.npz')
        return made[task]

    return get


@pytest.fixture(scope='session')
def skeleton():
    """A graph with one value for all in each weight: 1 MB, quickly read."""
    graph = FixtureGraph(palette_weights(label_colors('voc')), 21, CROP).graph
    for node in graph.node:
        tensor = node.attr['value'].tensor
        if len(tensor.tensor_content) > 1000:
            tensor.tensor_content = b''
            tensor.float_val.append(0.5)
    return graph.SerializeToString()


def start_script(script, *args, **options):
    """Start a script that heeds SIGINT even where the tests ignore it, as in
    the background; its stderr is text in a pipe.
    """
    return subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, args)], text=True,
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
    what it must come to for a picture.
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
