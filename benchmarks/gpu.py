"""Check and time the network on a real GPU, against the CPU.

    python benchmarks/gpu.py

Random weights, in float32 and with TF32 allowed, from an image of bytes, as
demo.py reads it, to labels: through CuPy, Chainer, and, where it is installed,
PyTorch, whose image and labels stay on the card. The floor is cuBLAS's matrix
products alone. Prints a table, and whether all is as it should be: please send
both. Needs CuPy (make setup-gpu); takes some minutes.
"""
import gc
import os
import pathlib
import sys
import tempfile

import numpy as np
from speed import image_of, run_apart, table, timed

from models import DeepLabV3plusXception65  # before Chainer
from models.chainer_compat import TF32
from models.gpu import check_gpu
from models.network_graph import NetworkGraph
from models.utils.errors import report_errors

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

SIZES = {'voc': (513, 513), 'cityscapes': (1025, 2049)}
SCALES = {'scales': (0.75, 1., 1.25), 'flip': True}
CONFIGURATIONS = [(dataset, {'output_stride': output_stride, **scales})
                  for dataset in SIZES for output_stride in (8, 16)
                  for scales in ({}, SCALES) if dataset == 'voc' or not scales]
ROUNDS = 10
# What the environment says of TF32, for this project and for PyTorch, which is
# fastest in float32 where it may use TF32 but NVIDIA's libraries may not.
PRECISIONS = {'float32': ({}, {TF32: '0'}), 'TF32': ({TF32: '1'},) * 2}
ROUNDING = 1 << 20  # bytes that CuPy may take for small arrays
MIN_EQUAL_LABELS = 0.9999  # of float32


def measure(folder):
    """Return the figures of each configuration."""
    import cupy
    check_gpu(0)
    pool, rows = cupy.get_default_memory_pool(), []

    class Peak(cupy.cuda.MemoryHook):
        name, used = 'Peak', 0

        def malloc_postprocess(self, **kwargs):
            self.used = max(self.used, pool.used_bytes())

    for dataset, options in CONFIGURATIONS:
        model = DeepLabV3plusXception65(
            pretrained_model=folder / f'{dataset}.npz', **options)
        name = (f'{dataset}, output stride {model.output_stride}'
                f'{", scales, mirrored" if model.flip else ""}')
        print(name, file=sys.stderr, flush=True)
        image = image_of(SIZES[dataset]).astype('u1')
        expected, = model.predict([image])
        backend = type(model.to_gpu(0).compile()).__name__
        counted = ROUNDING + pool.used_bytes() + model.memory_needed(
            *image.shape[1:])
        with Peak() as peak:
            label, = model.predict([image])
        with model.in_float32():
            label_in_float32, = model.predict([image])
        rows.append({
            'configuration': name, 'backend': backend,
            'equal_labels': (label == expected).mean(),
            'equal_in_float32': (label_in_float32 == expected).mean(),
            'peak': peak.used / 1e9, 'counted': counted / 1e9,
            'chainer': best_of(model.copy().to_chainer().predict, [image]),
            'seconds': best_of(model.freeze().predict, [image]),
            'floor': (None if model.flip or backend != 'CuPyEngine' else
                      products(model, image))})
        del model
        gc.collect()
        pool.free_all_blocks()
    return rows


def best_of(function, *args):
    """Return the best time of a function, which waits for the card."""
    return min(timed(function, *args)[0] for _ in range(ROUNDS))


def products(model, image):
    """Return the seconds of the network's matrix products, in cuBLAS."""
    import cupy
    plan = model.compile().plan(model.padded_size(*image.shape[1:]))

    def run():
        for step, start in zip(plan.steps, plan.launches, strict=True):
            if step.kind == 'product':
                start()
        cupy.cuda.Device().synchronize()

    return best_of(run)


