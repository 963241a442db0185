"""What a run will write is compared before it writes."""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, start_script
from fixture_images import write_film, write_image
from PIL import Image

from media.inputs import find_inputs
from media.outputs import (
    DEFAULT,
    MARK,
    REFUSE,
    REPLACE,
    SKIP,
    check_frames,
    plan_outputs,
)
from media.outputs import write_image as write_result
from models.utils.errors import InputError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(arguments, kinds=DEFAULT, output=None, existing=REPLACE, **others):
    inputs, problems, _ = find_inputs(list(map(str, arguments)))
    assert problems == []
    return plan_outputs(kinds, output, inputs, existing, **others)


def touch(*names):
    for name in names:
        if os.path.dirname(name):
            os.makedirs(os.path.dirname(name), exist_ok=True)
        open(name, 'w').close()


def test_two_that_would_write_the_same(here):
    touch('a.png', 'a.jpg', 'c.png')
    found = plan(['.'], ['figure'], '.')
    assert not found.results
    assert found.problems == [
        'a.jpg: a.png would overwrite the input a.png: name another',
        'a.png: a.png would overwrite the input a.png: name another',
        'c.png: c.png would overwrite the input c.png: name another']
    found = plan(['.'], ['figure'], 'out')
    assert len(found.results) == 2
    assert found.problems == [
        'a.png and a.jpg would both be written to out/a.png']
    with pytest.raises(InputError, match='several results: name a folder'):
        plan(['a.png', 'c.png'], ['figure'], 'out.png')
    with pytest.raises(InputError, match='must end in one of'):
        plan(['a.png'], ['indexed'], 'out.jpg')


@pytest.mark.parametrize('existing', [REFUSE, REPLACE])
@pytest.mark.parametrize(('documents', 'words'), [
    ({'--json': 'in.png'}, '--json: in.png would overwrite the input in.png'),
    ({'--html': 'link.png'}, '--html: link.png would overwrite the input in.'),
    ({'--html': 'hard.png'}, '--html: hard.png would overwrite the input in.'),
    ({'--json': 'model.npz'}, 'would overwrite the input the model'),
    ({'--json': 'r.png'}, '--json and in.png would both be written to r.png'),
    ({'--json': 'h', '--html': './h'}, '--html and --json would both be writ'),
    ({'--json': 'folder'}, 'folder: is a folder, not a file'),
    ({'--json': 'in.png/a'}, '--json: in.png is a file, not a folder'),
    ({'--json': 'pipe'}, 'pipe: is no regular file'),
])
def test_documents(here, existing, documents, words):
    touch('in.png', 'model.npz')
    os.symlink('in.png', 'link.png')
    os.link('in.png', 'hard.png')
    os.mkdir('folder')
    os.mkfifo('pipe')
    with pytest.raises((InputError, OSError)) as caught:
        plan(['in.png'], ['figure'], 'r.png', existing, documents=documents,
             sources=['model.npz'])
    error = caught.value
    assert words in (f'{error.filename}: {error.strerror}' if isinstance(
        error, OSError) else str(error))


def test_documents_that_exist(here):
    touch('in.png', 'a.json')
    with pytest.raises(InputError, match=r'a\.json exists: give --force'):
        plan(['in.png'], existing=REFUSE, documents={'--json': 'a.json'})
    assert plan(['in.png'], documents={'--json': 'a.json'}).results


def test_results_that_exist(here):
    touch('a.png', 'b.mp4', 'c.mp4', 'a_overlay.png', 'b_overlay.mp4',
          'c_overlay.part.mp4')
    names = ['a.png', 'b.mp4', 'c.mp4']
    found = plan(names, ['overlay', 'color_map'], existing=REFUSE)
    assert found.results == {}
    assert found.problems[0] == ('a_overlay.png exists: give --force to '
                                 'overwrite it, or --skip-existing to skip it')
    assert found.problems[2] == ('c_overlay.part.mp4 exists: give --force to '
                                 'overwrite it')
    assert len(plan(names, ['overlay', 'color_map']).results) == 3
    found = plan(names, ['overlay', 'color_map'], existing=SKIP)
    assert found.problems == ['c_overlay.part.mp4 exists: give --force to '
                              'overwrite it']  # it may be anybody's
    found = plan(names, ['overlay'], '.', SKIP)
    assert len(found.problems) == 3  # each is its own result
    (here / 'c_overlay.part.mp4').write_bytes(MARK.encode())
    found = plan(names, ['overlay', 'color_map'], existing=SKIP)
    assert [list(paths) for paths in found.results.values()] == [
        ['color_map'], ['color_map'], ['overlay', 'color_map']]
    os.remove('a_overlay.png')
    os.mkfifo('a_overlay.png')
    found = plan(['a.png'], ['overlay', 'color_map'])
    assert found.problems == ['a_overlay.png: is no regular file: name another']


