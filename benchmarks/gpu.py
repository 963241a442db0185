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
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
SIZES = {'voc': (513, 513), 'cityscapes': (1025, 2049)}
SCALES = {'1': {'scales': (1.,), 'flip': False},
          '0.75, 1, 1.25, mirrored': {'scales': (0.75, 1., 1.25),
                                      'flip': True}}
ROUNDS = 5
PRECISIONS = {'float32': '0', 'TF32': '1'}  # NVIDIA_TF32_OVERRIDE
ROUNDING = 1 << 20  # bytes that CuPy may take for small arrays
MIN_EQUAL_LABELS = 0.9999  # of float32
# Seconds at most of an H200 in float32, without scales: by size and stride.
GOALS = {('voc', 8): 0.012, ('voc', 16): 0.005,
         ('cityscapes', 8): 0.075, ('cityscapes', 16): 0.027}
MEASURE = '--measure'  # what the processes of their own are started with


def configurations():
    """Yield dataset, output stride and name of the scales."""
    for dataset, stride in itertools.product(SIZES, (8, 16)):
        for scales in SCALES:
            if dataset == 'voc' or scales == '1':
                yield dataset, stride, scales


def load(folder, dataset, stride, scales):
    """Return the link of a configuration, and its image."""
    from fixture_weights import smooth_image

    from models import DeepLabV3plusXception65
    size = SIZES[dataset]
    return DeepLabV3plusXception65(
        pretrained_model=folder / f'{dataset}.npz', output_stride=stride,
        min_input_size=size, **SCALES[scales]), smooth_image(
            *size).transpose(2, 0, 1).astype('f')


def write_expected(folder):
    """Write the weights, and the labels of the CPU."""
    import numpy as np
    from fixture_graph import FixtureGraph
    from fixture_weights import random_weights

    from convert.conversion import check, write
    from convert.sources import open_source
    from models.constants import DATASETS
    for dataset, size in SIZES.items():
        n_output = DATASETS[dataset]['n_class']
        pb = folder / f'{dataset}.pb'
        pb.write_bytes(FixtureGraph(random_weights(n_output), n_output,
                                    size).graph.SerializeToString())
        write(check(open_source(pb), dataset), folder / f'{dataset}.npz')
    for i, each in enumerate(configurations()):
        print(f'on the CPU: {describe(*each)}', file=sys.stderr, flush=True)
        model, image = load(folder, *each)
        np.save(folder / f'{i}.npy', model.predict([image])[0])


def describe(dataset, stride, scales):
    height, width = SIZES[dataset]
    return f'{height}x{width}, output stride {stride}, scales {scales}'


def measure(folder):
    """Print what is measured of each configuration, a line of JSON each."""
    import cupy
    import numpy as np

    from models.cupy_engine import CuPyEngine
    from models.gpu import check_gpu
    check_gpu(0)
    pool = cupy.get_default_memory_pool()

    class Peak(cupy.cuda.MemoryHook):
        name, used = 'Peak', 0

        def malloc_postprocess(self, **kwargs):
            self.used = max(self.used, pool.used_bytes())

    for i, each in enumerate(configurations()):
        model, image = load(folder, *each)
        expected = np.load(folder / f'{i}.npy')
        model.to_gpu(0)
        row = {'configuration': describe(*each), 'goal': GOALS.get(each[:2])
               if each[2] == '1' else None}
        row['backend'] = type(model.compile()).__name__
        row['counted_bytes'] = pool.used_bytes() + model.memory_needed(
            *image.shape[1:]) + ROUNDING
        with Peak() as peak:
            label, = model.predict([image])
        row |= {'peak_bytes': peak.used, 'pool_bytes': pool.total_bytes(),
                'equal_labels': float((label == expected).mean()),
                'seconds': seconds(model, image)}
        with model.in_float32():
            label, = model.predict([image])
        row['equal_in_float32'] = float((label == expected).mean())
        if row['backend'] == CuPyEngine.__name__:
            row['parts'] = parts(model, image)
        row['frozen_seconds'] = seconds(load(folder, *each)[0].to_gpu(
            0).freeze(), image)
        row['chainer_seconds'] = seconds(model.to_chainer(), image)
        print(json.dumps(row), flush=True)
        del model
        gc.collect()
        pool.free_all_blocks()


