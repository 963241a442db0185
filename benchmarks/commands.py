"""Compare whole commands with the work that they cannot avoid.

    python benchmarks/commands.py

Prints each figure beside its bound: at most so much, if not said otherwise. The
best of several runs counts; whole processes with their start-up, at 513 x 513.
"""
import contextlib
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time

from speed import ROOT, run_apart, timed

ROUNDS, IMAGES, MANY, FRAMES = 3, 12, 200, 2000


def best(folder, *commands):
    """Run commands in turn; return the least seconds and most bytes of each."""
    seconds, memory = [[[] for _ in commands] for _ in range(2)]
    for _ in range(ROUNDS):
        for i, command in enumerate(commands):
            begun = time.perf_counter()
            process = subprocess.Popen(list(map(str, command)), cwd=folder,
                                       stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f'{command[1:3]} failed')
            seconds[i].append(time.perf_counter() - begun)
            memory[i].append(usage.ru_maxrss * 1024)
    return list(zip(map(min, seconds), map(max, memory), strict=True))


def report(what, value, bound):
    print(f'{what:48}{value:8.2f}   bound {bound}', flush=True)


def write_inputs(folder):
    """Write a graph, an npz, videos and a dataset."""
    from fixture_images import patches, write_film, write_tree
    from fixture_weights import convert, smooth_image, write_palette_graph
    write_palette_graph(folder / 'graph.pb', 'voc', (513, 513))
    convert(folder / 'graph.pb', 'voc', folder / 'model.npz')
    write_tree('voc', folder, patches('voc', MANY, size=(513, 513)))
    for name, side, n_frames in ('short', 513, IMAGES), ('long', 65, FRAMES):
        write_film(folder / f'{name}.mp4', [
            smooth_image(side, side, i % IMAGES) for i in range(n_frames)])


def save_seconds(folder):
    import numpy as np
    with np.load(folder / 'model.npz') as file:
        arrays = dict(file)
    return timed(lambda: np.savez(folder / 'copy.npz', **arrays))[0]


def predict_seconds(folder, paths):
    """Return the seconds of a warm `predict` of images."""
    from media.images import read_image
    from models import DeepLabV3plusXception65
    model = DeepLabV3plusXception65(pretrained_model=folder / 'model.npz')
    images = [read_image(path) for path in paths]
    model.predict(images[:1])  # compiles
    return timed(model.predict, images)[0]


def whole_commands(folder, image):
    python = sys.executable
    (read, _), (chainer, _), (convert, peak), (demo, _) = best(
        folder,
        (python, '-c', "open('graph.pb', 'rb').read()"),
        ('env', f'PYTHONPATH={ROOT}', python, '-c', 'import models, chainer'),
        (python, ROOT / 'tf2npz.py', 'voc', 'graph.pb', 'model.npz',
         '--force'),
        (python, ROOT / 'demo.py', '--pretrained-model', 'model.npz',
         '--force', '--output', 'out.png', image))
    save = min(run_apart(save_seconds, folder) for _ in range(ROUNDS))
    predict = min(run_apart(predict_seconds, folder, [image])
                  for _ in range(ROUNDS))
    print(f'seconds: read {read:.2f}, savez {save:.2f}, import chainer '
          f'{chainer:.2f}, tf2npz {convert:.2f}, predict {predict:.2f}, demo '
          f'{demo:.2f}; tf2npz peak {peak / 1e6:.0f} MB')
    report('tf2npz / (read + savez + import chainer)',
           convert / (read + save + chainer), 2.2)
    report('tf2npz peak memory / graph',
           peak / (folder / 'graph.pb').stat().st_size, 2.2)
    report('demo - predict, seconds', demo - predict,
           f'1.5, or {4 * chainer:.2f}')


def two_processes(folder):
    command = (sys.executable, ROOT / 'eval_voc.py', '--data-dir', folder,
               '--pretrained-model', 'model.npz', '--limit', 4 * IMAGES,
               '--force', '--output')
    mpiexec = pathlib.Path(sys.executable).with_name('mpiexec')
    (one, _), (two, _) = best(folder, (*command, 'one'),
                              (mpiexec, '-n', 2, *command, 'two'))
    report('two processes / one', two / one, 1.15)


def watch(folder, script, *args):
    """Run a script; return (seconds, bytes in use) after each `predict`."""
    import psutil

    from models import DeepLabV3plusXception65
    predict, seen = DeepLabV3plusXception65.predict, []

    def watched(self, imgs):
        result = predict(self, imgs)
        seen.append((time.perf_counter(), psutil.Process().memory_info().rss))
        return result

    DeepLabV3plusXception65.predict = watched
    output = folder / f'results of {script}'
    output.mkdir(exist_ok=True)
    sys.argv = [script, '--pretrained-model', str(folder / 'model.npz'),
                '--output', str(output), '--force', *map(str, args)]
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(
            nowhere), contextlib.redirect_stderr(nowhere):
        runpy.run_path(str(ROOT / script), run_name='__main__')
    return seen


def rates(folder, paths):
    """Compare the demo and an evaluation with bare `predict` of images."""
    for what, bound, *command in (
            ('the demo / of predict, images', 0.95, 'demo.py', *paths),
            ('the demo / of predict, video', 0.95, 'demo.py',
             folder / 'short.mp4'),
            ('an evaluation / of predict', 0.97, 'eval_voc.py',
             '--data-dir', folder, '--limit', IMAGES)):
        bare, whole = [], []
        for _ in range(ROUNDS):
            bare.append(run_apart(predict_seconds, folder, paths) / IMAGES)
            seen = run_apart(watch, folder, *command)[:IMAGES]
            whole.append((seen[-1][0] - seen[0][0]) / (IMAGES - 1))
        report(f'rate of {what}', min(bare) / min(whole), f'at least {bound}')


def growth(folder, images):
    """Watch the memory over many frames and images."""
    small = '--output-stride', 16, '--input-size', 65
    for what, first, last, *command in (
            ('frame', 100, FRAMES, 'demo.py', folder / 'long.mp4'),
            ('image', 10, MANY, 'demo.py', images),
            ('image of an evaluation', 10, MANY, 'eval_voc.py', '--data-dir',
             folder)):
        held = [size for _, size in run_apart(watch, folder, *command, *small)]
        report(f'growth from {what} {first} to {last}, MB',
               (held[last - 1] - held[first - 1]) / 1e6, 'at most 50')


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # What this process has held counts as its children's memory.
        run_apart(write_inputs, folder)
        images = folder / 'VOCdevkit/VOC2012/JPEGImages'
        paths = sorted(images.iterdir())[:IMAGES]
        whole_commands(folder, paths[0])
        two_processes(folder)
        rates(folder, paths)
        growth(folder, images)


if __name__ == '__main__':
    main()
