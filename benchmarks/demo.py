"""Compare the demo on a folder with bare `predict`.

    python benchmarks/demo.py

Bounds: 513 x 513 images run at 0.95 of the rate of `predict` or better,
figures drawn and written; from image 10 to 200 the memory grows by at most
50 MB.
"""
import pathlib
import tempfile
import time

from common import memory, report, write_voc_model

ROUNDS, IMAGES, MANY = 3, 12, 200


def write_inputs(folder):
    """Write a stand-in model, and images."""
    from fixture_weights import smooth_image
    from PIL import Image
    write_voc_model(folder)
    (folder / 'in').mkdir()
    for i in range(MANY):
        Image.fromarray(smooth_image(513, 513, i % IMAGES)).save(
            folder / f'in/{i:03}.jpg')


def make_batch(folder, model, output, n_images):
    """Return the inputs, and a batch that writes their figures."""
    from media.batch import Batch
    from media.inputs import find_inputs
    from media.outputs import plan_outputs
    from media.segmentation import Segmenter, Tally
    from media.visualization import OPACITY
    from models.classes import labels_of
    inputs, _ = find_inputs([str(folder / 'in')])
    inputs = inputs[:n_images]
    tally = Tally(len(inputs))
    tally.say = lambda line, file=None: None
    segmenter = Segmenter(model, *labels_of(model, 'voc'), None, None, None,
                          tally)
    outputs, _ = plan_outputs(['figure'], str(output), inputs)
    return inputs, Batch(segmenter, outputs, None, OPACITY, 10**8)


def compare_with_predict(folder, model):
    from media.images import read_image
    bare, whole = [], []
    for i in range(ROUNDS):
        inputs, batch = make_batch(folder, model, folder / f'out{i}', IMAGES)
        images = [read_image(each.path) for each in inputs]
        model.predict(images[:1])
        start = time.perf_counter()
        for image in images:
            model.predict([image])
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        batch.run()
        whole.append(time.perf_counter() - start)
    report('rate of the demo / rate of predict', min(bare) / min(whole),
           'at least 0.95')


def memory_growth(folder, model):
    held = []
    _, batch = make_batch(folder, model, folder / 'many', MANY)
    original = batch.segmenter.segment

    def segment(*args):
        held.append(memory())
        return original(*args)

    batch.segmenter.segment = segment
    batch.run()
    report('growth from image 10 to 200, MB', (held[-1] - held[9]) / 1e6,
           'at most 50')


def main():
    from models import DeepLabV3plusXception65
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_inputs(folder)
        options = {'pretrained_model': folder / 'voc.npz'}
        compare_with_predict(folder, DeepLabV3plusXception65(**options))
        memory_growth(folder, DeepLabV3plusXception65(
            **options, output_stride=16))


if __name__ == '__main__':
    main()
