"""The demo: one image or many, and what it writes."""
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT, start_script
from fixture_images import add_sound, write_film, write_image, write_sound
from PIL import Image, ImageGrab

from media import images
from media.batch import Batch
from media.inputs import find_inputs
from media.outputs import SKIP
from media.visualization import HIDDEN
from models import DeepLabV3plusXception65
from models.classes import label_colors, label_names
from models.weights import named_arrays, write_npz


@pytest.mark.slow
def test_writes_an_image(palette_graphs, run_script):
    _, npz = palette_graphs('cityscapes')
    Image.open(ROOT / 'assets/street.png').crop((200, 200, 420, 350)).save(
        run_script.folder / 'a street.png')
    result = run_script('demo.py', '--pretrained-model', npz, '--input-size',
                        65, 'a street.png')
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == 'a street_segmentation.png'
    picture = np.asarray(Image.open(
        run_script.folder / 'a street_segmentation.png').convert('RGB'))
    assert min(picture.shape[:2]) > 400
    for color in (0, 0, 142), (128, 64, 128):  # car, road
        assert (picture[:, picture.shape[1] // 2:] == color).all(-1).any()


def save_png(path, **options):
    Image.effect_noise((20, 10), 90).convert('RGB').save(path, **options)


def test_refuses_bad_input(fails, palette_graphs, tmp_path):
    pb, npz = palette_graphs('voc')
    model = '--pretrained-model', npz
    save_png(tmp_path / 'image.png')
    good = tmp_path / 'image.png'
    (tmp_path / 'text.png').write_text('no picture')
    (tmp_path / 'cut.png').write_bytes(good.read_bytes()[:-120])
    fails('cannot be read as an image', 'demo.py', *model,
          tmp_path / 'text.png')
    fails('cannot be read as an image', 'demo.py', *model,
          tmp_path / 'cut.png')
    fails('No such file', 'demo.py', *model, tmp_path / 'no.png')
    fails('no.npz is no file', 'demo.py', '--pretrained-model', 'no.npz', good)
    fails('convert it with tf2npz.py', 'demo.py', '--pretrained-model', pb,
          good)
    fails('ade20k has 150 classes, and the model 21', 'demo.py',
          *model, '--dataset', 'ade20k', good)
    fails('--gpu 99', 'demo.py', *model, '--gpu', 99, good)
    fails('must end in one of', 'demo.py', *model, '--output', 'x.xyz', good)


@pytest.fixture
def display():
    """Return the name of a virtual display, where Xvfb and Tk are there."""
    if not shutil.which('Xvfb') or not importlib.util.find_spec('_tkinter'):
        pytest.skip('needs Xvfb and Tk')
    with subprocess.Popen(
            ['Xvfb', '-displayfd', '1', '-noreset', '-screen', '0',
             '1920x1080x24'],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        yield f':{server.stdout.readline().decode().strip()}'
        server.kill()


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_opens_a_window(palette_graphs, display, tmp_path, number):
    _, npz = palette_graphs('cityscapes')
    street = ROOT / 'assets/street.png'
    process = start_script(
        'demo.py', '--pretrained-model', npz, '--input-size', 65, street,
        street, cwd=tmp_path, env={**os.environ, 'DISPLAY': display})
    deadline = time.monotonic() + 60
    seen = np.zeros((1, 1, 3), np.uint8)
    while not (seen == (0, 0, 142)).all(-1).any():  # a car
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
        seen = np.asarray(ImageGrab.grab(xdisplay=display))
    assert (seen[:, 1440:] == 0).all()  # it fits a screen
    begun = time.monotonic()
    process.send_signal(number)
    _, text = process.communicate(timeout=30)
    assert time.monotonic() - begun < 5
    assert process.returncode == -number
    assert 'Traceback' not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_without_openvino(palette_graphs, run_script, tmp_path):
    _, npz = palette_graphs('voc')
    save_png(tmp_path / 'image.png')
    (tmp_path / 'openvino.py').write_text('raise RuntimeError("no home")')
    arguments = ('demo.py', '--pretrained-model', npz, '--input-size', 65,
                 tmp_path / 'image.png')
    result = run_script(*arguments, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0
    assert result.stderr.startswith(
        'warning: OpenVINO cannot be used (no home): install '
        'requirements.txt: predict runs on Chainer instead, several times as '
        'slow\n')
    assert (run_script.folder / 'image_segmentation.png').exists()
    result = run_script(*arguments, '--backend', 'openvino', '--force',
                        PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert result.stderr.startswith('error: OpenVINO cannot be used')
    assert result.stderr.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['openvino', 'chainer', 'auto'])
def test_backend_and_threads(palette_graphs, run_script, tmp_path, backend):
    _, npz = palette_graphs('voc')
    save_png(tmp_path / 'image.png')
    result = run_script('demo.py', '--pretrained-model', npz, '--input-size',
                        65, '--backend', backend, '--threads', 1,
                        tmp_path / 'image.png')
    assert result.returncode == 0
    assert result.stderr.startswith('loading ')
    assert result.stderr.count('\n') == 1


@pytest.mark.slow
def test_refuses_an_unwritable_output(run_script, palette_graphs, tmp_path):
    _, npz = palette_graphs('voc')
    save_png(tmp_path / 'image.png')
    result = run_script(
        'demo.py', '--pretrained-model', npz, '--input-size', 65, '--output',
        tmp_path / 'image.png' / 'out.png', tmp_path / 'image.png')
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert 'image.png is a file, not a folder\n' in result.stderr


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'LA', 'CMYK', '1', 'I;16'])
def test_reads_modes_as_rgb(tmp_path, mode):
    path = tmp_path / ('a.tif' if mode == 'CMYK' else 'a.png')
    if mode == 'I;16':
        Image.fromarray(np.full((10, 20), 204 << 8, np.uint16)).save(path)
    else:
        Image.new('RGB', (20, 10), (204, 204, 204)).convert(mode).save(path)
    image = images.read_image(path)
    assert image.shape == (3, 10, 20)
    assert image.dtype == np.float32
    if mode != '1':
        np.testing.assert_array_equal(image, 204)


def test_applies_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    save_png(tmp_path / 'a.png', exif=exif)
    assert images.read_image(tmp_path / 'a.png').shape == (3, 20, 10)


@pytest.mark.parametrize('kind', images.FORMATS)
def test_reads_formats(tmp_path, kind):
    Image.new('RGB', (20, 10), (204, 204, 204)).save(tmp_path / 'a', kind)
    np.testing.assert_allclose(
        images.read_image(tmp_path / 'a'), np.full((3, 10, 20), 204), atol=2)


def test_postscript_is_no_image(tmp_path):
    """Pillow would have Ghostscript run it."""
    Image.new('RGB', (20, 10)).save(tmp_path / 'a.png', 'EPS')
    with pytest.raises(images.InputError, match='unknown format'):
        images.read_image(tmp_path / 'a.png')


def test_dataset_takes_its_model(run_script, tmp_path):
    """What is asked for is seen by what would be downloaded."""
    save_png(tmp_path / 'image.png')
    variables = {'DEEPLAB_MIRROR': 'file:///nowhere', 'CHAINER_DATASET_ROOT':
                 str(tmp_path / 'cache'), 'http_proxy': 'http://127.0.0.1:9',
                 'https_proxy': 'nowhere://'}
    result = run_script('demo.py', '--dataset', 'voc', tmp_path / 'image.png',
                        **variables)
    assert result.returncode == 1
    assert 'deeplabv3plus_xception65_voc_converted' in result.stderr
    assert 'cityscapes' not in result.stderr
    result = run_script('demo.py', '--dataset', 'voc', '--pretrained-model',
                        'ade20k', tmp_path / 'image.png', **variables)
    assert result.returncode == 2
    assert ('--dataset voc has other classes than the ade20k model: leave one '
            'out') in result.stderr
    assert 'downloading' not in result.stderr


@pytest.mark.slow
def test_classes_without_names_are_numbered(run_script, tmp_path):
    save_png(tmp_path / 'image.png')
    model = DeepLabV3plusXception65(n_class=5)
    write_npz(tmp_path / 'a.npz', named_arrays(model).items(), {})
    result = run_script('demo.py', '--pretrained-model', tmp_path / 'a.npz',
                        '--input-size', 65, '--json', 'a.json',
                        tmp_path / 'image.png')
    assert result.returncode == 0, result.stderr
    assert 'does not name its 5 classes: they are numbered here' in (
        result.stderr)
    record, = json.loads((run_script.folder / 'a.json').read_text())
    assert set(record['shares']) <= {f'class {i}' for i in range(5)}


COLORS = label_colors('cityscapes')
SCRIPTS = sorted(path.name for path in ROOT.glob('*.py')
                 if "__name__ == '__main__'" in path.read_text())


@pytest.mark.slow
def test_a_tree(demo, tmp_path):
    tree = tmp_path / 'tree'
    names = ['a.png', 'b/ü ö.jpg', 'b/new\nline.png', 'b/1 pixel.png']
    for seed, name in enumerate(names[:3]):
        write_image(tree / name, seed)
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

    label = demo.predict(tree / 'b/ü ö.jpg')
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
def test_shared_out_among_processes(palette_graphs, tmp_path):
    """More processes than inputs, one of them bad: the same as by one."""
    _, npz = palette_graphs('cityscapes')
    for seed in range(3):
        write_image(tmp_path / f'in/{seed}.png', seed)
    mpiexec = [Path(sys.executable).parent / 'mpiexec', '-n', '5']

    def run(command, name, *inputs):
        return subprocess.run(
            [*command, sys.executable, ROOT / 'demo.py', *inputs,
             '--pretrained-model', npz, '--input-size', '65', '--output', name,
             '--indexed'],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            timeout=300, stdin=subprocess.DEVNULL)

    for command, name in ([], 'one'), (mpiexec, 'five'):
        result = run(command, name, 'in')
        assert result.returncode == 0, result.stderr
        assert len(result.stdout.splitlines()) == 3
    for name in ('0.png', '1.png', '2.png'):
        assert (tmp_path / 'one' / name).read_bytes() == (
            tmp_path / 'five' / name).read_bytes()

    (tmp_path / 'in/1.png').write_bytes(b'no picture')
    result = run(mpiexec, 'bad', 'in', 'gone.png')
    assert result.returncode != 0
    assert result.stderr.count('in/1.png cannot be read') == 1
    assert result.stderr.count('error: gone.png: No such file') == 1
    assert sorted(os.listdir(tmp_path / 'bad')) == ['0.png', '2.png']
    for arguments in ['in', '--json', 'a.json'], ['-']:
        result = run(mpiexec, 'none', *arguments)
        assert result.returncode == 1
        assert result.stderr.count('several processes cannot share') == 1


@pytest.mark.slow
def test_existing_files(demo, tmp_path):
    picture = write_image(tmp_path / 'a.png')
    other = write_image(tmp_path / 'b.png', 1)
    assert demo(picture, '--output', 'out').returncode == 0
    first = (demo.folder / 'out/a.png').read_bytes()
    (demo.folder / 'out/a.png').write_bytes(b'mine')
    result = demo(picture, '--output', 'out')
    assert result.returncode == 1
    assert 'out/a.png exists: give --force' in result.stderr
    result = demo(picture, other, '--output', 'out', '--skip-existing')
    assert result.returncode == 0
    assert result.stdout == 'out/b.png\n'
    assert 'skipped 1 with existing results' in result.stderr
    assert (demo.folder / 'out/a.png').read_bytes() == b'mine'
    assert demo(picture, '--output', 'out', '--force').returncode == 0
    assert (demo.folder / 'out/a.png').read_bytes() == first


@pytest.mark.slow
def test_chosen_classes_and_size(demo, tmp_path):
    picture = write_image(tmp_path / 'a.png', size=(240, 240))
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
    assert 'cat is none of the classes, such as car' in result.stderr


@pytest.mark.slow
def test_a_picture_beyond_the_memory(demo, tmp_path):
    picture = write_image(tmp_path / 'a.png', size=(305, 409))
    assert demo(picture, '--indexed').returncode == 0
    result = demo(picture, '--indexed', '--memory', '0.25', '--output', 'tiled')
    assert result.returncode == 0, result.stderr
    assert 'overlapping tiles, as the whole needs more memory' in result.stderr
    whole, tiled = (np.asarray(Image.open(demo.folder / name)) for name in (
        'a_indexed.png', 'tiled/a.png'))
    np.testing.assert_array_equal(whole, tiled)


@pytest.mark.slow
def test_a_full_disk(demo, tmp_path):
    small, large = (write_image(tmp_path / name, size=size) for name, size in
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
        write_image(tmp_path / f'in/{seed}.png', seed)
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
        write_image(tmp_path / f'in/{seed}.png', seed)
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
    assert process.returncode == 130
    written = os.listdir(out)
    assert 0 < len(written) < 40
    assert f'interrupted: {len(written)} of 40 done' in text
    assert 'Traceback' not in text
    for name in written:
        Image.open(out / name).load()
    assert (demo.folder / 'a.html').read_text().endswith('</html>\n')


@pytest.mark.slow
@pytest.mark.parametrize(('awaited', 'number'), [
    ('-', signal.SIGHUP), ('address', signal.SIGINT)])
def test_interrupted_while_it_waits(demo, host, awaited, number):
    """For standard input, and for an address that never answers."""
    host.plans['a.png'], host.patience = ['hang'], 60
    source = '-' if awaited == '-' else f'{host.url}/a.png'
    process = start_script(
        'demo.py', source, '--output', 'out', '--pretrained-model', demo.npz,
        '--input-size', 65, cwd=demo.folder, stdin=subprocess.PIPE)
    time.sleep(6)  # it waits, and the network is ready
    assert bool(host.requests) == (awaited == 'address')
    begun = time.monotonic()
    process.send_signal(number)
    process.wait(timeout=30)
    assert time.monotonic() - begun < 2
    text = process.stderr.read()
    process.stdin.close()
    process.stderr.close()
    assert process.returncode == 128 + number
    assert text.splitlines()[-1] == (  # a pipe is read before all else
        'interrupted' if awaited == '-' else 'error: interrupted: 0 of 1 done')


@pytest.mark.slow
def test_skips_what_another_run_has_written(tmp_path):
    """Also where it comes after the start."""
    each, = find_inputs([str(write_image(tmp_path / 'a.png'))])[0]
    path = tmp_path / 'out.png'
    path.touch()
    outcome, = Batch(None, None, {each: {'figure': path}},
                     existing=SKIP).run()
    assert outcome.notes == ['skipped, another run has written its results']
    assert outcome.error is None
    assert path.stat().st_size == 0


@pytest.mark.slow
def test_results_come_in_order(demo, tmp_path):
    """Films and images mixed; and only what is missing is written."""
    frames = [np.asarray(Image.open(write_image(tmp_path / 'b.png')))] * 2
    write_film(tmp_path / 'a.mp4', frames)
    write_image(tmp_path / 'c.png', 2)
    (demo.folder / 'out').mkdir()
    (demo.folder / 'out/b_overlay.png').write_bytes(b'mine')
    result = demo(tmp_path / 'b.png', tmp_path / 'a.mp4', tmp_path / 'c.png',
                  '--output', 'out', '--overlay', '--color-map',
                  '--skip-existing')
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        'out/b_color_map.png', 'out/a_overlay.mp4', 'out/a_color_map.mp4',
        'out/c_overlay.png', 'out/c_color_map.png']
    assert (demo.folder / 'out/b_overlay.png').read_bytes() == b'mine'
    result = demo(tmp_path / 'b.png', tmp_path / 'a.mp4', tmp_path / 'c.png',
                  '--json', 'all.json')
    names = [record['name'] for record in json.loads(
        (demo.folder / 'all.json').read_text())]
    assert [name[-5:] for name in names] == ['b.png', *2 * ['a.mp4'], 'c.png']


@pytest.mark.parametrize(('arguments', 'words'), [
    ([], 'an input is needed'),
    (['--classes', 'car', 'a.png'], 'needed, before --classes'),
    (['a.png', '--opacity', '0.5'], 'goes with --overlay'),
    (['a.png', '--overlay', '--opacity', '2'], 'must be 0 to 1'),
    (['a.png', '--max-size', '0'], '--max-size must be positive'),
    (['a.png', '--memory', 'nan'], '--memory must be positive'),
    (['a.png', '--force', '--skip-existing'], 'not allowed with'),
    (['a.png', '--skip-existing', '--html', 'a.html'], '--skip-existing skips'),
    (['a.png', '--scales', '0'], 'scales are positive numbers up to'),
])
def test_refuses_combinations(run_script, arguments, words):
    result = run_script('demo.py', *arguments)
    assert result.returncode == 2
    assert words in result.stderr


@pytest.mark.parametrize('script', SCRIPTS)
def test_windows(script):
    result = subprocess.run(
        [sys.executable, '-c', 'import runpy, sys; sys.platform = "win32"; '
         'runpy.run_path(sys.argv[1], run_name="__main__")', ROOT / script],
        capture_output=True, text=True, check=False, timeout=60,
        cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr == ('error: this runs on Linux and macOS: on Windows '
                             'use Linux in WSL (wsl --install)\n')


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


def bad_inputs(folder, out):
    """Put into folders an input for each way of being bad; return how many
    lines they cost.
    """
    good = (folder / 'good0.png').read_bytes()
    films = out.parent / 'films'
    films.mkdir()
    frames = [np.zeros((48, 64, 3), np.uint8)] * 3
    write_film(films / 'film.mp4', frames)
    film = (films / 'film.mp4').read_bytes()
    with av.open(str(folder / 'sound.mp4'), 'w') as container:
        write_sound(add_sound(container, 'aac'))
    for name, data in {
            'text.png': b'no picture', 'empty.jpg': b'', 'cut.png': good[:-120],
            'text.mp4': b'no film' * 99, 'cut.mp4': film[:700],
            'empty.mp4': b'', 'pdf.png': b'%PDF-1.7\n' * 9,
            'zeros.jpg': bytes(999)}.items():
        (folder / name).write_bytes(data)
    Image.new('F', (9, 9)).save(folder / 'float.tif')
    Image.new('1', (4_000, 4_000)).save(folder / 'large.png')
    shutil.copy(folder / 'good0.png', folder / ('x' * 250 + '.png'))
    for name in 'folder', 'pipe', 'kept', 'film', 'floor':
        (folder / f'{name}.png').write_bytes(good)
    (out / 'folder_overlay.png').mkdir(parents=True)
    os.mkfifo(out / 'pipe_overlay.png')
    (out / 'kept_overlay.png').write_bytes(b'mine')
    (out / 'kept_overlay.png').chmod(0o444)
    (folder / 'film.png').rename(folder / 'full.mp4')
    (folder / 'full.mp4').write_bytes(film)
    (out / 'full_indexed').mkdir()
    (out / 'full_indexed/notes.txt').write_text('mine')
    (folder / 'floor.png').rename(folder / 'wall.png')
    (out / 'wall_indexed.png').symlink_to(folder / 'good1.png')
    return 17


def digests(folder):
    return {path: (path.lstat().st_mode, path.read_bytes() if path.is_file()
                   else None) for path in folder.rglob('*')}


@pytest.mark.slow
def test_one_bad_input_never_ends_a_run(demo, tmp_path):
    """Ten good ones, with bad ones of all kinds between them."""
    folder, out = tmp_path / 'in', tmp_path / 'out'
    for seed in range(9):
        write_image(folder / f'good{seed}.png', seed)
    n_bad = bad_inputs(folder, out)
    write_film(folder / 'good9.mp4', [np.zeros((48, 64, 3), np.uint8)] * 3)
    before = digests(tmp_path)
    result = demo(folder, '--output', out, '--overlay', '--indexed', '--json',
                  out / 'all.json', '--html', out / 'all.html', '--force',
                  '--max-pixels', 10_000_000)
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    errors = [line for line in result.stderr.splitlines()
              if line.startswith('error: ')]
    assert len(errors) == n_bad, result.stderr
    assert f'{n_bad} of {n_bad + 10} failed' in result.stderr
    written = {out / f'good{i}_{kind}.png' for i in range(9)
               for kind in ('overlay', 'indexed')} | {
        out / 'good9_overlay.mp4', out / 'good9_indexed', out / 'all.json',
        out / 'all.html', *(out / f'good9_indexed/00000{i}.png'
                            for i in (1, 2, 3))}
    after = digests(tmp_path)
    assert after.keys() - before.keys() - {demo.folder} == written
    assert {path: after[path] for path in before} == before
    assert len(json.loads((out / 'all.json').read_text())) == 9 + 3
    page = (out / 'all.html').read_text()
    assert page.count('<figure>') == 9
    assert page.endswith('</html>\n')


@pytest.mark.slow
def test_what_a_format_cannot_hold(demo, tmp_path):
    """Pillow raises ValueError for so wide a WebP."""
    Image.new('RGB', (16_400, 2)).save(tmp_path / 'a.png')
    result = demo(tmp_path / 'a.png', '--overlay', '--output', 'a.webp',
                  '--json', 'a.json', '--html', 'a.html')
    assert result.returncode == 1
    error, *_ = result.stderr.splitlines()
    assert error.startswith(f'error: {tmp_path}/a.png: ')
    assert 'Traceback' not in result.stderr
    assert sorted(os.listdir(demo.folder)) == ['a.html', 'a.json']
