"""The demo on many inputs, and what it writes."""
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, start_script
from PIL import Image

from datasets import label_colors, label_names
from images import read_image
from inputs import find_inputs
from models import DeepLabV3plusXception65
from models.errors import InputError
from outputs import Outputs
from tiling import predict_within
from video import open_video, write_video
from visualization import HIDDEN, overlay

COLORS = label_colors('cityscapes')
SCRIPTS = sorted(path.name for path in ROOT.glob('*.py')
                 if "__name__ == '__main__'" in path.read_text())


def write_picture(path, seed=0, size=(72, 96)):
    """Patches in palette colours, which the stand-in knows."""
    rng = np.random.default_rng(seed)
    small = rng.integers(19, size=[-(-side // 24) for side in size])
    truth = np.kron(small, np.ones((24, 24), int))[:size[0], :size[1]]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLORS[truth]).save(path, 'PNG')
    return path


@pytest.fixture
def demo(palette_graphs, run_script):
    """Return a function that runs the demo with the stand-in."""
    _, npz = palette_graphs('cityscapes')

    def run(*arguments, **variables):
        return run_script('demo.py', *arguments, '--pretrained-model', npz,
                          '--input-size', 65, **variables)

    run.folder, run.npz = run_script.folder, npz
    return run


def predict(npz, path):
    model = DeepLabV3plusXception65(pretrained_model=npz, min_input_size=65)
    return model.predict([read_image(path)])[0]


@pytest.mark.slow
def test_a_tree(demo, tmp_path):
    tree = tmp_path / 'tree'
    names = ['a.png', 'b/ü ö.jpg', 'b/new\nline.png', 'b/1 pixel.png']
    for seed, name in enumerate(names[:3]):
        write_picture(tree / name, seed)
    Image.new('RGB', (1, 1), (0, 0, 142)).save(tree / names[3])
    os.write(os.open(bytes(tree) + b'/latin\xfc.png', os.O_CREAT | os.O_WRONLY),
             (tree / 'a.png').read_bytes())
    (tree / 'b/bad.png').write_bytes(b'no picture')
    (tree / 'b/empty.jpg').touch()
    (tree / 'notes.txt').touch()
    result = demo(tree, tmp_path / 'gone', '--output', 'out', '--overlay',
                  '--color-map', '--indexed', '--figure', '--json', 'all.json')
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines()
              if line.startswith('error: ')]
    assert len(errors) == 3, result.stderr
    assert '3 of 8 failed' in result.stderr
    assert 'loading ' in result.stderr
    assert ', 4 more at ' in result.stderr
    out = demo.folder / 'out'
    assert len([path for path in out.rglob('*') if path.is_file()]) == 5 * 4

    label = predict(demo.npz, tree / 'b/ü ö.jpg')
    classes = Image.open(out / 'b/ü ö_indexed.png')
    assert classes.mode == 'P'
    np.testing.assert_array_equal(classes, label)
    np.testing.assert_array_equal(classes.convert('RGB'), COLORS[label])
    np.testing.assert_array_equal(Image.open(out / 'b/ü ö_color_map.png'),
                                  COLORS[label])
    found = json.loads((demo.folder / 'all.json').read_text())
    assert len(found) == 5
    entry, = [each for each in found if each['name'].endswith('ö.jpg')]
    assert (entry['height'], entry['width'], entry['tiles']) == (72, 96, 1)
    for name, share in entry['shares'].items():
        k = label_names('cityscapes').index(name)
        assert share == (label == k).mean()


@pytest.mark.slow
def test_existing_files(demo, tmp_path):
    picture = write_picture(tmp_path / 'a.png')
    other = write_picture(tmp_path / 'b.png', 1)
    assert demo(picture, '--output', 'out').returncode == 0
    first = (demo.folder / 'out/a.png').read_bytes()
    (demo.folder / 'out/a.png').write_bytes(b'mine')
    result = demo(picture, '--output', 'out')
    assert result.returncode == 1
    assert 'out/a.png exists: give --force' in result.stderr
    result = demo(picture, other, '--output', 'out', '--skip-existing')
    assert result.returncode == 0
    assert result.stdout == 'out/b.png\n'
    assert '1 left out' in result.stderr
    assert (demo.folder / 'out/a.png').read_bytes() == b'mine'
    assert demo(picture, '--output', 'out', '--force').returncode == 0
    assert (demo.folder / 'out/a.png').read_bytes() == first


def test_two_that_would_write_the_same(tmp_path):
    for name in 'a.png', 'a.jpg', 'c.png':
        write_picture(tmp_path / name)
    inputs, _ = find_inputs([str(tmp_path)])
    outputs = Outputs(['figure'], str(tmp_path), inputs)
    assert len(outputs.problems) == 3  # a.jpg would be written where a.png lies
    assert 'where it lies' in outputs.problems[1]
    outputs = Outputs(['figure'], str(tmp_path / 'out'), inputs)
    assert len(outputs.problems) == 1
    assert 'a.jpg goes' in outputs.problems[0]
    with pytest.raises(InputError, match='several results: name a folder'):
        Outputs(['figure'], 'out.png', inputs)
    with pytest.raises(InputError, match='must end in one of'):
        Outputs(['indexed'], 'out.jpg', inputs[:1])


@pytest.mark.slow
def test_standard_input_and_addresses(demo, tmp_path):
    data = write_picture(tmp_path / 'a b.png').read_bytes()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler,
                                directory=tmp_path)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f'http://127.0.0.1:{server.server_port}'
        result = demo(f'{url}/a%20b.png', f'{url}/no.png', '--indexed')
    finally:
        server.shutdown()
        server.server_close()
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
    _, problems = find_inputs([str(tmp_path / 'empty'), 'no*.png', 'no.png'])
    assert len(problems) == 3


