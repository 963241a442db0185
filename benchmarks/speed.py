"""Segment an image with this project, and with others, and compare.

    python benchmarks/speed.py
    python benchmarks/speed.py --sizes 513x513 --without chainercv tensorflow

All run the same random weights on the same image, from pixels in to labels
out, each in a process of its own, in turn with this project; the best run of
each counts. The floor is the network's matrix products alone, in NumPy: the
1x1 convolutions and the two dense 3x3 ones, at their sizes.

Bounds: `predict` takes at most 1.05 times the floor and 1/5 of ChainerCV's
time, and no more than ONNX Runtime's and TensorFlow's; output stride 16 is at
least 2.8 times as fast as 8; a 1025x2049 image takes at most 1.8 GB.
Linux only.
"""
import argparse
import concurrent.futures
import contextlib
import functools
import math
import multiprocessing
import os
import pathlib
import platform
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
PATIENCE = 60  # seconds: one that has taken longer is not run again


def timed(function, *args):
    """Return the seconds that a call takes, and what it returns."""
    begun = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - begun, result


def own_process():
    """Return an executor of one fresh process."""
    return concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context('spawn'))


def run_apart(function, *args):
    """Return what a function returns in a process of its own."""
    with own_process() as process:
        return process.submit(function, *args).result()


def image_of(size):
    """Return an image (3, H, W), float32, RGB in [0, 255], smooth."""
    from fixture_weights import smooth_image
    return smooth_image(*size).transpose(2, 0, 1).astype('f')


def table(head, rows):
    """Return rows of cells as Markdown, below the lines of a head."""
    return '\n'.join([*head, *(f'| {" | ".join(row)} |' for row in rows)])


# Contenders: each loads model.pb, model.npz or model.onnx of a folder, and
# returns what works as `predict`: a list of one image, float32 CHW RGB, in, a
# list of its labels (H, W) out.

def openvino(folder):
    return _ours(folder).to_openvino().freeze().predict


def chainer(folder):
    return _ours(folder).to_chainer().predict


def chainercv(folder):
    import models  # noqa: F401, I001  (before Chainer)
    import chainer
    from chainercv.links import DeepLabV3plusXception65

    from models.constants import BACKBONE_EPS, HEAD_EPS
    from models.weights import WeightsFile
    chainer.config.train = False
    head = {'bn_kwargs': {'eps': HEAD_EPS}}
    npz = folder / 'model.npz'
    known = WeightsFile(npz)
    return DeepLabV3plusXception65(
        known.n_class, npz, known.min_input_size,
        extractor_kwargs={'bn_kwargs': {'eps': BACKBONE_EPS}},
        aspp_kwargs=head, decoder_kwargs=head).predict


def tensorflow(folder):
    from convert.verification import import_tensorflow
    tf = import_tensorflow('this', 'leave it out')
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(tf.compat.v1.GraphDef.FromString(
            (folder / 'model.pb').read_bytes()), name='')
    session = tf.compat.v1.Session(graph=graph)
    return lambda imgs: session.run('SemanticPredictions:0', {
        'ImageTensor:0': imgs[0].transpose(1, 2, 0)[None].astype(np.uint8)})


def onnxruntime(folder):
    os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
    import onnxruntime as ort

    from models.resizing import label_map
    session = ort.InferenceSession(
        folder / 'model.onnx', providers=['CPUExecutionProvider'])

    def run(imgs):
        x = imgs[0][None] * np.float32(2 / 255) - 1
        logits, = session.run(None, {'image': x})
        return [label_map(logits, x.shape[2:], x.shape[2:])]

    return run


def floor(folder):
    rng = np.random.default_rng(0)
    products = [(rng.random((m, k), np.float32), rng.random((k, n), np.float32),
                 np.empty((m, n), 'f')) for m, k, n in matrix_products(folder)]

    def run(imgs):
        for left, right, out in products:
            np.matmul(left, right, out=out)
        return [None]

    return run