def measure_pytorch(folder):
    """Return PyTorch's seconds in each configuration, as a CUDA graph; None
    without PyTorch, and for several scales.
    """
    found = []
    for dataset, options in CONFIGURATIONS:
        if torch is None or 'flip' in options:
            found.append(None)
            continue
        torch.backends.cuda.matmul.allow_tf32 = True
        link = DeepLabV3plusXception65(
            pretrained_model=folder / f'{dataset}.npz', **options)
        x = torch.from_numpy(
            link.prepare(image_of(SIZES[dataset]))[np.newaxis]).cuda()
        network, graph = TorchNetwork(link), torch.cuda.CUDAGraph()
        with torch.inference_mode():
            network.labels(link, x)  # brings the weights
            with torch.cuda.graph(graph):
                network.labels(link, x)

        def run(graph=graph):
            graph.replay()
            torch.cuda.synchronize()

        found.append(best_of(run))
    return found


class TorchNetwork(NetworkGraph):
    """Runs a link; keeps its weights on the card from the first run on."""

    def __init__(self, link):
        super().__init__(link)
        self.relu, self.total, self.weights = torch.relu, torch.add, {}

    def labels(self, link, x):
        return self.resize(self.network(link, x), x).argmax(1)

    def conv(self, x, path, W, b, link):
        if path not in self.weights:
            self.weights[path] = [torch.from_numpy(each.copy()).cuda()
                                  for each in (W, b)]
        return F.conv2d(x, *self.weights[path], link.stride, link.pad,
                        link.dilate, link.groups)

    def concat(self, *xs):
        return torch.cat(xs, 1)

    def mean(self, x):
        return x.mean((2, 3), keepdim=True)

    def expand(self, x, like):
        return x.expand(-1, -1, *like.shape[2:])

    def resize(self, x, like):
        return F.interpolate(x, like.shape[2:], mode='bilinear',
                             align_corners=True)


def versions():
    """Return what the figures depend on, as text."""
    import chainer
    import cupy
    card = cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()
    return (f'{card}, CuPy {cupy.__version__}, PyTorch '
            f'{torch and torch.__version__}, cuDNN '
            f'{chainer.backends.cuda.cudnn_enabled}')


def table_of(found):
    """Return the figures, lists of rows by precision, as Markdown."""
    times = 'seconds', 'chainer', 'pytorch', 'floor'
    head = ('| | precision | ms | Chainer | PyTorch | floor | of the floor | '
            'labels like the CPU | peak |', f'|---|---|{7 * "---:|"}')
    return table(head, [(
        row['configuration'], precision,
        *(f'{1e3 * row[name]:.1f}' if row[name] else '' for name in times),
        f'{row["seconds"] / row["floor"]:.2f}' if row['floor'] else '',
        f'{row["equal_labels"]:.3%}', f'{row["peak"]:.2f} GB')
        for precision, rows in found.items() for row in rows])


def verdict(found):
    """Return a sentence, whether all is as it should be."""
    problems = []
    for precision, rows in found.items():
        for row in rows:
            equal = row['equal_in_float32' if precision == 'TF32' else
                        'equal_labels']
            if (row['backend'] != 'CuPyEngine' or equal < MIN_EQUAL_LABELS
                    or row['peak'] > row['counted']):
                problems.append(
                    f'{row["configuration"]}, {precision}: {row["backend"]}, '
                    f'{equal:.3%} of the labels in float32, {row["peak"]:.2f} '
                    f'of {row["counted"]:.2f} GB')
    if problems:
        return f'NOT as it should be: {"; ".join(problems)}.'
    return ('All is as it should be: CuPyEngine gives at least '
            f'{MIN_EQUAL_LABELS:.2%} of the labels, in the memory counted.')


def main():
    with report_errors(), tempfile.TemporaryDirectory() as name:
        from fixture_weights import convert, write_random_graph
        check_gpu(0)
        folder, found = pathlib.Path(name), {}
        for dataset, size in SIZES.items():
            write_random_graph(folder / 'a.pb', dataset, size)
            convert(folder / 'a.pb', dataset, folder / f'{dataset}.npz')
        for precision, settings in PRECISIONS.items():
            results = []
            for function, setting in zip((measure, measure_pytorch), settings,
                                         strict=True):
                os.environ.pop(TF32, None)
                os.environ.update(setting)  # read at the start of a process
                results.append(run_apart(function, folder))
            found[precision] = [{**row, 'pytorch': seconds}
                                for row, seconds in zip(*results, strict=True)]
        print(versions(), table_of(found), verdict(found), sep='\n\n')


if __name__ == '__main__':
    main()
