"""Compare an evaluation with bare `predict`, and two processes with one.

    python benchmarks/evaluation.py

Bounds: an image takes at most 1.03 times as long as in `predict` alone; from
image 10 to 200 the memory grows by at most 50 MB; two MPI processes of one
thread take at most 1.15 times as long as one process of two threads.
"""
import pathlib
import subprocess
import sys
import tempfile
import time

from common import ROOT, memory, report, write_voc_model

ROUNDS, IMAGES, FRAMES = 3, 12, 200


def write_inputs(folder):
    """Write a stand-in model and images of VOC2012's size and layout."""
    import numpy as np
    from fixture_weights import smooth_image
    from PIL import Image
    write_voc_model(folder)
    base = folder / 'VOCdevkit/VOC2012'
    for name in 'JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation':
        (base / name).mkdir(parents=True)
    names = [f'{i:03}' for i in range(FRAMES)]
    (base / 'ImageSets/Segmentation/val.txt').write_text('\n'.join(names))
    label = np.random.default_rng(0).integers(21, size=(375, 500), dtype='u1')
    for i, name in enumerate(names):
        Image.fromarray(smooth_image(375, 500, i % IMAGES)).save(
            base / f'JPEGImages/{name}.jpg')
        Image.fromarray(label).save(base / f'SegmentationClass/{name}.png')


def compare_with_predict(folder):
    from evaluation.labelled_images import LabelledImages, Subset
    from evaluation.run import State, evaluate
    from models import DeepLabV3plusXception65
    model = DeepLabV3plusXception65(pretrained_model=folder / 'voc.npz')
    images = Subset(LabelledImages('voc', folder, 'val'), range(IMAGES))
    held = [images.read(i).image for i in range(IMAGES)]
    model.predict(held[:1])
    bare, whole = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for image in held:
            model.predict([image])
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        evaluate(images, model, State(21), lambda: None, show=False)
        whole.append(time.perf_counter() - start)
    report('evaluation / predict', min(whole) / min(bare), 1.03)


def memory_growth(folder):
    """Over 200 images, which need not be large for that."""
    from evaluation.labelled_images import LabelledImages
    from evaluation.run import State, evaluate
    from models import DeepLabV3plusXception65
    model = DeepLabV3plusXception65(
        pretrained_model=folder / 'voc.npz', output_stride=16)
    held = []
    evaluate(LabelledImages('voc', folder, 'val'), model, State(21),
             lambda: None, use=lambda i, label: held.append(memory()),
             show=False)
    report('growth from image 10 to 200, MB', (held[-1] - held[9]) / 1e6, 50)


def compare_processes(folder):
    def seconds(round_, *options):
        output = folder / f'out{round_}{len(options)}'
        start = time.perf_counter()
        subprocess.run(
            [*options, sys.executable, ROOT / 'eval_voc.py', '--data-dir',
             folder, '--pretrained-model', folder / 'voc.npz', '--limit',
             str(4 * IMAGES), '--output', output],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start

    mpiexec = pathlib.Path(sys.executable).parent / 'mpiexec'
    one, two = zip(*((seconds(i), seconds(i, mpiexec, '-n', '2'))
                     for i in range(ROUNDS)), strict=True)
    report('two processes / one', min(two) / min(one), 1.15)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_inputs(folder)
        compare_with_predict(folder)
        memory_growth(folder)
        compare_processes(folder)


if __name__ == '__main__':
    main()
