"""Check and time the network on a real GPU, against the CPU.

    python benchmarks/gpu.py

Random weights, at output stride 8 and 16, with and without scales, in float32
and with TF32 allowed, through CuPy and through Chainer. Prints two tables and a
sentence that says whether all is as it should be, and writes gpu.json beside:
please send all. Needs CuPy (make setup-gpu); takes some minutes, most of them
on the CPU.
"""
import collections
import gc
import json
import os
import pathlib
import platform
import sys
import tempfile

import numpy as np
from speed import image_of, run_apart, table, timed

SIZES = {'voc': (513, 513), 'cityscapes': (1025, 2049)}
SCALES = {'scales': (0.75, 1., 1.25), 'flip': True}
CONFIGURATIONS = [(dataset, {'output_stride': output_stride, **scales})
                  for dataset in SIZES for output_stride in (8, 16)
                  for scales in ({}, SCALES) if dataset == 'voc' or not scales]
ROUNDS = 5
PRECISIONS = {'float32': '0', 'TF32': '1'}  # NVIDIA_TF32_OVERRIDE
ROUNDING = 1 << 20  # bytes that CuPy may take for small arrays
MIN_EQUAL_LABELS = 0.9999  # of float32
# Seconds at most of an H200 in float32, without scales: by size and stride.
GOALS = {('voc', 8): 0.012, ('voc', 16): 0.005,
         ('cityscapes', 8): 0.075, ('cityscapes', 16): 0.027}


def describe(dataset, output_stride, scales=(1.,), flip=False):
    height, width = SIZES[dataset]
    return (f'{height}x{width}, output stride {output_stride}, scales '
            f'{", ".join(f"{scale:g}" for scale in scales)}'
            f'{", mirrored" if flip else ""}')


def load(folder, dataset, options):
    from models import DeepLabV3plusXception65
    return DeepLabV3plusXception65(
        pretrained_model=folder / f'{dataset}.npz', **options)


def write_expected(folder):
    """Write the weights, and the labels of the CPU."""
    from fixture_weights import convert, write_random_graph
    for dataset, size in SIZES.items():
        write_random_graph(folder / 'a.pb', dataset, size)
        convert(folder / 'a.pb', dataset, folder / f'{dataset}.npz')
    for i, (dataset, options) in enumerate(CONFIGURATIONS):
        print(f'on the CPU: {describe(dataset, **options)}', file=sys.stderr,
              flush=True)
        np.save(folder / f'{i}.npy', load(folder, dataset, options).predict(
            [image_of(SIZES[dataset])])[0])


def measure(folder):
    """Return the figures of each configuration."""
    import models  # noqa: F401, I001  (before Chainer)
    import cupy

    from models.cupy_engine import CuPyEngine
    from models.gpu import check_gpu
    check_gpu(0)
    pool = cupy.get_default_memory_pool()

    class Peak(cupy.cuda.MemoryHook):
        name, used = 'Peak', 0

        def malloc_postprocess(self, **kwargs):
            self.used = max(self.used, pool.used_bytes())

    rows = []
    for i, (dataset, options) in enumerate(CONFIGURATIONS):
        model, image = load(folder, dataset, options), image_of(SIZES[dataset])
        expected = np.load(folder / f'{i}.npy')
        model.to_gpu(0)
        backend = type(model.compile()).__name__
        counted = ROUNDING + pool.used_bytes() + model.memory_needed(
            *image.shape[1:])
        with Peak() as peak:
            label, = model.predict([image])
        with model.in_float32():
            label_in_float32, = model.predict([image])
        rows.append({
            'configuration': describe(dataset, **options), 'backend': backend,
            'equal_labels': float((label == expected).mean()),
            'equal_in_float32': float((label_in_float32 == expected).mean()),
            'peak_bytes': peak.used, 'pool_bytes': pool.total_bytes(),
            'counted_bytes': counted, 'seconds': best_of(model, image),
            'goal': (None if 'scales' in options else
                     GOALS[dataset, options['output_stride']]),
            'parts': (parts(model, image)
                      if backend == CuPyEngine.__name__ else {}),
            'frozen_seconds': best_of(
                load(folder, dataset, options).to_gpu(0).freeze(), image),
            'chainer_seconds': best_of(model.to_chainer(), image)})
        del model
        gc.collect()
        pool.free_all_blocks()
    return rows


def best_of(model, image):
    """Return the best time of `predict`, which ends with labels on the CPU."""
    return min(timed(model.predict, [image])[0] for _ in range(ROUNDS + 1))


