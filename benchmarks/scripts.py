"""Compare tf2npz.py and demo.py with the work they cannot avoid.

    python benchmarks/scripts.py

Each command is a whole process, start-up included; the best of several runs
counts. Bounds: the converter takes at most 2.2 times as long as reading the
graph, writing the same arrays with `np.savez` and importing Chainer, in at
most 2.2 times the graph's size of memory; an archive at most 1 second more
than `tar` and the work on what it unpacks; inspection at most 1 second more
than importing Chainer; the demo on a 513 x 513 image takes, beside the network
in a warm `predict`, at most 1.5 seconds, or 4 times the import of Chainer,
whichever is more on a slow machine.
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from common import ROOT, report

RUNS = 3
MIB = 1 << 20

GRAPH = f'''
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from fixture_weights import smooth_image, write_palette_graph
from PIL import Image
write_palette_graph('graph.pb', 'voc', (513, 513))
import os, tarfile
open('model.ckpt.data', 'wb').write(os.urandom(200_000_000))
with tarfile.open('model.tar.gz', 'w:gz') as archive:
    archive.add('graph.pb')
    archive.add('model.ckpt.data')
Image.fromarray(smooth_image(513, 513)).save('image.png')
'''
UNTAR = '''
import subprocess, time
start = time.perf_counter()
subprocess.run(['tar', 'xzf', 'model.tar.gz', '-O'], check=True,
               stdout=open('unpacked', 'wb'))
print(time.perf_counter() - start)
'''
READ = "open('graph.pb', 'rb').read()"
SAVE = '''
import time, numpy as np
arrays = dict(np.load('model.npz'))
start = time.perf_counter()
np.savez('copy.npz', **arrays)
print(time.perf_counter() - start)
'''
CHAINER = f'''
import sys
sys.path.insert(0, {str(ROOT)!r})
import models, chainer
'''
PREDICT = f'''
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from models import DeepLabV3plusXception65
from media.images import read_image
model = DeepLabV3plusXception65(pretrained_model='model.npz')
image = read_image('image.png')
model.predict([image])  # compiles
start = time.perf_counter()
model.predict([image])
print(time.perf_counter() - start)
'''


def run(folder, *command):
    """Return seconds, peak bytes and the printed text of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)],
                               cwd=folder, stdout=subprocess.PIPE, text=True)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'{command[:2]} failed')
    return time.perf_counter() - start, usage.ru_maxrss * 1024, text


def best(folder, *command, printed=False):
    """Return the least seconds (the process's own if printed), and memory."""
    results = [run(folder, *command) for _ in range(RUNS)]
    seconds = min(float(text) if printed else wall
                  for wall, _, text in results)
    return seconds, max(memory for _, memory, _ in results)


def main():
    with tempfile.TemporaryDirectory() as folder:
        run(folder, '-c', GRAPH)
        size = pathlib.Path(folder, 'graph.pb').stat().st_size
        convert, memory = best(folder, ROOT / 'tf2npz.py', 'voc', 'graph.pb',
                               'model.npz')
        untar, _ = best(folder, '-c', UNTAR, printed=True)
        archive, more = best(folder, ROOT / 'tf2npz.py', 'voc',
                             'model.tar.gz', 'archive.npz')
        inspect, _ = best(folder, ROOT / 'tf2npz.py', '--inspect', 'graph.pb')
        read, _ = best(folder, '-c', READ)
        save, _ = best(folder, '-c', SAVE, printed=True)
        chainer, _ = best(folder, '-c', CHAINER)
        predict, _ = best(folder, '-c', PREDICT, printed=True)
        demo, _ = best(folder, ROOT / 'demo.py', '--pretrained-model',
                       'model.npz', '--force', '--output', 'out.png',
                       'image.png')
    print(f'seconds: read {read:.2f}, savez {save:.2f}, import chainer '
          f'{chainer:.2f}, tf2npz {convert:.2f}, tar {untar:.2f}, '
          f'predict {predict:.2f}, demo {demo:.2f}; graph '
          f'{size / MIB:.0f} MiB, tf2npz peak {memory / MIB:.0f} and, of an '
          f'archive, {more / MIB:.0f} MiB')
    report('tf2npz / (read + savez + import chainer)',
           convert / (read + save + chainer), 2.2)
    report('tf2npz peak memory / graph', max(memory, more) / size, 2.2)
    report('tf2npz of an archive - tar - tf2npz, seconds',
           archive - untar - convert, 1)
    report('inspection - import chainer, seconds', inspect - chainer, 1)
    report('demo - predict, seconds', demo - predict,
           f'1.5, or {4 * chainer:.2f}')


if __name__ == '__main__':
    main()
