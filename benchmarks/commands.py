"""Compare whole commands with the work that they cannot avoid.

    python benchmarks/commands.py

The best of several runs counts, of whole processes with their start-up. Bounds:

- tf2npz.py takes at most 2.2 times as long as reading the graph, writing the
  same arrays with `np.savez` and importing Chainer, in at most 2.2 times the
  graph's size of memory; an archive at most 1 second more than `tar` and the
  work on what it unpacks; --inspect at most 1 second more than Chainer.
- demo.py on a 513 x 513 image takes, beside the network in a warm `predict`, at
  most 1.5 seconds, or 4 times the import of Chainer on a slow machine. Images
  and frames of a video run at 0.95 of the rate of `predict` or better.
- An image of an evaluation takes at most 1.03 times as long as in `predict`;
  two MPI processes of one thread at most 1.15 times as long as one of two.
- From image 10 to 200, and frame 100 to 2000, memory grows by at most 50 MB.
"""
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
ROUNDS, IMAGES, MANY, FRAMES = 3, 12, 200, 2000
SAVE = '''
import time, numpy as np
arrays = dict(np.load('model.npz'))
begun = time.perf_counter()
np.savez('copy.npz', **arrays)
print(time.perf_counter() - begun)
'''
CHAINER = f'import sys; sys.path[:0] = [{str(ROOT)!r}]\nimport models, chainer'
PREDICT = f'''{CHAINER}
import time
from media.images import read_image
model = models.DeepLabV3plusXception65(pretrained_model='model.npz')
image = read_image('film.png')
model.predict([image])  # compiles
begun = time.perf_counter()
model.predict([image])
print(time.perf_counter() - begun)
'''


def best(folder, *command, printed=False):
    """Return the least seconds (the process's own if printed), and the most
    bytes.
    """
    seconds, memory = [], []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), cwd=folder,
                                   stdout=subprocess.PIPE, text=True)
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f'{command[1:3]} failed')
        seconds.append(float(text) if printed else time.perf_counter() - begun)
        memory.append(usage.ru_maxrss * 1024)
    return min(seconds), max(memory)


def report(what, value, bound):
    print(f'{what:48}{value:8.2f}   bound {bound}', flush=True)


def write_inputs(folder):
    """Write a graph, an npz, images, films and a dataset."""
    import numpy as np
    from conftest import convert
    from fixture_images import write_film
    from fixture_weights import smooth_image, write_palette_graph
    from PIL import Image
    write_palette_graph(folder / 'graph.pb', 'voc', (513, 513))
    convert(folder / 'graph.pb', 'voc', folder / 'model.npz')
    (folder / 'checkpoint').write_bytes(os.urandom(200_000_000))
    with tarfile.open(folder / 'model.tar.gz', 'w:gz') as archive:
        for name in 'graph.pb', 'checkpoint':
            archive.add(folder / name, name)
    base = folder / 'VOCdevkit/VOC2012'
    for name in 'JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation':
        (base / name).mkdir(parents=True)
    label = np.random.default_rng(0).integers(21, size=(513, 513), dtype='u1')
    for i in range(MANY):
        image = Image.fromarray(smooth_image(513, 513, i % IMAGES))
        image.save(base / f'JPEGImages/{i:03}.jpg')
        Image.fromarray(label).save(base / f'SegmentationClass/{i:03}.png')
    image.save(folder / 'film.png')
    (base / 'ImageSets/Segmentation/val.txt').write_text(
        '\n'.join(f'{i:03}' for i in range(MANY)))
    for name, side, n_frames in ('film', 513, IMAGES), ('long', 65, FRAMES):
        write_film(folder / f'{name}.mp4', [
            smooth_image(side, side, i % IMAGES) for i in range(n_frames)])


def whole_commands(folder):
    python, size = sys.executable, (folder / 'graph.pb').stat().st_size
    convert, memory = best(folder, python, ROOT / 'tf2npz.py', 'voc',
                           'graph.pb', 'model.npz', '--force')
    archive, more = best(folder, python, ROOT / 'tf2npz.py', 'voc',
                         'model.tar.gz', 'archive.npz', '--force')
    untar, _ = best(folder, 'sh', '-c', 'tar xzf model.tar.gz -O > unpacked')
    inspect, _ = best(folder, python, ROOT / 'tf2npz.py', '--inspect',
                      'graph.pb')
    read, _ = best(folder, python, '-c', "open('graph.pb', 'rb').read()")
    save, _ = best(folder, python, '-c', SAVE, printed=True)
    chainer, _ = best(folder, python, '-c', CHAINER)
    predict, _ = best(folder, python, '-c', PREDICT, printed=True)
    demo, _ = best(folder, python, ROOT / 'demo.py', '--pretrained-model',
                   'model.npz', '--force', '--output', 'out.png', 'film.png')
    print(f'seconds: read {read:.2f}, savez {save:.2f}, import chainer '
          f'{chainer:.2f}, tf2npz {convert:.2f}, predict {predict:.2f}, demo '
          f'{demo:.2f}; tf2npz peak {max(memory, more) / 1e6:.0f} MB')
    report('tf2npz / (read + savez + import chainer)',
           convert / (read + save + chainer), 2.2)
    report('tf2npz peak memory / graph', max(memory, more) / size, 2.2)
    report('tf2npz of an archive - tar - tf2npz, seconds',
           archive - untar - convert, 1)
    report('inspection - import chainer, seconds', inspect - chainer, 1)
    report('demo - predict, seconds', demo - predict,
           f'1.5, or {4 * chainer:.2f}')


