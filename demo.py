"""Segment an image with DeepLabV3+ and show it beside its segmentation.

    python demo.py image.jpg
    python demo.py --pretrained-model voc.npz --output out.png image.jpg

The picture opens in a window where there is a display; elsewhere it is
written to a file, whose path is printed.
"""
import argparse
import itertools
import pathlib

from command_line import (
    add_model_arguments,
    check_model_arguments,
    load_model,
)
from models.errors import InputError, report_errors
from models.pretrained import PRETRAINED_MODELS


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='demo.py [-h] [--gpu GPU] [--pretrained-model MODEL] '
              '[--input-size SIZE [SIZE]]\n               '
              '[--dataset {voc,cityscapes,ade20k}] [--output FILE]\n'
              '               [--backend {auto,openvino,chainer}] '
              '[--threads N] image')
    parser.add_argument('image', nargs='?', help='the picture to segment')
    add_model_arguments(parser, 'cityscapes')
    parser.add_argument(
        '--dataset', choices=PRETRAINED_MODELS,
        help='names and colours of the classes (default: what the npz says, '
             'or what its number of classes tells)')
    parser.add_argument('--output', metavar='FILE',
                        help='write the picture here (.png, .jpg, .pdf, ...)')
    args = parser.parse_args()
    args.image = take_image(parser, args)
    check_model_arguments(parser, args)
    return args


def take_image(parser, args):
    """Return the image, and leave only numbers in `input_size`.

    `--input-size 513 1025 image.png` is meant to end at the second number,
    and argparse hands over all three.
    """
    sizes = list(itertools.takewhile(str.isdigit, args.input_size))
    images = args.input_size[len(sizes):] + [args.image] * (
        args.image is not None)
    if len(images) != 1:
        parser.error(f'one image is needed, given were {len(images)}')
    if args.input_size:
        args.input_size = sizes or ['none']
    return images[0]


def main():
    args = parse_args()
    with report_errors():
        from datasets import labels_of
        from images import read_image
        image = read_image(args.image)
        model = load_model(args, args.dataset)
        names, colors = labels_of(model, args.dataset)
        check_output(args.output)
        label = model.predict([image])[0]
        show(image, label, names, colors, args)


def check_output(output):
    """Refuse a file type that cannot be written, before the long work."""
    from matplotlib.backend_bases import FigureCanvasBase
    if output is None:
        return
    known = FigureCanvasBase.get_supported_filetypes()
    if pathlib.Path(output).suffix[1:].lower() not in known:
        raise InputError(f'--output {output} must end in one of '
                         f'{", ".join("." + name for name in sorted(known))}')


def show(image, label, names, colors, args):
    """Open a window, or write a file where that is asked for or needed."""
    from matplotlib import pyplot as plt

    from models.files import atomic_path
    from visualization import DPI, draw_segmentation
    figure = plt.figure()
    draw_segmentation(figure, image, label, names, colors)
    has_display = figure.canvas.required_interactive_framework is not None
    if args.output is None and has_display:
        plt.show()
        return
    stem = pathlib.Path(args.image).stem
    output = pathlib.Path(args.output or f'{stem}_segmentation.png')
    with atomic_path(output) as temporary:
        figure.savefig(temporary, dpi=DPI, format=output.suffix[1:].lower())
    print(output)


if __name__ == '__main__':
    main()
