"""Segment an image with DeepLabV3+ and show it beside its segmentation.

    python demo.py image.jpg
    python demo.py --pretrained-model voc.npz --output out.png image.jpg

The picture opens in a window where there is a display; elsewhere it is
written to a file, whose path is printed.
"""
import argparse
import itertools
import pathlib

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
    parser.add_argument('--gpu', type=int, default=-1, metavar='GPU',
                        help='number of the GPU to run on (default: the CPU)')
    parser.add_argument(
        '--pretrained-model', default='cityscapes', metavar='MODEL',
        help=f'an npz file, or one of {", ".join(PRETRAINED_MODELS)}, which '
             'is downloaded at the first use (default: %(default)s)')
    parser.add_argument(
        '--input-size', nargs='+', metavar='SIZE', default=[],
        help='one number, or height and width: smaller images are padded to '
             'this size (default: what the model was made for)')
    parser.add_argument(
        '--dataset', choices=PRETRAINED_MODELS,
        help='names and colours of the classes (default: what the npz says, '
             'or what its number of classes tells)')
    parser.add_argument('--output', metavar='FILE',
                        help='write the picture here (.png, .jpg, .pdf, ...)')
    parser.add_argument(
        '--backend', choices=['auto', 'openvino', 'chainer'], default='auto',
        help='what runs the network on a CPU (default: OpenVINO where it is '
             'installed, else Chainer)')
    parser.add_argument('--threads', type=int, metavar='N',
                        help='threads on a CPU (default: one for each core)')
    args = parser.parse_args()
    if args.threads is not None and args.threads < 1:
        parser.error(f'--threads is {args.threads}, and must be positive')
    if args.gpu >= 0 and (args.backend, args.threads) != ('auto', None):
        parser.error('--backend and --threads are for a CPU, not for --gpu')
    args.input_size, args.image = split_sizes(parser, args)
    return args


def split_sizes(parser, args):
    """Return the input size, None or (height, width), and the image.

    `--input-size 513 1025 image.png` is meant to end at the second number,
    and argparse hands over all three.
    """
    sizes = list(itertools.takewhile(str.isdigit, args.input_size))
    images = args.input_size[len(sizes):] + [args.image] * (
        args.image is not None)
    if args.input_size and (len(sizes) not in {1, 2}
                            or min(map(int, sizes)) < 1):
        parser.error('--input-size takes one or two positive numbers, given '
                     f'was {" ".join(sizes or args.input_size)}')
    if len(images) != 1:
        parser.error(f'one image is needed, given were {len(images)}')
    return tuple(map(int, (sizes * 2)[:2])) or None, images[0]


def main():
    args = parse_args()
    with report_errors():
        from datasets import guess_dataset, label_colors, label_names
        from images import read_image
        image = read_image(args.image)
        model = load_model(args)
        dataset = args.dataset or guess_dataset(model)
        names, colors = label_names(dataset), label_colors(dataset)
        if len(names) != model.n_class:
            raise InputError(f'--dataset {dataset} has {len(names)} classes, '
                             f'and the model {model.n_class}')
        check_output(args.output)
        label = model.predict([image])[0]
        show(image, label, names, colors, args)


def load_model(args):
    """Return the link, on its device, with settings from the command line."""
    from datasets import guess_dataset
    from models import DeepLabV3plusXception65
    if args.gpu >= 0:
        check_gpu(args.gpu)
    model = DeepLabV3plusXception65(pretrained_model=args.pretrained_model)
    if args.input_size is not None:
        model.min_input_size = args.input_size
    elif 'min_input_size' not in model.metadata:
        dataset = args.dataset or guess_dataset(model)
        model.min_input_size = PRETRAINED_MODELS[dataset]['min_input_size']
    if args.gpu >= 0:
        import chainer
        chainer.cuda.get_device_from_id(args.gpu).use()
        model.to_gpu(args.gpu)
    else:
        set_backend(model, args.backend, args.threads)
    return model


def set_backend(model, backend, threads):
    """Choose what runs the link on a CPU, with how many threads."""
    if threads is not None:
        from threadpoolctl import threadpool_limits
        threadpool_limits(threads)  # of NumPy's matrix products
    if backend == 'chainer':
        model.to_chainer()
    else:
        model.to_openvino(threads, required=backend == 'openvino')


def check_gpu(gpu):
    import chainer
    if not chainer.cuda.available:
        raise InputError(f'--gpu {gpu} needs CuPy and a CUDA GPU, and Chainer '
                         'finds none: leave --gpu out to run on the CPU, or '
                         'install requirements-gpu.txt')
    count = chainer.cuda.cupy.cuda.runtime.getDeviceCount()
    if gpu >= count:
        raise InputError(f'--gpu {gpu} is not there: GPUs 0 to {count - 1} are')


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
