"""Compare the demo on a folder, and on a video, with bare `predict`.

    python benchmarks/demo.py

Bounds: 513 x 513 images run at 0.95 of the rate of `predict` or better,
figures drawn and written, and so do the frames of a video, overlays coded;
from image 10 to 200, and from frame 100 to 2000, the memory grows by at most
50 MB.
"""
import pathlib
import tempfile
import time

from common import memory, report, write_voc_model

ROUNDS, IMAGES, MANY, FRAMES = 3, 12, 200, 2000


def write_inputs(folder):
    """Write a stand-in model, and images."""
    from fixture_images import write_film
    from fixture_weights import smooth_image
    from PIL import Image
    write_voc_model(folder)
    (folder / 'in').mkdir()
    for i in range(MANY):
        Image.fromarray(smooth_image(513, 513, i % IMAGES)).save(
            folder / f'in/{i:03}.jpg')
    for name, side, n_frames in (('film', 513, IMAGES), ('long', 65, FRAMES)):
        (folder / name).mkdir()
        write_film(folder / name / 'a.mp4', [
            smooth_image(side, side, i % IMAGES) for i in range(n_frames)])


def make_batch(folder, model, output, n_images=None):
    """Return the inputs, and a batch that writes their figures."""
    from media.batch import Batch
    from media.inputs import find_inputs
    from media.outputs import DEFAULT, plan_outputs
    from media.segmentation import Segmenter, Tally
    from media.visualization import OPACITY
    from models.classes import labels_of
    inputs, _, _ = find_inputs([str(folder)])
    inputs = inputs[:n_images]
    tally = Tally(len(inputs))
    tally.say = lambda line, file=None: None
    segmenter = Segmenter(model, *labels_of(model, 'voc'), None, None, None,
                          tally)
    outputs, _ = plan_outputs(DEFAULT, str(output), inputs)
    return inputs, Batch(segmenter, outputs, None, OPACITY, 10**8)


def compare_with_predict(folder, model, what):
    from media.images import read_image
    from media.video import open_video
    bare, whole = [], []
    for i in range(ROUNDS):
        inputs, batch = make_batch(folder, model, folder.parent / f'out{i}',
                                   IMAGES)
        if inputs[0].is_video:
            with open_video(inputs[0].path) as video:
                images = [frame.image for frame in video.parts()]
        else:
            images = [read_image(each.path) for each in inputs]
        model.predict(images[:1])
        start = time.perf_counter()
        for image in images:
            model.predict([image])
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        batch.run()
        whole.append(time.perf_counter() - start)
    report(f'rate of the demo / rate of predict, {what}',
           min(bare) / min(whole), 'at least 0.95')


def memory_growth(folder, model, first, what):
    held = []
    _, batch = make_batch(folder, model, folder.parent / 'many')
    original = batch.segmenter.segment

    def segment(*args):
        held.append(memory())
        return original(*args)

    batch.segmenter.segment = segment
    batch.run()
    report(f'growth from {what} {first} to {len(held)}, MB',
           (held[-1] - held[first - 1]) / 1e6, 'at most 50')


def main():
    from models import DeepLabV3plusXception65
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_inputs(folder)
        options = {'pretrained_model': folder / 'voc.npz'}
        model = DeepLabV3plusXception65(**options)
        compare_with_predict(folder / 'in', model, 'images')
        compare_with_predict(folder / 'film', model, 'video')
        model = DeepLabV3plusXception65(
            **options, output_stride=16, min_input_size=65)
        memory_growth(folder / 'long', model, 100, 'frame')
        memory_growth(folder / 'in', model, 10, 'image')


if __name__ == '__main__':
    main()
