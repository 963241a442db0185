"""Segment an image with this project, and with others, and compare.

    python benchmarks/speed.py
    python benchmarks/speed.py --sizes 513x513 --without chainercv tensorflow

All run the same random weights on the same image, from pixels in to labels
out, each in a process of its own, one at a time and in turn; the best run of
each counts. The floor is the network's matrix products alone, in NumPy: the
1x1 convolutions and the two dense 3x3 ones, at their sizes. PyTorch takes
part where it is installed.

Prints a table for each image size and output stride, to be read with these
bounds: `predict` takes at most 1.05 times the floor and 1/5 of ChainerCV's
time, no more than ONNX Runtime's, and 1/3 of TensorFlow's at 1025x2049;
resizing logits and choosing labels takes at most 2 % of it; output stride 16
is at least 2.8 times as fast as 8; and a 1025x2049 image takes at most 1.8 GB,
the twentieth no more than the second. Linux only.
"""
import argparse
import contextlib
import multiprocessing
import pathlib
import platform
import tempfile
import time

from common import convert, memory
from contenders import CONTENDERS, FLOOR, OURS, openvino

MODELS = {'513x513': 'voc', '1025x2049': 'cityscapes'}  # others: voc
PATIENCE = 60  # seconds: one that has taken longer is not run again


def work(pipe, make, files):
    """Load a contender and run it as often as asked, in its own process."""
    try:
        contender = make(files)
    except ImportError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    predict = getattr(contender, 'predict', None)
    image = make_image(files['size'])
    while pipe.recv() == 'run':
        start = time.perf_counter()
        label = predict([image])[0] if predict else contender(image)
        pipe.send((time.perf_counter() - start, label, memory('VmHWM')))


def work_on_frames(pipe, files, n_frames):
    """Time the last step, and see whether memory grows over the frames."""
    from models.label_map import label_map
    model = openvino(files)
    image = make_image(files['size'])
    held, share = [], []
    for _ in range(n_frames):
        start = time.perf_counter()
        model.predict([image])
        predict = time.perf_counter() - start
        logits = [model.compile()(model.prepare(image)[None])[0]]
        start = time.perf_counter()
        label_map(logits, files['size'], files['size'])
        share.append((time.perf_counter() - start) / predict)
        held.append(memory('VmRSS'))
    pipe.send((min(share), held[-1] - held[1]))


def make_image(size):
    from fixture_weights import smooth_image
    return smooth_image(*size).transpose(2, 0, 1).astype('f')


def describe(folder, size):
    """Return what the contenders need to know of the model in a folder."""
    from models.constants import DATASETS
    dataset = MODELS.get('x'.join(map(str, size)), 'voc')
    return {'dataset': dataset, 'size': size,
            'n_class': DATASETS[dataset]['n_class'],
            **{kind: f'{folder}/model.{kind}'
               for kind in ('pb', 'npz', 'onnx')}}


def write_files(pipe, files, output_stride):
    """Write one network as frozen graph, npz and ONNX model."""
    from fixture_graph import FixtureGraph
    from fixture_weights import random_weights

    from models import DeepLabV3plusXception65
    n_class = files['n_class']
    graph = FixtureGraph(random_weights(n_class), n_class, files['size'],
                         output_stride)
    pathlib.Path(files['pb']).write_bytes(graph.graph.SerializeToString())
    convert(files['pb'], files['dataset'], files['npz'])
    link = DeepLabV3plusXception65(pretrained_model=files['npz'])
    pathlib.Path(files['onnx']).write_bytes(link.onnx_model())


def measure(files, contenders, rounds):
    """Return {name: (best seconds, peak bytes, labels)}.

    This project and the floor run beside each of the others in turn; all of
    them at once would not fit in the memory.
    """
    runs = {name: [] for name in contenders}
    steady = {name: start(work, contenders[name], files)
              for name in (OURS, FLOOR) if name in contenders}
    others = [name for name in contenders if name not in steady]
    for pipe, _ in steady.values():
        pipe.recv()
    for name in others or [None]:
        running = dict(steady)
        if name is not None:
            running[name] = start(work, contenders[name], files)
        try:
            if name is not None and (problem := running[name][0].recv()):
                print(f'left out: {name}: {problem}', flush=True)
                continue
            for _ in range(rounds):
                for each, (pipe, _) in running.items():
                    if each in steady or sum(
                            seconds for seconds, _, _ in runs[each]) < PATIENCE:
                        pipe.send('run')
                        runs[each].append(pipe.recv())
        except EOFError:
            print(f'left out: {name}: its process ended (out of memory?)',
                  flush=True)
        finally:
            if name is not None:
                stop(*running[name])
    for pipe, process in steady.values():
        stop(pipe, process)
    return {name: (min(run[0] for run in found), max(run[2] for run in found),
                   found[0][1]) for name, found in runs.items() if found}


def stop(pipe, process):
    with contextlib.suppress(OSError):
        pipe.send('end')
    process.join()


def start(function, *args):
    """Run function(pipe, *args) in a fresh process; return pipe, process."""
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *args),
                              daemon=True)  # ends with this one
    process.start()
    theirs.close()
    return ours, process


def report(size, output_stride, results):
    ours = results.get(OURS)
    bottom = results.get(FLOOR)
    print(f'\n{size[0]}x{size[1]}, output stride {output_stride}\n')
    print('| | seconds | of the floor | peak memory | labels like ours |')
    print('|---|---:|---:|---:|---:|')
    for name, (seconds, peak, label) in results.items():
        ratio = f'{seconds / bottom[0]:.2f}' if bottom else ''
        equal = ('' if label is None or ours is None
                 else f'{(label == ours[2]).mean():.3%}')
        held = '' if label is None else f'{peak / 1e9:.2f} GB'
        print(f'| {name} | {seconds:.2f} | {ratio} | {held} | {equal} |')
    print(flush=True)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    short = [make.__name__ for make in CONTENDERS.values()]
    parser.add_argument('--sizes', nargs='+', default=list(MODELS))
    parser.add_argument('--output-strides', nargs='+', type=int,
                        choices=[8, 16], default=[8, 16])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--frames', type=int, default=20,
                        help='over which the memory is to stay the same '
                             '(default: 20)')
    parser.add_argument('--without', nargs='+', choices=short, default=[])
    return parser.parse_args()


def main():
    args = parse_args()
    contenders = {name: make for name, make in CONTENDERS.items()
                  if make.__name__ not in args.without}
    print(f'{platform.machine()}, {multiprocessing.cpu_count()} cores, '
          f'Python {platform.python_version()}', flush=True)
    for text in args.sizes:
        size, ours = tuple(map(int, text.split('x'))), {}
        for output_stride in args.output_strides:
            with tempfile.TemporaryDirectory() as folder:
                files = describe(folder, size)
                _, process = start(write_files, files, output_stride)
                process.join()
                results = measure(files, contenders, args.rounds)
                report(size, output_stride, results)
                pipe, process = start(work_on_frames, files, args.frames)
                share, growth = pipe.recv()
                process.join()
            print(f'last step: {share:.1%} of predict; memory grows by '
                  f'{growth / 1e6:.0f} MB from image 2 to {args.frames}',
                  flush=True)
            ours[output_stride] = results.get(OURS)
        if ours.get(8) and ours.get(16):
            print(f'output stride 16 is {ours[8][0] / ours[16][0]:.2f} times '
                  'as fast as 8', flush=True)


if __name__ == '__main__':
    main()
