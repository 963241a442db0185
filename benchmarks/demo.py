"""Compare the demo on a folder with bare `predict`.

    python benchmarks/demo.py

Bounds: 513 x 513 pictures run at 0.95 of the rate of `predict` or better,
figures drawn and written; from picture 10 to 200 the memory grows by at most
50 MB.
"""
import argparse
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
ROUNDS, PICTURES, MANY = 3, 12, 200


def write_inputs(folder):
    """Write a stand-in model, and pictures."""
    from fixture_weights import smooth_image, write_palette_graph
    from PIL import Image

    from convert import conversion
    write_palette_graph(folder / 'voc.pb', 'voc', (513, 513))
    conversion.convert(folder / 'voc.pb', 'voc', folder / 'voc.npz')
    (folder / 'in').mkdir()
    for i in range(MANY):
        Image.fromarray(smooth_image(513, 513, i % PICTURES)).save(
            folder / f'in/{i:03}.jpg')


def segmenter(folder, model, output):
    from demo import Tally
    from media.inputs import find_inputs
    from media.outputs import Outputs
    from media.segmentation import Segmenter
    from models.classes import labels_of
    inputs, _ = find_inputs([str(folder / 'in')])
    args = argparse.Namespace(max_size=None, memory=None, max_pixels=10**8,
                              opacity=0.6)
    outputs = Outputs(['figure'], str(output), inputs)
    tally = Tally(len(inputs))
    tally.say = lambda line, file=None: None
    return inputs, Segmenter(model, *labels_of(model, 'voc'), None, outputs,
                             None, args, tally)


def compare_with_predict(folder, model):
    from media.images import read_image
    bare, whole = [], []
    for i in range(ROUNDS):
        inputs, run = segmenter(folder, model, folder / f'out{i}')
        images = [read_image(each.path) for each in inputs[:PICTURES]]
        model.predict(images[:1])
        start = time.perf_counter()
        for image in images:
            model.predict([image])
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        run.run(inputs[:PICTURES])
        whole.append(time.perf_counter() - start)
    report('rate of the demo / rate of predict', min(bare) / min(whole),
           'at least 0.95')


def memory_growth(folder, model):
    held = []
    inputs, run = segmenter(folder, model, folder / 'many')
    original = run.segment

    def segment(*args):
        held.append(memory())
        return original(*args)

    run.segment = segment
    run.run(inputs)
    report('growth from picture 10 to 200, MB', (held[-1] - held[9]) / 1e6,
           'at most 50')


def memory():
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) * 1024
    raise ValueError('VmRSS')


def report(what, value, bound):
    print(f'{what:48}{value:8.2f}   bound {bound}', flush=True)


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