@pytest.mark.slow
def test_video(demo, tmp_path):
    frames = []
    for seed in range(4):
        path = write_picture(tmp_path / f'frame_{seed + 8}.png', seed, (71, 95))
        frames.append(np.asarray(Image.open(path)))
    write_video(tmp_path / 'film.mp4', 12, frames)
    result = demo(tmp_path / 'film.mp4', tmp_path / 'frame_%d.png', '--output',
                  'out')
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'out/film.mp4\nout/frame.mp4\n'
    for name, rate in ('film', 12), ('frame', 25):
        with open_video(demo.folder / f'out/{name}.mp4') as opened:
            assert opened[0] == rate
            images = list(opened[2])
        assert len(images) == 4
        assert images[0].shape == (3, 72, 96)
    path = tmp_path / 'frame_8.png'
    expected = overlay(read_image(path), predict(demo.npz, path), COLORS)
    difference = images[0].transpose(1, 2, 0)[:71, :95] - expected
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
    write_video(path, 12, [np.zeros((48, 64, 3), np.uint8)] * 3)
    with open_video(path) as (_, _, images):
        assert len(list(images)) == 3


@pytest.mark.parametrize('playlist', [
    'ffconcat version 1.0\nfile film.mp4\n',
    '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfilm.mp4\n'])
def test_a_playlist_is_no_film(tmp_path, playlist):
    write_video(tmp_path / 'film.mp4', 12,
                [np.zeros((48, 64, 3), np.uint8)] * 3)
    (tmp_path / 'list.mp4').write_text(playlist)
    with (pytest.raises(InputError, match='cannot be read as a video'),
          open_video(tmp_path / 'list.mp4') as (_, _, images)):
        list(images)


@pytest.mark.slow
def test_chosen_classes_and_size(demo, tmp_path):
    picture = write_picture(tmp_path / 'a.png', size=(240, 240))
    result = demo(picture, '--indexed', '--max-size', 121, '--json', 'a.json',
                  '--classes', 'car', 'road')
    assert result.returncode == 0, result.stderr
    classes = np.asarray(Image.open(demo.folder / 'a_indexed.png'))
    assert classes.shape == (240, 240)
    assert set(np.unique(classes)) <= {0, 13, HIDDEN}
    assert HIDDEN in classes
    found, = json.loads((demo.folder / 'a.json').read_text())
    assert set(found['shares']) <= {'car', 'road'}
    result = demo(picture, '--classes', 'cat')
    assert 'cat is none of the classes; near are car' in result.stderr