def write_frames(folder):
    """Write label maps as --indexed of a video does."""
    for i in range(3):
        write_result(folder / f'{i + 1:06}.png', Image.new('P', (9, 9)))


@pytest.mark.parametrize('other', [
    'notes.txt', '000004.jpg', 'folder/', '000004.png', 'link.png'])
def test_a_folder_that_is_not_ours(here, other):
    """A video's --indexed replaces its own frames, and nothing else."""
    touch('film.mp4')
    write_frames(here / 'film_indexed')
    write_frames(here / 'film_indexed.part')
    kinds = ['indexed', 'overlay']
    assert plan(['film.mp4'], kinds).problems == []
    path = here / 'film_indexed' / other
    if other.endswith('/'):
        path.mkdir()
    elif other == 'link.png':
        path.symlink_to(here / 'film.mp4')
    else:
        Image.new('P', (9, 9)).save(path, 'PNG')  # a user's own
    words = [f'film_indexed holds {path.name}, which --indexed did not write: '
             'name another folder']
    assert plan(['film.mp4'], kinds).problems == words
    shutil.rmtree(here / 'film_indexed.part')
    shutil.move(here / 'film_indexed', here / 'film_indexed.part')
    assert plan(['film.mp4'], kinds).problems == [
        words[0].replace('film_indexed', 'film_indexed.part', 1)]
    with pytest.raises(InputError, match='is a file, and --indexed of a video'):
        check_frames(here / 'film.mp4')


def test_a_folder_with_inputs(here):
    """Photos of a video, beside it; and numbered frames of their own name."""
    touch('film.mp4', 'film/000001.png')
    write_frames(here / 'frames')
    found = plan(['film.mp4', 'film'], ['indexed'], '.')
    assert 'film.mp4: film would overwrite the input film/00000' in (
        found.problems[0])
    found = plan(['frames/%06d.png'], ['indexed'], '.')
    assert found.problems == [
        'frames/%06d.png: frames would overwrite the input frames/%06d.png: '
        'name another']


def test_parts_are_taken_as_well(here):
    touch('film.mp4', 'film.part.mp4')
    found = plan(['film.mp4', 'film.part.mp4'], output='out')
    assert found.problems == ['film.part.mp4 and film.mp4 would both be '
                              'written to out/film.part.mp4']


def test_a_result_in_the_place_of_a_folder(here):
    touch('in/a.mp4', 'in/a/b.png')
    found = plan(['in'], ['indexed'], 'out')
    assert found.problems == ['in/a.mp4 and in/a/b.png would both be written '
                              'to out/a']
    found = plan(['in/a.mp4', 'in'], ['indexed'], 'out')
    assert found.problems == ['in/a/b.png and in/a.mp4 would both be written '
                              'to out/a/b.png']


def left_over(*arguments):
    return [each.name for each in find_inputs(arguments)[0]]


@pytest.mark.parametrize('ending', ['.png', '.jpg', '.webp', '.tif'])
def test_results_are_marked(here, ending):
    """In a folder they are no inputs, whatever they are called."""
    image = Image.new('RGB', (300, 200))
    write_result(here / f'in/a{ending}', image)
    image.save(f'in/b{ending}')
    assert left_over('in') == left_over(f'in/*{ending}') == [f'in/b{ending}']
    assert left_over(f'in/a{ending}') == [f'in/a{ending}']  # it was named


def test_a_way_over_a_folder_that_is_missing(here):
    touch('a.png', 'p/a.png', 'model.npz')
    for output in 'new/../p', 'new/../p/a.png':
        found = plan(['a.png'], ['figure'], output, REFUSE)
        assert 'exists: give --force to overwrite it' in found.problems[0]
    with pytest.raises(InputError, match='would overwrite the input'):
        plan(['a.png'], ['figure'], 'p', documents={
            '--json': 'new/../model.npz'}, sources=['model.npz'])


def test_the_owner_of_a_result_that_exists(here):
    touch('x.bmp', 'x.png', 'out/x.png')
    found = plan(['x.bmp', 'x.png'], ['figure'], 'out', SKIP)
    assert found.notes == ['skipped 1 with existing results']
    assert found.problems == [
        'x.png and x.bmp would both be written to out/x.png']


