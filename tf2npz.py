"""Convert DeepLabV3+ Xception65 from TensorFlow to npz.

    python tf2npz.py cityscapes frozen_inference_graph.pb cityscapes.npz
    python tf2npz.py voc zoo voc.npz --verify
    python tf2npz.py custom my.pb my.npz --class-names names.txt
    python tf2npz.py --inspect my.pb

The source is a frozen graph (.pb), an archive of the official model zoo, a
checkpoint (model.ckpt), or a folder that holds one of these; an http(s) address
of one; or zoo, the dataset's own archive, which is downloaded. Every weight is
accounted for, and the settings and connections of all layers are compared with
the link's before the npz gets its name.
"""
import argparse
import gc

from command_line.model_options import image_size
from models.constants import DATASETS, OUTPUT_STRIDES
from models.utils.errors import report_errors, shortened


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', nargs='?', choices=[*DATASETS, 'custom'],
                        help='what it was trained on; custom: classes of your '
                             'own')
    parser.add_argument('source', nargs='?', help='what to convert')
    parser.add_argument('target', nargs='?', metavar='target.npz',
                        help='the file to write')
    parser.add_argument('--force', action='store_true',
                        help='overwrite target.npz if it exists')
    parser.add_argument('--inspect', metavar='SOURCE',
                        help='check SOURCE, say what it is, list its weights; '
                             'convert nothing')
    parser.add_argument('--verify', action='store_true',
                        help='run the graph in TensorFlow and the npz in the '
                             'link on a built-in image, and compare')
    parser.add_argument('--verify-on', metavar='IMAGE', action='append',
                        default=[], help='verify on an image of yours; may be '
                                         'repeated')
    custom = parser.add_argument_group('with the dataset custom')
    custom.add_argument('--class-names', metavar='FILE',
                        help='names of the classes, one a line')
    custom.add_argument('--colors', metavar='FILE',
                        help='their colours, one a line, as "128 64 128" or '
                             '"#804080" (default: a palette like VOC\'s)')
    checkpoint = parser.add_argument_group('with a checkpoint')
    checkpoint.add_argument('--output-stride', type=int, choices=OUTPUT_STRIDES,
                            help='(default: 8)')
    checkpoint.add_argument('--input-size', '--min-input-size',
                            type=image_size, metavar='SIZE',
                            help='pad smaller images to this size, 513 or '
                                 "1025x2049 (default: the dataset's)")
    args = parser.parse_intermixed_args()
    check_arguments(parser, args)
    return args


def check_arguments(parser, args):
    positional = [args.dataset, args.source, args.target]
    inspects = args.inspect is not None
    args.verify = args.verify or bool(args.verify_on)
    for wrong, message in (
            (inspects and (positional != 3 * [None] or args.verify),
             '--inspect takes its source itself; no dataset, target, --verify'),
            (not inspects and None in positional,
             'give a dataset, a source and a target.npz; or --inspect SOURCE'),
            ((args.dataset == 'custom') != (args.class_names is not None)
             or (args.colors and not args.class_names),
             'the dataset custom and --class-names (--colors) go together')):
        if wrong:
            parser.error(message)


def main():
    args = parse_args()
    gc.disable()  # hardly anything becomes garbage: saves 0.1 s
    with report_errors():
        from convert.conversion import check, write
        from convert.name_table import weight_table
        from convert.sources import opened
        from convert.verification import import_tensorflow
        from models.classes import read_classes
        from models.utils.files import atomic_path, check_target
        options = args.output_stride, args.input_size
        if args.inspect is not None:
            with opened(args.inspect, None, *options) as source:
                conversion = check(source, None)
                print_summary(conversion)
            for name, (target, _) in weight_table().items():
                print(name, 'x'.join(map(str, conversion.weights[name])), '->',
                      target)
            return

        check_target(args.target, args.force, filter(None, [
            args.source, *args.verify_on, args.class_names, args.colors]))
        if args.verify:  # before the work, where it is missing
            import_tensorflow('--verify', 'leave --verify out')
        with opened(args.source, args.dataset, *options) as source:
            check_target(args.target, args.force, source.files)
            conversion = check(source, args.dataset)
            classes = {} if args.class_names is None else read_classes(
                args.class_names, args.colors, conversion.link.n_class)
            with atomic_path(args.target) as temporary:
                write(conversion, temporary, classes)
                if args.verify:
                    print_verification(conversion, temporary, args.verify_on)
        print_summary(conversion)
        print(f'{args.target}: {len(conversion.weights)} weights converted',
              flush=True)


def print_verification(conversion, npz, paths):
    """Print how far graph and npz agree; raise InputError if too little."""
    from convert.verification import built_in_image, verify
    from media.images import read_image
    images = {path: read_image(path) for path in paths} or {
        'the built-in image': built_in_image(conversion.min_input_size)}
    print('running the graph in TensorFlow (a Cityscapes graph takes a '
          'minute) ...', flush=True)
    for found in verify(conversion, npz, images):
        height, width = found['size']
        logits = '' if 'std' not in found else (
            f'; logits differ by at most {found["max_difference"]:.1e}, on '
            f'average {found["mean_difference"]:.1e} (standard deviation '
            f'{found["std"]:.2g})')
        print(f'{found["name"]}, {height} x {width}: labels '
              f'{100 * found["equal_labels"]:.3f} % equal to TensorFlow'
              f'{logits}', flush=True)


def print_summary(conversion):
    source, link = conversion.source, conversion.link
    settings, (height, width) = conversion.settings, conversion.min_input_size
    rates, scales = (', '.join(map(str, settings.get(name, ())))
                     for name in ('atrous_rates', 'scales'))
    print(f'{source.path}: DeepLabV3+ xception_65, {conversion.dataset}, '
          f'{link.n_class} classes, output stride {link.output_stride}, '
          f'input size {height} x {width}\n  sha256 {source.sha256}')
    mirrored = ' and the mirrored image' if settings.get('flip') else ''
    for is_so, line in (
            (scales, f'averages over the scales {scales}{mirrored}, which the '
             'npz keeps'),
            ('background_outputs' in settings, 'the mean is of the softmax of '
             'all outputs; the npz keeps those that are no classes, and '
             "ChainerCV's link would leave them out"),
            ('resize_range' in settings, 'resizes images to '
             f'{settings.get("resize_range")}, which the npz keeps; '
             "ChainerCV's link would not"),
            (rates, f'atrous rates {rates}, which the npz keeps; ChainerCV\'s '
             'link would run it with its own'),
            (source.ignored, 'ignored, ' + (
                'layers of no effect on labels' if source.is_graph else
                'only needed for training') +
             f': {shortened(source.ignored)}'),
            (not source.is_graph, 'a checkpoint does not hold output stride, '
             'input size and epsilons: they are as given, or the official '
             'ones')):
        if is_so:
            print(f'  {line}')
    checked = 'names and shapes' if not source.is_graph else (
        'shapes, connections, strides, dilations and epsilons')
    print(f'  {checked} agree with the link')


if __name__ == '__main__':
    main()