def parts(model, image):
    """Return kernel -> (launches, seconds on the card) of the network at scale
    1; `product` is that of cuBLAS, `all` all of them in turn.
    """
    launches = collections.defaultdict(list)
    plan = model.compile().plan(model.padded_size(*image.shape[1:]))
    for step, launch in zip(plan.steps, plan.launches, strict=True):
        launches[step.kind].append(launch)
    launches['all'] = plan.launches
    return {name: (len(each), min(seconds_on_card(each) for _ in range(
        ROUNDS + 1))) for name, each in launches.items()}


def seconds_on_card(launches):
    import cupy

    from models.cupy_engine import run
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    run(*launches)
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1e3


def versions():
    """Return what the figures depend on."""
    import chainer
    import cupy
    runtime = cupy.cuda.runtime
    return {
        'card': runtime.getDeviceProperties(0)['name'].decode(),
        'compute capability': cupy.cuda.Device(0).compute_capability,
        'memory': runtime.memGetInfo()[1],
        'driver': runtime.driverGetVersion(),
        'CUDA': runtime.runtimeGetVersion(),
        'cuDNN': (cupy.cuda.cudnn.getVersion()
                  if chainer.backends.cuda.cudnn_enabled else None),
        'CuPy': cupy.__version__, 'Chainer': chainer.__version__,
        'NumPy': np.__version__, 'Python': platform.python_version()}


def table_of(found):
    """Return the figures, lists of rows by precision, as Markdown."""
    head = ('| | precision | ms | frozen | goal (H200) | Chainer | labels like '
            'the CPU | peak | pool |',
            '|---|---|---:|---:|---:|---:|---:|---:|---:|')
    return table(head, [(
        row['configuration'], precision, _ms(row['seconds']),
        _ms(row['frozen_seconds']), _ms(row['goal']),
        _ms(row['chainer_seconds']), f'{row["equal_labels"]:.3%}',
        f'{row["peak_bytes"] / 1e9:.2f} GB',
        f'{row["pool_bytes"] / 1e9:.2f} GB')
        for precision, rows in found.items() for row in rows])


def _ms(seconds):
    return '' if seconds is None else f'{1e3 * seconds:.1f}'


def table_of_parts(found):
    """Return the milliseconds of each kernel at scale 1, on the card."""
    names = sorted({name for rows in found.values() for row in rows
                    for name in row['parts']})
    head = (f'| | precision | {" | ".join(names)} |',
            f'|---|---|{"---:|" * len(names)}')
    return table(head, [(
        row['configuration'], precision, *(
            f'{_ms(seconds)} ({n})' for n, seconds in (
                row['parts'].get(name, (0, None)) for name in names)))
        for precision, rows in found.items() for row in rows])


def verdict(found):
    """Return a sentence, whether all is as it should be."""
    problems = [
        f'{row["configuration"]}: {row["backend"]} instead of CuPyEngine'
        for rows in found.values() for row in rows
        if row['backend'] != 'CuPyEngine']
    problems += [
        f'{row["configuration"]}: only {row["equal_in_float32"]:.3%} of the '
        'labels in float32 beside TF32'
        for row in found['TF32'] if row['equal_in_float32'] < MIN_EQUAL_LABELS]
    problems += [
        f'{row["configuration"]}: only {row["equal_labels"]:.3%} of the labels'
        for row in found['float32'] if row['equal_labels'] < MIN_EQUAL_LABELS]
    problems += [
        f'{row["configuration"]}: {row["peak_bytes"] / 1e9:.2f} GB in use, and '
        f'{row["counted_bytes"] / 1e9:.2f} GB were counted'
        for rows in found.values() for row in rows
        if row['peak_bytes'] > row['counted_bytes']]
    if problems:
        return f'NOT as it should be: {"; ".join(problems)}.'
    return ('All is as it should be: in float32 at least '
            f'{MIN_EQUAL_LABELS:.2%} of the labels are the CPU\'s, in the '
            'memory that is counted.')


def main():
    from models.utils.errors import report_errors
    with report_errors(), tempfile.TemporaryDirectory() as name:
        from models.chainer_compat import load_cuda_libraries
        load_cuda_libraries()  # before Chainer
        from models.gpu import check_gpu
        check_gpu(0)
        folder, found = pathlib.Path(name), {}
        write_expected(folder)
        for precision, override in PRECISIONS.items():
            os.environ['NVIDIA_TF32_OVERRIDE'] = override  # read at the start
            found[precision] = run_apart(measure, folder)
        result = {'versions': versions(), 'found': found,
                  'verdict': verdict(found)}
        pathlib.Path('gpu.json').write_text(json.dumps(result, indent=1) + '\n')
        print(', '.join(f'{name} {value}' for name, value
                        in result['versions'].items()))
        print(f'\n{table_of(found)}\n\n{table_of_parts(found)}\n\n'
              f'{result["verdict"]}')


if __name__ == '__main__':
    main()