def matrix_products(folder):
    """Return (m, k, n) of each dense convolution, as a matrix product."""
    import onnx
    link = _ours(folder)
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(
        link.onnx_model(size=link.min_input_size))).graph
    kernels = {each.name: each.dims for each in graph.initializer}
    shapes = {each.name: [dim.dim_value for dim in
                          each.type.tensor_type.shape.dim]
              for each in (*graph.value_info, *graph.output)}
    found = [(kernels[node.input[1]], shapes[node.output[0]])
             for node in graph.node if node.op_type == 'Conv']
    return [(out_channels, in_channels * math.prod(ksize), height * width)
            for (out_channels, in_channels, *ksize), (*_, height, width)
            in found if in_channels > 1]  # not depthwise


def _ours(folder):
    from models import DeepLabV3plusXception65
    return DeepLabV3plusXception65(pretrained_model=folder / 'model.npz')


OURS, FLOOR = 'this project, OpenVINO', 'matrix products alone (floor)'
CONTENDERS = {  # in the order of the table
    OURS: openvino,
    'ONNX Runtime, exported file': onnxruntime,
    'TensorFlow, frozen graph': tensorflow,
    'this project, Chainer': chainer,
    'ChainerCV': chainercv,
    FLOOR: floor,
}


@functools.cache
def loaded(make, folder, size):
    return make(folder), [image_of(size)]


def run_once(*contender):
    """Run a contender, which is loaded once in a process; return seconds, peak
    bytes and labels.
    """
    seconds, labels = timed(*loaded(*contender))
    return seconds, peak_memory(), labels[0]


def peak_memory():
    """Return the most bytes this process held; getrusage knows its parent's."""
    status = pathlib.Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) * 1024


def write_model(folder, size, output_stride):
    from fixture_weights import convert, write_random_graph
    write_random_graph(folder / 'model.pb', 'voc', size,
                       output_stride=output_stride)
    convert(folder / 'model.pb', 'voc', folder / 'model.npz')
    (folder / 'model.onnx').write_bytes(_ours(folder).onnx_model())


def measure(folder, size, contenders, rounds):
    """Return name -> (best seconds, peak bytes, labels)."""
    from models.utils.errors import InputError
    runs = {name: [] for name in contenders}
    for name in contenders:
        with contextlib.ExitStack() as stack:
            processes = {each: stack.enter_context(own_process())
                         for each in {name, OURS}}
            try:
                for each in rounds * [*processes]:
                    if sum(run[0] for run in runs[each]) < PATIENCE or (
                            each == OURS):
                        runs[each].append(processes[each].submit(
                            run_once, contenders[each], folder, size).result())
            except (ImportError, InputError) as error:
                print(f'left out: {name}: {error}', flush=True)
            except concurrent.futures.process.BrokenProcessPool:
                print(f'left out: {name}: its process ended (out of memory?)',
                      flush=True)
    return {name: (min(run[0] for run in found), max(run[1] for run in found),
                   found[0][2]) for name, found in runs.items() if found}


def report(results):
    """Return the results as Markdown."""
    ours, bottom = results[OURS], results.get(FLOOR)
    return table(
        ('| | seconds | of the floor | peak memory | labels like ours |',
         '|---|---:|---:|---:|---:|'),
        [(name, f'{seconds:.2f}',
          f'{seconds / bottom[0]:.2f}' if bottom else '',
          '' if label is None else f'{peak / 1e9:.2f} GB',
          '' if label is None else f'{(label == ours[2]).mean():.3%}')
         for name, (seconds, peak, label) in results.items()])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=['513x513', '1025x2049'])
    parser.add_argument('--output-strides', nargs='+', type=int,
                        choices=[8, 16], default=[8, 16])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--without', nargs='+', default=[], choices=[
        make.__name__ for make in CONTENDERS.values() if make is not openvino])
    args = parser.parse_args()
    contenders = {name: make for name, make in CONTENDERS.items()
                  if make.__name__ not in args.without}
    print(f'{platform.machine()}, {multiprocessing.cpu_count()} cores, '
          f'Python {platform.python_version()}', flush=True)
    for sides in args.sizes:
        size = tuple(map(int, sides.split('x')))
        for output_stride in args.output_strides:
            with tempfile.TemporaryDirectory() as name:
                folder = pathlib.Path(name)
                run_apart(write_model, folder, size, output_stride)
                results = measure(folder, size, contenders, args.rounds)
            print(f'\n{sides}, output stride {output_stride}\n\n'
                  f'{report(results)}\n', flush=True)


if __name__ == '__main__':
    main()
