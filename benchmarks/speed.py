"""Segment an image with this project, and with others, and compare.

    python benchmarks/speed.py
    python benchmarks/speed.py --sizes 513x513 --without chainercv tensorflow

All run the same random weights on the same image, from pixels in to labels
out, each in a process of its own, in turn with this project; the best run of
each counts. The floor is the network's matrix products alone, in NumPy: the
1x1 convolutions and the two dense 3x3 ones, at their sizes. PyTorch takes part
where it is installed.

Prints a table for each image size and output stride, to be read with these
bounds: `predict` takes at most 1.05 times the floor and 1/5 of ChainerCV's
time, no more than ONNX Runtime's, and 1/3 of TensorFlow's at 1025x2049;
output stride 16 is at least 2.8 times as fast as 8; a 1025x2049 image takes at
most 1.8 GB. Linux only.
"""
import argparse
import contextlib
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
N_CLASS = {'513x513': 21, '1025x2049': 19}  # others: 21
PATIENCE = 60  # seconds: one that has taken longer is not run again


# Contenders: each loads a model's files, and returns a function from an image,
# float32 CHW RGB, to labels (H, W).

def openvino(files):
    return _predict(_ours(files).to_openvino().freeze())


def chainer(files):
    return _predict(_ours(files).to_chainer())


def chainercv(files):
    import models  # noqa: F401, I001  (before Chainer)
    import chainer
    from chainercv.links import DeepLabV3plusXception65

    from models.constants import BACKBONE_EPS, HEAD_EPS
    chainer.config.train = False
    head = {'bn_kwargs': {'eps': HEAD_EPS}}
    return _predict(DeepLabV3plusXception65(
        files['n_class'], files['npz'], files['size'],
        extractor_kwargs={'bn_kwargs': {'eps': BACKBONE_EPS}},
        aspp_kwargs=head, decoder_kwargs=head))


def tensorflow(files):
    from convert.verification import import_tensorflow
    tf = import_tensorflow('this', 'leave it out')
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(tf.compat.v1.GraphDef.FromString(
            pathlib.Path(files['pb']).read_bytes()), name='')
    session = tf.compat.v1.Session(graph=graph)
    return lambda image: session.run('SemanticPredictions:0', {
        'ImageTensor:0': image.transpose(1, 2, 0)[None].astype(np.uint8)})[0]


def onnxruntime(files):
    os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
    import onnxruntime as ort

    from models.label_map import label_map
    session = ort.InferenceSession(
        files['onnx'], providers=['CPUExecutionProvider'])
    return lambda image: label_map(
        [session.run(None, {'image': prepared(image)})[0][0]],
        image.shape[1:], image.shape[1:])


def pytorch(files):
    import onnx
    import torch
    graph = onnx.load(files['onnx']).graph
    constants = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer}

    @torch.inference_mode()
    def run(image):
        x = torch.from_numpy(prepared(image))
        logits = run_in_pytorch(graph.node, {**constants, 'image': x})
        return torch.nn.functional.interpolate(
            logits, x.shape[2:], mode='bilinear', align_corners=True
            )[0].argmax(0).numpy()

    return run


def run_in_pytorch(nodes, tensors):
    """Run the nodes of a graph of models/onnx_graph.py; return the last."""
    import onnx
    import torch
    import torch.nn.functional as F
    uses = {name: i for i, node in enumerate(nodes) for name in node.input}
    for i, node in enumerate(nodes):
        x, *others = (tensors.get(name) for name in node.input)
        options = {attribute.name: onnx.helper.get_attribute_value(attribute)
                   for attribute in node.attribute}
        tensors[node.output[0]] = y = {
            'Conv': lambda x, *others, o=options: F.conv2d(
                x, *others, o['strides'], o['pads'][:2], o['dilations'],
                o['group']),
            'Shape': lambda x, o=options: torch.tensor(
                x.shape)[o.get('start', 0):o['end']],
            'Concat': lambda *xs, o=options: torch.cat(xs, o['axis']),
            'Resize': lambda x, *others: F.interpolate(
                x, others[-1][2:].tolist(), mode='bilinear',
                align_corners=True),
            'Relu': torch.relu, 'Add': torch.add,
            'Expand': lambda x, size: x.expand(-1, -1, *size.tolist()),
            'GlobalAveragePool': lambda x: x.mean((2, 3), keepdim=True),
            'Identity': lambda x: x}[node.op_type](x, *others)
        for name in node.input:
            if uses[name] == i:  # the last use
                tensors.pop(name, None)
    return y


def floor(files):
    rng = np.random.default_rng(0)
    products = [(rng.random((m, k), np.float32), rng.random((k, n), np.float32),
                 np.empty((m, n), 'f')) for m, k, n in matrix_products(files)]
    return lambda image: [np.matmul(*product[:2], out=product[2])
                          for product in products] and None


def matrix_products(files):
    """Return (m, k, n) of each dense convolution, as a matrix product."""
    from models.network_graph import NetworkGraph
    found = []

    class Products(NetworkGraph):
        """A tensor is its channels, height and width."""

        def conv(self, x, path, W, b, link):
            size = [-(-side // stride) for side, stride in zip(
                x[1:], link.stride, strict=True)]
            if link.groups == 1:
                found.append((len(W), W[0].size, size[0] * size[1]))
            return len(W), *size

        relu = staticmethod(lambda x: x)
        total = staticmethod(lambda x, y: x)
        mean = staticmethod(lambda x: (x[0], 1, 1))
        expand = resize = staticmethod(lambda x, like: (x[0], *like[1:]))
        concat = staticmethod(lambda *xs: (sum(x[0] for x in xs), *xs[0][1:]))

    link = _ours(files)
    Products(link).network(link, (3, *files['size']))
    return found