@pytest.mark.slow
def test_tiles_agree_with_the_whole(palette_graphs, tmp_path):
    _, npz = palette_graphs('cityscapes')
    image = read_image(write_picture(tmp_path / 'a.png', size=(409, 729)))
    model = DeepLabV3plusXception65(pretrained_model=npz, min_input_size=65)
    whole, count = predict_within(model, image, 8e9)
    assert count == 1
    model.to_openvino()  # has held nothing yet
    label, count = predict_within(
        model, image, model.memory_needed(265, 265))
    assert count >= 6
    np.testing.assert_array_equal(label, whole)
    with pytest.raises(InputError, match='even a small tile'):
        predict_within(model.to_openvino(), image, 1e6)


@pytest.mark.slow
def test_a_picture_beyond_the_memory(demo, tmp_path):
    picture = write_picture(tmp_path / 'a.png', size=(601, 905))
    assert demo(picture, '--indexed').returncode == 0
    result = demo(picture, '--indexed', '--memory', '0.3', '--output', 'tiled')
    assert result.returncode == 0, result.stderr
    assert 'overlapping tiles, as the whole needs more memory' in result.stderr
    whole, tiled = (np.asarray(Image.open(demo.folder / name)) for name in (
        'a_indexed.png', 'tiled/a.png'))
    np.testing.assert_array_equal(whole, tiled)


@pytest.mark.slow
def test_long_and_huge_pictures(demo, tmp_path):
    Image.new('RGB', (20_000, 1)).save(tmp_path / 'long.png')
    Image.new('1', (9_000, 9_000)).save(tmp_path / 'huge.png')
    result = demo(tmp_path / 'long.png', tmp_path / 'huge.png',
                  '--max-pixels', '50000000')
    assert result.returncode == 1
    assert 'at most 50000000 are read (--max-pixels)' in result.stderr
    assert result.stdout == 'long_segmentation.png\n'


@pytest.mark.slow
def test_a_full_disk(demo, tmp_path):
    small, large = (write_picture(tmp_path / name, size=size) for name, size in
                    (('small.png', (65, 65)), ('large.png', (300, 300))))
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(large)
    command = [sys.executable, ROOT / 'demo.py', large, small, '--overlay',
               '--pretrained-model', demo.npz, '--input-size', '65']
    result = subprocess.run(
        ['sh', '-c', 'ulimit -f 100; exec "$@"', 'sh', *command], text=True,
        cwd=demo.folder, capture_output=True, timeout=120, check=False)
    assert result.returncode == 1
    assert 'error: ' in result.stderr
    assert 'File too large' in result.stderr
    assert os.listdir(demo.folder) == ['small_overlay.png']


@pytest.mark.slow
def test_the_reader_of_its_output_leaves(demo, tmp_path):
    for seed in range(4):
        write_picture(tmp_path / f'in/{seed}.png', seed)
    with subprocess.Popen(
            [sys.executable, ROOT / 'demo.py', tmp_path / 'in', '--output',
             'out', '--pretrained-model', demo.npz, '--input-size', '65'],
            cwd=demo.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True) as process:
        process.stdout.close()
        text = process.stderr.read()
    assert process.returncode == 0
    assert 'error' not in text
    assert len(os.listdir(demo.folder / 'out')) == 4


@pytest.mark.slow
def test_interrupted(demo, tmp_path):
    for seed in range(40):
        write_picture(tmp_path / f'in/{seed}.png', seed)
    process = start_script(
        'demo.py', tmp_path / 'in', '--output', 'out', '--pretrained-model',
        demo.npz, '--input-size', 65, '--html', 'a.html', '--indexed',
        cwd=demo.folder)
    deadline = time.monotonic() + 60
    out = demo.folder / 'out'
    while time.monotonic() < deadline and not (
            out.exists() and any(out.glob('*.png'))):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 1
    written = os.listdir(out)
    assert 0 < len(written) < 40
    assert f'interrupted: {len(written)} of 40 done' in text
    assert 'Traceback' not in text
    for name in written:
        Image.open(out / name).load()
    assert (demo.folder / 'a.html').read_text().endswith('</html>\n')