def test_only_what_is_written_is_looked_at(here):
    """Without images in files, --output does not matter; nor does a model of
    a name, or frames that are missing.
    """
    touch('a.png', 'voc/a.png')
    assert plan(['a.png'], [], documents={'--json': 'a.json'}).problems == []
    found = plan(['no/frame_%04d.png', 'a.png'], ['figure'], 'out')
    assert len(found.results) == 2


@pytest.mark.slow
def test_nothing_in_a_folder_is_lost(demo, here):
    """Digests of all files before and after each run that is refused."""
    photos = here / 'holiday_images'
    for seed in range(2):
        write_image(photos / f'{seed}.png', seed)
    write_film(here / 'film.mp4', [np.zeros((48, 64, 3), np.uint8)] * 2)
    (photos / 'notes.txt').write_text('mine')
    (here / 'film_indexed').mkdir()
    (here / 'film_indexed/notes.txt').write_text('mine')
    (here / 'film_indexed/000001.png').write_bytes(
        (photos / '0.png').read_bytes())

    def digest():
        return {path: path.read_bytes() for path in here.rglob('*')
                if path.is_file() and demo.folder not in path.parents}

    before = digest()
    for arguments in (
            [photos, '--json', photos / '0.png', '--force'],
            [photos, here / 'film.mp4', '--html', here / 'film.mp4', '--force'],
            [here / 'film.mp4', '--output', here, '--indexed', '--overlay',
             '--force'],
            [photos / '%d.png', '--output', photos / '0.png', '--force'],
            [photos / '0.png', '--output', 'r.png', '--json', 'r.png']):
        result = demo(*arguments)
        assert result.returncode == 1, arguments
        assert result.stderr.startswith('error: '), arguments
        assert digest() == before
        assert not list(demo.folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('output', ['results', '.', 'link'])
def test_a_second_run(demo, here, output):
    """Over a folder with the results of the first one, and a new photo."""
    album, target = here / 'album', here / 'album' / output
    Image.open(write_image(album / 'one.png')).save(album / 'one.jpg')
    write_film(album / 'film.mp4', [np.zeros((48, 64, 3), np.uint8)] * 2)
    os.remove(album / 'one.png')
    if output == 'link':
        (here / 'far').mkdir()
        target.symlink_to(here / 'far')
    options = [album, '--output', target, '--indexed']
    assert demo(*options).returncode == 0
    Image.open(write_image(here / 'two.png', 1)).save(album / 'two.jpg')
    result = demo(*options, '--skip-existing')
    assert result.returncode == 0, result.stderr
    assert 'that an earlier run has written: ' in result.stderr
    assert 'skipped 2 with existing results' in result.stderr
    assert result.stdout == f'{target}/two.png\n'
    result = demo(*options, '--force')
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3


@pytest.mark.slow
def test_what_appears_meanwhile(demo, here):
    """Between the plan and its result; a film's is kept as a part."""
    write_image(here / 'b.png')
    write_film(here / 'a.mp4', [np.zeros((48, 64, 3), np.uint8)] * 60)
    process = start_script(
        'demo.py', here / 'a.mp4', here / 'b.png', '--output', here / 'out',
        '--overlay', '--pretrained-model', demo.npz, '--input-size', 65)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (here / 'out').exists():
        time.sleep(0.01)
    for name in 'a.mp4', 'b.png':
        (here / 'out' / name).write_bytes(b'mine')
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    for name in 'a.mp4', 'b.png':
        assert (f'out/{name}: has appeared meanwhile, and is left as it is'
                in said)
        assert (here / 'out' / name).read_bytes() == b'mine'
    assert 'what was done is in ' in said
    assert sorted(os.listdir(here / 'out')) == ['a.mp4', 'a.part.mp4', 'b.png']


@pytest.mark.slow
def test_a_signal_to_processes_of_which_one_is_done(demo, here):
    """The film of the other is a part."""
    write_image(here / 'b.png')
    write_film(here / 'a.mp4', [np.zeros((240, 320, 3), np.uint8)] * 400)
    mpiexec = pathlib.Path(sys.executable).parent / 'mpiexec'
    with subprocess.Popen(
            [mpiexec, '-n', '2', sys.executable, ROOT / 'demo.py',
             here / 'a.mp4', here / 'b.png', '--output', here / 'out',
             '--overlay', '--pretrained-model', demo.npz, '--input-size', '65'],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
                here / 'out/b.png').exists():
            time.sleep(0.01)
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        said = process.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 10
    assert process.returncode == 143, said
    assert sorted(os.listdir(here / 'out')) == ['a.part.mp4', 'b.png']