def _ours(files):
    from models import DeepLabV3plusXception65
    return DeepLabV3plusXception65(pretrained_model=files['npz'])


def _predict(link):
    return lambda image: link.predict([image])[0]


def prepared(image):
    return (image * np.float32(2 / 255) - 1)[None]


OURS, FLOOR = 'this project, OpenVINO', 'matrix products alone (floor)'
CONTENDERS = {  # in the order of the table
    OURS: openvino,
    'ONNX Runtime, exported file': onnxruntime,
    'PyTorch, same graph': pytorch,
    'TensorFlow, frozen graph': tensorflow,
    'this project, Chainer': chainer,
    'ChainerCV': chainercv,
    FLOOR: floor,
}


def work(pipe, make, files):
    """Load a contender and run it as often as asked, in its own process."""
    from fixture_weights import smooth_image

    from models.utils.errors import InputError
    try:
        run = make(files)
    except (ImportError, InputError) as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    image = smooth_image(*files['size']).transpose(2, 0, 1).astype('f')
    while pipe.recv() == 'run':
        begun = time.perf_counter()
        label = run(image)
        pipe.send((time.perf_counter() - begun, label, peak_memory()))


def peak_memory():
    """Return the most bytes that this process has held (not what it has from
    its parent, as `getrusage` would).
    """
    status = pathlib.Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) * 1024


def write_files(pipe, files, output_stride):
    """Write one network as frozen graph, npz and ONNX model."""
    from conftest import convert
    from fixture_graph import FixtureGraph
    from fixture_weights import random_weights
    n_class = files['n_class']
    graph = FixtureGraph(random_weights(n_class), n_class, files['size'],
                         output_stride)
    pathlib.Path(files['pb']).write_bytes(graph.graph.SerializeToString())
    convert(files['pb'], 'voc' if n_class == 21 else 'cityscapes',
            pathlib.Path(files['npz']))
    pathlib.Path(files['onnx']).write_bytes(_ours(files).onnx_model())


def start(function, *args):
    """Run function(pipe, *args) in a fresh process; return pipe, process."""
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *args),
                              daemon=True)  # ends with this one
    process.start()
    theirs.close()
    return ours, process


def measure(files, contenders, rounds):
    """Return name -> (best seconds, peak bytes, labels)."""
    runs = {name: [] for name in contenders}
    for name in contenders:
        running = {each: start(work, contenders[each], files)
                   for each in {name, *({OURS} & contenders.keys())}}
        try:
            if problem := [each for each in [
                    pipe.recv() for pipe, _ in running.values()] if each]:
                print(f'left out: {name}: {problem[0]}', flush=True)
                continue
            for _ in range(rounds):
                for each, (pipe, _) in running.items():
                    if sum(run[0] for run in runs[each]) < PATIENCE or (
                            each == OURS):
                        pipe.send('run')
                        runs[each].append(pipe.recv())
        except EOFError:
            print(f'left out: {name}: its process ended (out of memory?)',
                  flush=True)
        finally:
            for pipe, process in running.values():
                with contextlib.suppress(OSError):
                    pipe.send('end')
                process.join()
    return {name: (min(run[0] for run in found), max(run[2] for run in found),
                   found[0][1]) for name, found in runs.items() if found}


def report(size, output_stride, results):
    ours, bottom = results.get(OURS), results.get(FLOOR)
    print(f'\n{size}, output stride {output_stride}\n')
    print('| | seconds | of the floor | peak memory | labels like ours |')
    print('|---|---:|---:|---:|---:|')
    for name, (seconds, peak, label) in results.items():
        ratio = f'{seconds / bottom[0]:.2f}' if bottom else ''
        equal = ('' if label is None or ours is None
                 else f'{(label == ours[2]).mean():.3%}')
        held = '' if label is None else f'{peak / 1e9:.2f} GB'
        print(f'| {name} | {seconds:.2f} | {ratio} | {held} | {equal} |')
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=list(N_CLASS))
    parser.add_argument('--output-strides', nargs='+', type=int,
                        choices=[8, 16], default=[8, 16])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--without', nargs='+', default=[], choices=[
        make.__name__ for make in CONTENDERS.values()])
    args = parser.parse_args()
    contenders = {name: make for name, make in CONTENDERS.items()
                  if make.__name__ not in args.without}
    print(f'{platform.machine()}, {multiprocessing.cpu_count()} cores, '
          f'Python {platform.python_version()}', flush=True)
    for size in args.sizes:
        ours = {}
        for output_stride in args.output_strides:
            with tempfile.TemporaryDirectory() as folder:
                files = {'size': tuple(map(int, size.split('x'))),
                         'n_class': N_CLASS.get(size, 21),
                         **{kind: f'{folder}/model.{kind}'
                            for kind in ('pb', 'npz', 'onnx')}}
                start(write_files, files, output_stride)[1].join()
                results = measure(files, contenders, args.rounds)
            report(size, output_stride, results)
            ours[output_stride] = results.get(OURS)
        if ours.get(8) and ours.get(16):
            print(f'output stride 16 is {ours[8][0] / ours[16][0]:.2f} times '
                  'as fast as 8', flush=True)


if __name__ == '__main__':
    main()