CHECK_PAGE = '''<script>
const painted = () => {
  const canvas = document.querySelector('canvas');
  const data = canvas.getContext('2d').getImageData(
    0, 0, canvas.width, canvas.height).data;
  return data.filter((value, i) => i % 4 == 3 && value).length;
};
addEventListener('load', () => {
  const button = document.querySelector('button');
  const found = [painted()];
  button.focus();
  button.click();  // what Enter does
  found.push(painted());
  button.click();
  button.dispatchEvent(new Event('pointerenter'));
  found.push(painted());
  const slider = document.querySelector('input');
  slider.value = 20;
  slider.dispatchEvent(new Event('input'));
  found.push(document.querySelector('canvas').style.clipPath);
  found.push(document.documentElement.scrollWidth <= innerWidth);
  document.title = JSON.stringify(found);
});
</script>'''


@pytest.mark.slow
def test_page(demo, tmp_path):
    picture = write_picture(tmp_path / 'a <b>.png')
    result = demo(picture, '--html', 'a.html')
    assert result.returncode == 0, result.stderr
    assert os.listdir(demo.folder) == ['a.html']
    page = (demo.folder / 'a.html').read_text()
    assert 'a &lt;b&gt;.png' in page
    assert 'http' not in page
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    if chromium is None:
        return
    (tmp_path / 'page.html').write_text(page + CHECK_PAGE)
    dom = subprocess.run(
        [chromium, '--headless', '--no-sandbox', '--disable-gpu',
         '--window-size=500,800', '--dump-dom',
         (tmp_path / 'page.html').as_uri()],
        capture_output=True, text=True, check=True, timeout=60).stdout
    label = predict(demo.npz, picture)
    most = np.bincount(label.ravel()).max()
    assert (f'<title>[{label.size},{label.size - most},{most},"inset(0px 0px '
            '0px 80%)",true]</title>') in dom


@pytest.mark.slow
def test_page_beside_pictures(demo, tmp_path):
    picture = write_picture(tmp_path / 'a.png')
    result = demo(picture, '--html', 'a.html', '--output', 'out')
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(demo.folder)) == ['a.html', 'out']
    assert os.listdir(demo.folder / 'out') == ['a.png']


@pytest.mark.parametrize(('arguments', 'words'), [
    ([], 'an input is needed'),
    (['--classes', 'car', 'a.png'], 'needed, before --classes'),
    (['a.png', '--opacity', '0.5'], 'goes with --overlay'),
    (['a.png', '--overlay', '--opacity', '2'], 'must be 0 to 1'),
    (['a.png', '--max-size', '0'], '--max-size must be positive'),
    (['a.png', '--memory', 'nan'], '--memory must be positive'),
    (['a.png', '--force', '--skip-existing'], 'not allowed with'),
    (['a.png', '--skip-existing', '--html', 'a.html'], 'leaves results out'),
    (['a.png', '--scales', '0'], 'positive numbers up to'),
])
def test_refuses_combinations(run_script, arguments, words):
    result = run_script('demo.py', *arguments)
    assert result.returncode == 2
    assert words in result.stderr


def test_numbers_end_where_the_inputs_begin(run_script):
    result = run_script('demo.py', '--scales', '0.5', '1', 'no.png',
                        '--input-size', '65', 'gone.png')
    assert result.stderr.splitlines()[:2] == [
        'error: gone.png: No such file or directory',
        'error: no.png: No such file or directory']


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_imports_nothing_heavy(script):
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', ROOT / script, '--help'],
        capture_output=True, text=True, check=True, timeout=60)
    assert 'usage: ' in result.stdout
    imported = {line.rpartition('|')[2].strip()
                for line in result.stderr.splitlines()}
    assert not imported & {'chainer', 'tensorflow', 'matplotlib', 'openvino',
                           'onnx', 'onnxruntime', 'PIL', 'av', 'mpi4py'}
