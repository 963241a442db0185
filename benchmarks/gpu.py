"""Check and time the network on a real GPU, against the CPU.

    python benchmarks/gpu.py

Random weights, at output stride 8 and 16, with and without scales, in float32
and with TF32 allowed. Prints a table and a sentence that says whether all is as
it should be, and writes gpu.json beside: please send both. Needs CuPy (make
setup-gpu); takes some minutes, most of them on the CPU.
"""
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
MIN_EQUAL_LABELS = 0.9999  # of float32
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

    from models.gpu import check_gpu
    check_gpu(0)
    pool = cupy.get_default_memory_pool()

    class Peak(cupy.cuda.MemoryHook):
        name, used = 'Peak', 0

        def malloc_postprocess(self, **kwargs):
            self.used = max(self.used, pool.used_bytes())

    for i, each in enumerate(configurations()):
        model, image = load(folder, *each)
        model.to_gpu(0)
        with Peak() as peak:
            label, = model.predict([image])
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            model.predict([image])  # ends with labels on the CPU
            seconds.append(time.perf_counter() - start)
        print(json.dumps({
            'configuration': describe(*each), 'seconds': min(seconds),
            'equal_labels': float((label == np.load(
                folder / f'{i}.npy')).mean()),
            'peak_bytes': peak.used, 'pool_bytes': pool.total_bytes(),
            'counted_bytes': model.memory_needed(*image.shape[1:])}),
            flush=True)
        del model
        gc.collect()
        pool.free_all_blocks()


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
    lines = ['| | precision | seconds | labels like the CPU | peak | pool |',
             '|---|---|---:|---:|---:|---:|']
    for precision, rows in found.items():
        lines += [
            f'| {row["configuration"]} | {precision} | {row["seconds"]:.3f} | '
            f'{row["equal_labels"]:.3%} | {row["peak_bytes"] / 1e9:.2f} GB | '
            f'{row["pool_bytes"] / 1e9:.2f} GB |' for row in rows]
    return '\n'.join(lines)


def verdict(found):
    """Return a sentence, whether all is as it should be."""
    problems = [
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
        from models.chainer_compat import load_cuda_libraries
        load_cuda_libraries()  # before Chainer
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
        print(f'\n{table(found)}\n\n{result["verdict"]}')


if __name__ == '__main__':
    main()