def seconds(model, image):
    """Return the best time of `predict`, from pixels to labels."""
    found = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        model.predict([image])  # ends with labels on the CPU
        found.append(time.perf_counter() - start)
    return min(found)


def parts(model, image):
    """Return kernel -> (launches, seconds on the card) of the network at scale
    1; `product` is that of cuBLAS, `all` all of them in turn.
    """
    import cupy
    engine = model.compile()
    plan = engine._plans[model.prepare(image).shape[1:]]
    launches = collections.defaultdict(list)
    for function, arguments in plan.launches:
        launches[function.__name__].append((function, arguments))
        launches['all'].append((function, arguments))
    found = {}
    for name, each in launches.items():
        times = []
        for _ in range(ROUNDS + 1):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            for function, arguments in each:
                function(*arguments)
            end.record()
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
        found[name] = len(each), min(times)
    return found


def versions():
    """Return what the figures depend on."""
    import chainer
    import cupy
    import numpy as np
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


def table(found):
    """Return the figures as a table of Markdown; `found` is what `measure`
    prints, by precision.
    """
    lines = ['| | precision | ms | frozen | goal (H200) | Chainer | labels '
             'like the CPU | peak | pool |',
             '|---|---|---:|---:|---:|---:|---:|---:|---:|']
    for precision, rows in found.items():
        lines += [
            f'| {row["configuration"]} | {precision} | {_ms(row["seconds"])} | '
            f'{_ms(row["frozen_seconds"])} | {_ms(row["goal"])} | '
            f'{_ms(row["chainer_seconds"])} | {row["equal_labels"]:.3%} | '
            f'{row["peak_bytes"] / 1e9:.2f} GB | '
            f'{row["pool_bytes"] / 1e9:.2f} GB |' for row in rows]
    return '\n'.join(lines)


def _ms(seconds):
    return '' if seconds is None else f'{1e3 * seconds:.1f}'


def table_of_parts(found):
    """Return the milliseconds of each kernel at scale 1, on the card."""
    rows = [(precision, row) for precision, rows in found.items()
            for row in rows if 'parts' in row]
    names = sorted({name for _, row in rows for name in row['parts']})
    lines = [f'| | precision | {" | ".join(names)} |',
             f'|---|---|{"---:|" * len(names)}']
    for precision, row in rows:
        cells = [f'{1e3 * row["parts"][name][1]:.2f} '
                 f'({row["parts"][name][0]})' if name in row['parts'] else ''
                 for name in names]
        lines.append(f'| {row["configuration"]} | {precision} | '
                     f'{" | ".join(cells)} |')
    return '\n'.join(lines)


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
    from models.utils.errors import InputError, report_errors
    with report_errors():
        import models  # noqa: F401  (before Chainer)
        if sys.argv[1:2] == [MEASURE]:
            measure(pathlib.Path(sys.argv[2]))
            return
        from models.gpu import check_gpu
        check_gpu(0)
        found = {}
        with tempfile.TemporaryDirectory() as name:
            write_expected(pathlib.Path(name))
            for precision, override in PRECISIONS.items():
                process = subprocess.run(
                    [sys.executable, __file__, MEASURE, name], text=True,
                    stdout=subprocess.PIPE, check=False, env={
                        **os.environ, 'NVIDIA_TF32_OVERRIDE': override})
                if process.returncode:
                    raise InputError(f'the run in {precision} failed, see '
                                     'above')
                found[precision] = [json.loads(line) for line
                                    in process.stdout.splitlines()]
        result = {'versions': versions(), 'found': found,
                  'verdict': verdict(found)}
        pathlib.Path('gpu.json').write_text(json.dumps(result, indent=1) + '\n')
        print(', '.join(f'{name} {value}' for name, value
                        in result['versions'].items()))
        print(f'\n{table(found)}\n\n{table_of_parts(found)}\n\n'
              f'{result["verdict"]}')


if __name__ == '__main__':
    main()
