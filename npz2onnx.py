"""Write DeepLabV3+ Xception65 as an ONNX model, for use without Chainer.

    python npz2onnx.py cityscapes.npz cityscapes.onnx

The model takes 'image' (B, 3, H, W), float32, RGB, pixel * 2 / 255 - 1, and
gives 'logits' (B, n_class, ceil(H/4), ceil(W/4)), for any B, H and W. Its
metadata name the dataset (as 'task'), the classes, the output stride and the
smallest input size. With --end-to-end it replaces the official frozen graph:
'ImageTensor' (1, H, W, 3), uint8, RGB, to 'SemanticPredictions' (1, H, W),
int64. The file gets its name once ONNX Runtime's output is the link's.
"""
import argparse
import json
import os

import numpy as np

from command_line.model_options import image_size
from models.constants import DATASETS, OFFSET, OUTPUT_STRIDES, SCALE
from models.utils.errors import InputError, report_errors

CHECK_SIZE = 129, 161  # height and width of the image to compare on
TOLERANCE = 1e-3  # largest difference, relative to the largest output
MIN_EQUAL_LABELS = 0.9999


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='NPZ',
                        help=f'an npz file, or one of {", ".join(DATASETS)}')
    parser.add_argument('target', metavar='ONNX', help='the file to write')
    parser.add_argument(
        '--output-stride', type=int, choices=OUTPUT_STRIDES,
        help='16 is three times as fast and a little less accurate (default: '
             "the npz's, else 8)")
    parser.add_argument(
        '--size', type=image_size, metavar='SIZE',
        help='for images of this size alone, 513 or 1025x2049, one at a time; '
             'the file then computes no shapes')
    parser.add_argument('--force', action='store_true',
                        help='overwrite the file if it exists')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--probabilities', action='store_true',
                      help="'probabilities' (B, n_class, H, W), not logits")
    form.add_argument('--end-to-end', action='store_true',
                      help='from pixels to labels, as the frozen graph')
    args = parser.parse_args()
    if args.size and args.end_to_end:
        parser.error('--size is not for --end-to-end, which pads by itself')
    return args


def main():
    args = parse_args()
    with report_errors():
        from convert.sources import fetch
        from models import DeepLabV3plusXception65
        from models.utils.files import atomic_path, check_target
        check_target(args.target, args.force, [args.source])
        with atomic_path(args.target) as temporary:
            link = DeepLabV3plusXception65(pretrained_model=fetch(args.source),
                                           output_stride=args.output_stride)
            temporary.write_bytes(link.onnx_model(
                metadata(link), args.probabilities, args.end_to_end, args.size))
            agreement, is_enough = compare(temporary, link, args)
            if not is_enough:
                raise InputError(f'{agreement}: the weights may be damaged, or '
                                 'too large for finite outputs')
        print(f'{args.target}: {link.n_class} classes, output stride '
              f'{link.output_stride}, {os.path.getsize(args.target) / 1e6:.0f} '
              f'MB; {agreement}')


def metadata(link):
    """Return what a user of the file needs to know: str -> str."""
    from models.classes import dataset_of, labels_of, numbered_names
    names, colors = labels_of(link)
    has_names = names != numbered_names(link.n_class)
    known = {
        'input': 'RGB, pixel * scale + offset; pad smaller images to '
                 'min_input_size with 0, at the bottom and on the right',
        'scale': repr(SCALE), 'offset': repr(-OFFSET),
        'min_input_size': json.dumps(link.min_input_size),
        'output_stride': str(link.output_stride),
        'resize_range': link.resize_range and str(link.resize_range),
        'task': link.metadata.get('task') or dataset_of(link.n_class),
        'class_names': has_names and json.dumps(names),
        'class_colors': has_names and json.dumps(colors.tolist()),
    }
    return {key: value for key, value in known.items() if value}


def compare(path, link, args):
    """Return how far ONNX Runtime's output is from the link's, as text; and
    whether that is little.
    """
    import chainer.functions as F
    rng = np.random.default_rng(0)
    if args.end_to_end:
        pixels = rng.integers(0, 256, (*CHECK_SIZE, 3), np.uint8)
        label, = link.predict([pixels.transpose(2, 0, 1)])
        equal = np.mean(run(path, pixels[np.newaxis])[0] == label)
        return (f'labels {100 * equal:.3f} % equal to those of the npz',
                equal >= MIN_EQUAL_LABELS)
    batch, size = (1, args.size) if args.size else (2, CHECK_SIZE)
    x = rng.uniform(-1, 1, (batch, 3, *size)).astype(np.float32)
    with np.errstate(over='ignore', invalid='ignore'):
        expected = link.to_chainer().compile()(x)[:, :link.n_class]
        if args.probabilities:
            expected = F.softmax(F.resize_images(expected, size)).array
        difference = (np.abs(run(path, x) - expected).max()
                      / np.abs(expected).max())
    return (f'ONNX Runtime and Chainer differ by at most {difference:.1e} of '
            'the largest output', difference <= TOLERANCE)


def run(path, x):
    """Return the output of a file in ONNX Runtime."""
    # Telemetry would also warn where there is no home folder.
    os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
    import onnxruntime
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


if __name__ == '__main__':
    main()