def evaluations(folder):
    def seconds(output, *mpiexec):
        begun = time.perf_counter()
        subprocess.run(
            [*mpiexec, sys.executable, ROOT / 'eval_voc.py', '--data-dir',
             folder, '--pretrained-model', folder / 'model.npz', '--limit',
             str(4 * IMAGES), '--output', folder / output],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - begun

    mpiexec = pathlib.Path(sys.executable).parent / 'mpiexec'
    one, two = zip(*((seconds(f'one{i}'), seconds(
        f'two{i}', mpiexec, '-n', '2')) for i in range(ROUNDS)), strict=True)
    report('two processes / one', min(two) / min(one), 1.15)


def within_a_process(folder, images):
    """Compare the demo and an evaluation with bare `predict`; watch memory."""
    import psutil

    from evaluation.labelled_images import LabelledImages, Subset
    from evaluation.run import State, evaluate
    from media.batch import Batch
    from media.inputs import find_inputs
    from media.outputs import DEFAULT, plan_outputs
    from media.segmentation import Segmenter
    from media.visualization import Style
    from models import DeepLabV3plusXception65
    from models.classes import labels_of
    data = LabelledImages('voc', folder, 'val')
    held = [data.read(i).image for i in range(IMAGES)]

    class Watched(DeepLabV3plusXception65):
        """Keeps how much memory was in use after each image."""

        def predict(self, imgs):
            result = super().predict(imgs)
            self.memory.append(psutil.Process().memory_info().rss)
            return result

    def run_demo(model, source, output):
        inputs, _, _ = find_inputs(list(map(str, source)))
        results = plan_outputs(DEFAULT, str(folder / output), inputs).results
        batch = Batch(Segmenter(model), Style(*labels_of(model, 'voc')),
                      results)
        assert not any(outcome.error for outcome in batch.run())

    def seconds(work, *arguments):
        begun = time.perf_counter()
        work(*arguments)
        return time.perf_counter() - begun

    model = DeepLabV3plusXception65(pretrained_model=folder / 'model.npz')
    model.predict(held[:1])
    some = sorted(images.iterdir())[:IMAGES]
    works = {
        'rate of the demo / of predict, images': lambda i: run_demo(
            model, some, f'images{i}'),
        'rate of the demo / of predict, video': lambda i: run_demo(
            model, [folder / 'film.mp4'], f'film{i}'),
        'rate of an evaluation / of predict': lambda i: evaluate(
            Subset(data, range(IMAGES)), model, State(21), lambda: None,
            show=False)}
    for what, work in works.items():
        bare, whole = zip(*((seconds(model.predict, held), seconds(work, i))
                            for i in range(ROUNDS)), strict=True)
        report(what, min(bare) / min(whole), 'at least '
               + ('0.97' if 'evaluation' in what else '0.95'))
    model = Watched(pretrained_model=folder / 'model.npz', output_stride=16,
                    min_input_size=65)
    for what, first, work in (
            ('frame', 100, lambda: run_demo(model, [folder / 'long.mp4'], 'a')),
            ('image', 10, lambda: run_demo(model, [images], 'b')),
            ('image of an evaluation', 10, lambda: evaluate(
                data, model, State(21), lambda: None, show=False))):
        model.memory = []
        work()
        report(f'growth from {what} {first} to {len(model.memory)}, MB',
               (model.memory[-1] - model.memory[first - 1]) / 1e6,
               'at most 50')


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # In a process of its own: what this one has held counts as its
        # children's memory.
        process = multiprocessing.get_context('spawn').Process(
            target=write_inputs, args=(folder,))
        process.start()
        process.join()
        whole_commands(folder)
        evaluations(folder)
        within_a_process(folder, folder / 'VOCdevkit/VOC2012/JPEGImages')


if __name__ == '__main__':
    main()
