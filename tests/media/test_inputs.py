"""What the demo reads: files, folders, addresses, videos."""
import contextlib
import functools
import http.server
import io
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT
from fixture_images import write_film, write_image
from PIL import Image

from media import inputs
from media.images import read_image
from media.inputs import find_inputs
from media.video import open_video
from media.visualization import overlay
from models.classes import label_colors
from models.utils.errors import InputError


@contextlib.contextmanager
def served(folder):
    """Give the address of a server of a folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler,
                                directory=folder)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_standard_input_and_addresses(demo, tmp_path):
    data = write_image(tmp_path / 'a b.png').read_bytes()
    with served(tmp_path) as url:
        result = demo(f'{url}/a%20b.png', f'{url}/no.png', '--indexed')
    assert result.stdout == 'a b_indexed.png\n'
    assert f'error: {url}/no.png: ' in result.stderr
    command = [sys.executable, ROOT / 'demo.py', '-', '--indexed',
               '--pretrained-model', demo.npz, '--input-size', '65']
    subprocess.run(command, input=data, cwd=demo.folder, check=True,
                   capture_output=True, timeout=120)
    assert ((demo.folder / 'stdin_indexed.png').read_bytes()
            == (demo.folder / 'a b_indexed.png').read_bytes())


def test_finds_inputs(tmp_path):
    for name in 'b/2.png', 'b/10.jpg', 'a.webp', 'film.mp4', '.hidden.png':
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def stems(*arguments):
        return [str(each.stem) for each in find_inputs(arguments)[0]]

    assert stems(str(tmp_path)) == ['a', 'b/10', 'b/2', 'film']
    assert stems(f'{tmp_path}/**/*.png') == ['2']
    assert stems(f'{tmp_path}/b/%d.png') == ['frames']
    (tmp_path / 'empty').mkdir()
    _, problems, _ = find_inputs([str(tmp_path / 'empty'), 'no*.png', 'no.png'])
    assert len(problems) == 3


def test_patterns_and_folders(tmp_path, monkeypatch):
    """A pattern names folders as their own names do; nothing comes twice."""
    monkeypatch.chdir(tmp_path)
    for name in 'photos/a.png', 'photos/b/c.png', 'photo.png', 'x/notes.txt':
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).touch()

    def names(*arguments):
        found, problems, notes = find_inputs(arguments)
        return [each.name for each in found], problems, notes

    def left_in(*arguments):
        return [each.found_in for each in find_inputs(arguments)[0]]

    both = ['photos/a.png', 'photos/b/c.png']
    assert names('phot*s') == names('photos') == (both, [], [])
    assert names('phot*') == (['photo.png', *both], [], [])
    assert names('photos/**') == (both, [], [])
    assert names('photos/a.png', './photos/a.png', 'photos') == (
        both, [], ['photos/a.png is named twice'])
    assert left_in('photos', 'photos/a.png') == left_in(
        'photos/a.png', 'photos') == [None, Path('photos')]
    assert names('*x*') == ([], ['*x*: no image or video was found'], [])
    (tmp_path / 'my%20dog.mp4').touch()
    (film,), _, _ = find_inputs(['my%20dog.mp4'])
    assert film.files() == [Path('my%20dog.mp4')]
    with pytest.raises(InputError, match='cannot be read as a video'):
        open_video(film.path).__enter__()


def test_one_bad_argument_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in 'x/ya/1.jpg', 'x/yb/2.jpg', 'x/yempty/a.txt', 'a.png':
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).touch()
    (tmp_path / 'gone.png').symlink_to('nowhere')
    found, problems, _ = find_inputs([
        'x/y*', 'http://[x', 'ftp://me:secret@host/a', '', 'x/yempty', 'a\0',
        f'{tmp_path}/x/../a.png', 'a.png', 'HTTP://host/b.png'])
    assert [each.name for each in found] == [
        'x/ya/1.jpg', 'x/yb/2.jpg', f'{tmp_path}/x/../a.png',
        'HTTP://host/b.png']
    assert problems == [
        'http://... is no valid address',
        'ftp://host/a: an address begins with http://, https:// or file:///',
        "'' is no name of a file",
        'x/yempty: no image or video was found',
        r"'a\x00' is no name of a file"]


def test_what_may_not_be_read_costs_no_folder():
    """By a user without rights, whom root becomes."""
    code = ('import os, sys; from media.inputs import find_inputs\n'
            'if os.geteuid() == 0: os.seteuid(65534)\n'
            'found, problems, _ = find_inputs([sys.argv[1]])\n'
            'print([each.path.name for each in found], len(problems))')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for path in 'a.png', 't.ts', 'locked/b.png', 'listed/c.png':
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).touch()
        (folder / 't.ts').chmod(0)
        (folder / 'locked').chmod(0)
        (folder / 'listed').chmod(0o444)
        result = subprocess.run(
            [sys.executable, '-c', code, folder], cwd=ROOT, text=True,
            capture_output=True, check=False, timeout=60)
        for path in 'locked', 'listed':
            (folder / path).chmod(0o755)
    assert result.stdout == "['a.png', 't.ts'] 1\n", result.stderr


def feed(pipe, data):
    thread = threading.Thread(target=pipe.write_bytes, args=[data])
    thread.start()
    return thread


@pytest.mark.parametrize('pattern', ['pipe.png', '*'])
def test_a_pipe(tmp_path, pattern):
    """It is read once, and what it holds tells what it is."""
    image = write_image(tmp_path / 'kept/a.png')
    write_film(tmp_path / 'kept/film.mp4', [np.zeros((48, 64, 3), np.uint8)])
    (tmp_path / 'in').mkdir()
    os.mkfifo(tmp_path / 'in/pipe.png')
    for path in image, tmp_path / 'kept/film.mp4':
        writer = feed(tmp_path / 'in/pipe.png', path.read_bytes())
        (each,), problems, _ = find_inputs([
            str(tmp_path / 'in' / pattern), str(tmp_path / 'in/pipe.png')])
        writer.join()
        assert problems == []
        assert (each.is_video, each.files(), each.found_in) == (
            path.suffix == '.mp4', [], None)
        assert each.source() == path.read_bytes()
        if not each.is_video:
            np.testing.assert_array_equal(each.read(1e9), read_image(path))


def test_a_pipe_with_several_jpegs(tmp_path):
    """They are a video, unless a phone has put one behind its photo."""
    frames = [io.BytesIO() for _ in range(3)]
    for i, file in enumerate(frames):
        Image.new('RGB', (64, 48), (80 * i, 0, 0)).save(file, 'JPEG')
    data = b''.join(file.getvalue() for file in frames)
    os.mkfifo(tmp_path / 'pipe')
    for sent, n_frames in (data, 3), (data[:-9], 3), (
            data[:2] + b'\xff\xe2\0\x06MPF\0' + data[2:], None), (
            frames[0].getvalue(), None):
        writer = feed(tmp_path / 'pipe', sent)
        (each,), _, _ = find_inputs([str(tmp_path / 'pipe')])
        writer.join()
        assert each.is_video == (n_frames is not None)
        if each.is_video:
            with open_video(each.source()) as video:
                assert len(list(video.frames)) == n_frames


def test_an_empty_pipe(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    writer = feed(tmp_path / 'pipe', b'')
    (each,), _, _ = find_inputs([str(tmp_path / 'pipe')])
    writer.join()
    with pytest.raises(InputError, match='pipe is empty: an image is needed'):
        each.read(1e9)


def test_a_pipe_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, 'MAX_BYTES', 1000)
    _, problems, _ = find_inputs(['/dev/zero'])
    assert problems == ['/dev/zero: more than 1000 bytes: save it, and give '
                        'the name of the file']


def test_addresses_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in 'a b.png', '50%d.mp4', 'x[1].png':
        (tmp_path / name).touch()
    folder = tmp_path.as_uri()
    found, problems, _ = find_inputs([
        f'{folder}/a%20b.png', f'FILE://localhost{tmp_path}/50%25d.mp4', folder,
        f'{folder}/x[1].png', f'{folder}/*', f'{folder}/%25d.png',
        'file://host/a.png'])
    assert [(each.path.name, each.is_video) for each in found] == [
        ('a b.png', False), ('50%d.mp4', True), ('x[1].png', False)]
    assert problems == [
        f'{tmp_path}/*: No such file or directory',
        f'{tmp_path}/%d.png: No such file or directory',
        'file://host/a.png: an address begins with http://, https:// or '
        'file:///']


def test_addresses_of_videos(tmp_path):
    """By their ending, else by how what they lead to begins."""
    for name in 'film.mp4', 'film':
        write_film(tmp_path / 'film.mp4', [np.zeros((48, 64, 3), np.uint8)])
        data = (tmp_path / 'film.mp4').read_bytes()
        (tmp_path / name).write_bytes(data)
    write_image(tmp_path / 'image')
    with served(tmp_path) as url:
        found, problems, _ = find_inputs([
            f'{url}/film.mp4?key=1', f'{url}/film?key=1', f'{url}/image',
            f'{url}/none', url.replace('http', 'HTTP') + '/image'])
        assert problems == []
        assert [each.is_video for each in found] == [True, True] + [False] * 3
        assert found[0].source() == found[1].source() == data
        for i in 2, 4:
            assert found[i].read(1e9).shape == (3, 72, 96)
        with pytest.raises(InputError, match='none: HTTP 404'):
            found[3].read(1e9)


def test_what_a_folder_is_not_asked_for(tmp_path):
    """Of systems and editors: nothing is read or said."""
    for name in ('@eaDir/a.png/SYNO_THUMB.jpg', '.ipynb_checkpoints/a.png',
                 '._a.png', '.DS_Store', 'Thumbs.db', '__MACOSX/._a.png',
                 'memo.m4a', 'song.mp3', 'sound.wav', 'x/@eaDir/b.png'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b'\0\0\0\x18ftypM4A ')
    (tmp_path / 'recording').write_bytes(b'\0\0\0\x18ftypM4A ')
    os.mkfifo(tmp_path / 'pipe.ts')  # which must not be opened
    (tmp_path / 'a.png').touch()
    for argument in tmp_path, tmp_path / '**/*.png', tmp_path / '[T_@a]*':
        found, problems, notes = find_inputs([str(argument)])
        assert [each.path for each in found] == [tmp_path / 'a.png']
        assert problems == []
        assert notes == []


def test_all_that_is_read_is_found(tmp_path):
    """With an ending, or by what it begins with."""
    image = Image.new('RGB', (8, 8), (1, 2, 3))
    for name in 'jpeg', 'png', 'bmp', 'gif', 'tiff', 'webp', 'avif', 'jp2':
        image.save(tmp_path / f'{name}', {'jp2': 'JPEG2000'}.get(name, name))
    for mode, ending in ('1', 'pbm'), ('L', 'pgm'), ('RGB', 'pnm'):
        image.convert(mode).save(tmp_path / ending, 'PPM')
    images = sorted(tmp_path.iterdir())
    for path in images:
        path.with_name(f'x.{path.name}').write_bytes(path.read_bytes())
    for ending in 'h264', 'nut', 'mkv', 'ts', 'mpg', 'flv', 'avi', 'm2ts':
        write_film(tmp_path / f'film.{ending}', [
            np.zeros((48, 64, 3), np.uint8)] * 5)
        (tmp_path / f'video_{ending}').write_bytes(
            (tmp_path / f'film.{ending}').read_bytes())
    for name in 'f.h265', 'f.y4m', 'f.ivf', 'f.mjpeg':
        (tmp_path / name).touch()
    found, _, _ = find_inputs([str(tmp_path)])
    assert len(found) == 2 * len(images) + 16 + 4
    assert sum(each.is_video for each in found) == 16 + 4
    for each in found:
        if not each.is_video:
            assert each.read(1e9).shape == (3, 8, 8)


ONE = 1 << 16  # of a matrix's fixed-point numbers


@pytest.mark.parametrize(('matrix', 'change'), [
    ((0, ONE, -ONE, 0), lambda pixels: np.rot90(pixels, -1)),  # clockwise
    ((0, -ONE, ONE, 0), np.rot90),
    ((100, -ONE, ONE, 100), np.rot90),  # nearly
    ((-ONE, 0, 0, -ONE), lambda pixels: np.rot90(pixels, 2)),
    ((-ONE, 0, 0, ONE), np.fliplr),
    ((ONE, 0, 0, -ONE), np.flipud),
    ((0, ONE, ONE, 0), lambda pixels: pixels.transpose(1, 0, 2)),
    ((ONE, 6000, -6000, ONE), lambda pixels: pixels),  # 5 degrees
    ((0, 0, 0, 0), lambda pixels: pixels),
])
def test_video_of_a_turned_phone(tmp_path, matrix, change):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48] = 255
    a, b, c, d = matrix
    with av.open(tmp_path / 'film.mp4', 'w') as container:
        stream = container.add_stream('libx264', rate=5)
        stream.height, stream.width, _ = pixels.shape
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(
            pixels, format='rgb24')))
        container.mux(stream.encode())
    with open_video(tmp_path / 'film.mp4') as video:
        (image, *_), = video.frames
    wanted = change(pixels).transpose(2, 0, 1)
    assert image.shape == wanted.shape
    assert np.abs(image - wanted).mean() < 5


@pytest.mark.slow
def test_video(demo, tmp_path):
    frames = []
    for seed in range(4):
        path = write_image(tmp_path / f'frame_{seed + 8}.png', seed, (71, 95))
        frames.append(np.asarray(Image.open(path)))
    write_film(tmp_path / 'film.mp4', frames, 12)
    result = demo(tmp_path / 'film.mp4', tmp_path / 'frame_%d.png', '--output',
                  'out')
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'out/film.mp4\nout/frame.mp4\n'
    for name, rate in ('film', 12), ('frame', 25):
        with open_video(demo.folder / f'out/{name}.mp4') as video:
            assert video.rate == rate
            images = [frame.image for frame in video.frames]
        assert len(images) == 4
        assert images[0].shape == (3, 72, 96)
    path = tmp_path / 'frame_8.png'
    expected = overlay(read_image(path), demo.predict(path),
                       label_colors('cityscapes'))
    difference = images[0].transpose(1, 2, 0)[:71, :95] - np.asarray(
        expected, float)
    assert np.abs(difference).mean() < 12  # what compression leaves
    (tmp_path / 'cut.mp4').write_bytes(
        (tmp_path / 'film.mp4').read_bytes()[:700])
    result = demo(tmp_path / 'cut.mp4', '--output', 'out')
    assert result.returncode == 1
    assert 'cut.mp4 cannot be read' in result.stderr
    assert not (demo.folder / 'out/cut.mp4').exists()


def test_a_film_named_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path('http:10:00.mp4')
    write_film(path, [np.zeros((48, 64, 3), np.uint8)] * 3)
    with open_video(path) as video:
        assert len(list(video.frames)) == 3


@pytest.mark.parametrize('playlist', [
    'ffconcat version 1.0\nfile film.mp4\n',
    '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfilm.mp4\n'])
def test_a_playlist_is_no_film(tmp_path, playlist):
    write_film(tmp_path / 'film.mp4', [np.zeros((48, 64, 3), np.uint8)] * 3)
    (tmp_path / 'list.mp4').write_text(playlist)
    with (pytest.raises(InputError, match='cannot be read as a video'),
          open_video(tmp_path / 'list.mp4') as video):
        list(video.frames)


@pytest.mark.slow
def test_long_and_huge_pictures(demo, tmp_path):
    Image.new('RGB', (4_000, 1)).save(tmp_path / 'long.png')
    Image.new('1', (9_000, 9_000)).save(tmp_path / 'huge.png')
    result = demo(tmp_path / 'long.png', tmp_path / 'huge.png',
                  '--max-pixels', '50000000')
    assert result.returncode == 1
    assert 'at most 50000000 are read (demo.py --max-pixels)' in result.stderr
    assert result.stdout == 'long_segmentation.png\n'
