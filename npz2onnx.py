"""Write DeepLabV3+ Xception65 as an ONNX model, for use without Chainer.

    python npz2onnx.py cityscapes.npz cityscapes.onnx

The model takes 'image' (1, 3, H, W), float32, RGB, pixel * 2 / 255 - 1, and
gives 'logits' (1, n_class, ceil(H/4), ceil(W/4)), for any H and W. Its
metadata name the task, the classes, the output stride and the smallest input
size. ONNX Runtime runs the file, and its output is compared with Chainer's,
before the file gets its name.
"""
import argparse
import contextlib
import json
import os
import pathlib

from models.constants import DATASETS, OFFSET, OUTPUT_STRIDES, SCALE
from models.utils.errors import InputError, report_errors

CHECK_SIZE = 129, 161  # height and width of the image to compare on
TOLERANCE = 1e-3  # largest difference, relative to the largest output


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'source', metavar='NPZ',
        help=f'an npz file, or one of {", ".join(DATASETS)}')
    parser.add_argument('target', metavar='ONNX', help='the file to write')
    parser.add_argument(
        '--output-stride', type=int, choices=OUTPUT_STRIDES,
        help='16 is three times as fast and a little less accurate (default: '
             "the npz's, else 8)")
    parser.add_argument(
        '--probabilities', action='store_true',
        help="give 'probabilities' (1, n_class, H, W) instead of logits")
    return parser.parse_args()


def main():
    args = parse_args()
    with report_errors():
        from convert.official import fetch
        from models import DeepLabV3plusXception65
        from models.utils.files import atomic_path, check_not_source
        check_not_source(args.target, args.source)
        with atomic_path(args.target) as temporary:
            link = DeepLabV3plusXception65(
                pretrained_model=fetch(args.source),
                output_stride=args.output_stride)
            temporary.write_bytes(
                link.onnx_model(metadata(link), args.probabilities))
            difference = compare(temporary, link, args.probabilities)
        size = pathlib.Path(args.target).stat().st_size
        print(f'{args.target}: {link.n_class} classes, output stride '
              f'{link.output_stride}, {size / 1e6:.0f} MB; ONNX Runtime and '
              f'Chainer differ by at most {difference:.1e} of the largest '
              'output')


def metadata(link):
    """Return what a user of the file needs to know: str -> str."""
    from models.classes import dataset_of, labels_of
    result = {
        'input': 'RGB, pixel * scale + offset; pad smaller images to '
                 'min_input_size with 0, at the bottom and on the right',
        'scale': repr(SCALE),
        'offset': repr(-OFFSET),
        'min_input_size': json.dumps(link.min_input_size),
        'output_stride': str(link.output_stride),
    }
    task = link.metadata.get('task') or dataset_of(link.n_class)
    if task is not None:
        result['task'] = task
    with contextlib.suppress(InputError):  # the classes may have no names
        names, colors = labels_of(link)
        result['class_names'] = json.dumps(names)
        result['class_colors'] = json.dumps(colors.tolist())
    return result


def compare(path, link, probabilities):
    """Return how far they differ, relative to the largest output.

    Raise InputError where that is more than `TOLERANCE`.
    """
    import chainer
    import chainer.functions as F
    import numpy as np
    # It would report its use, and warn where there is no home folder.
    os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
    import onnxruntime
    x = np.random.default_rng(0).uniform(
        -1, 1, (1, 3, *CHECK_SIZE)).astype(np.float32)
    with (chainer.using_config('train', False), chainer.no_backprop_mode(),
          np.errstate(over='ignore', invalid='ignore')):
        expected = link(x)
        if probabilities:
            expected = F.softmax(F.resize_images(expected, CHECK_SIZE))
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    found, = session.run(None, {'image': x})
    with np.errstate(invalid='ignore'):  # infinity less infinity
        difference = (np.abs(found - expected.array).max()
                      / np.abs(expected.array).max())
    if not difference <= TOLERANCE:
        raise InputError(
            f'ONNX Runtime and Chainer differ by {difference:.1e} of the '
            f'largest output, more than {TOLERANCE}: the weights may be too '
            'large for finite outputs')
    return difference


if __name__ == '__main__':
    main()
