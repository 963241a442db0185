"""Check and time the network on a real GPU, against the CPU.

    python benchmarks/gpu.py

Prints labels equal to those of the CPU, seconds of `predict` and the GPU's
memory, at 513x513 and 1025x2049, output stride 8 and 16. Needs CuPy
(requirements-gpu.txt).
"""
import pathlib
import tempfile
import time

from common import convert

SIZES = {'voc': (513, 513), 'cityscapes': (1025, 2049)}
ROUNDS = 5


def measure(npz, size, output_stride):
    import cupy
    from fixture_weights import smooth_image

    from models import DeepLabV3plusXception65
    image = smooth_image(*size).transpose(2, 0, 1).astype('f')
    model = DeepLabV3plusXception65(
        pretrained_model=npz, output_stride=output_stride,
        min_input_size=size)
    expected, = model.predict([image])
    model.to_gpu(0)
    label, = model.predict([image])
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        model.predict([image])  # ends with labels on the CPU
        seconds.append(time.perf_counter() - start)
    memory = cupy.get_default_memory_pool().total_bytes() / 1e9
    height, width = size
    print(f'{height}x{width}, output stride {output_stride}: labels '
          f'{100 * (label == expected).mean():.3f} % equal to the CPU, '
          f'{min(seconds):.3f} s, {memory:.1f} GB', flush=True)


def main():
    from command_line.model_options import check_gpu
    from models.utils.errors import report_errors
    with report_errors():
        import models  # noqa: F401  (before Chainer)
        check_gpu(0)
        from fixture_graph import FixtureGraph
        from fixture_weights import random_weights

        from models.constants import DATASETS
        with tempfile.TemporaryDirectory() as name:
            for dataset, size in SIZES.items():
                n_output = DATASETS[dataset]['n_class']
                pb = pathlib.Path(name, f'{dataset}.pb')
                pb.write_bytes(FixtureGraph(
                    random_weights(n_output), n_output,
                    size).graph.SerializeToString())
                npz = pb.with_suffix('.npz')
                convert(pb, dataset, npz)
                for output_stride in (8, 16):
                    measure(npz, size, output_stride)


if __name__ == '__main__':
    main()
