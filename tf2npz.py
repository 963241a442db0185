"""Convert DeepLabV3+ Xception65 from TensorFlow to npz.

    python tf2npz.py cityscapes frozen_inference_graph.pb cityscapes.npz
    python tf2npz.py voc model_zoo.tar.gz voc.npz --verify
    python tf2npz.py custom my.pb my.npz --class-names names.txt
    python tf2npz.py --inspect my.pb

The source is a frozen graph (.pb), an archive of the official model zoo, a
checkpoint (model.ckpt), or a folder that holds one of these. Every weight is
accounted for, and how layers are set and connected is compared with the link
before the npz gets its name.
"""
import argparse
import json

from convert.conversion import CUSTOM, TASKS, Conversion
from models.constants import OUTPUT_STRIDES
from models.utils.errors import InputError, report_errors


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', nargs='?', choices=TASKS,
                        help='what it was trained for; custom: classes of '
                             'your own')
    parser.add_argument('source', nargs='?', help='what to convert')
    parser.add_argument('target', nargs='?', metavar='target.npz',
                        help='the file to write')
    parser.add_argument('--inspect', metavar='SOURCE',
                        help='convert nothing; print what SOURCE is')
    parser.add_argument('--json', action='store_true',
                        help='with --inspect: print it for a machine')
    parser.add_argument('--verify', nargs='*', metavar='IMAGE',
                        help='run the graph in TensorFlow and the npz in the '
                             'link on these images, or on a built-in one, and '
                             'compare')
    custom = parser.add_argument_group('with the task custom')
    custom.add_argument('--class-names', metavar='FILE',
                        help='names of the classes, one a line')
    custom.add_argument('--colors', metavar='FILE',
                        help='their colours, one a line, as "128 64 128" or '
                             '"#804080" (default: a palette like VOC\'s)')
    checkpoint = parser.add_argument_group('with a checkpoint')
    checkpoint.add_argument('--output-stride', type=int, choices=OUTPUT_STRIDES,
                            help='(default: 8)')
    checkpoint.add_argument('--crop-size', type=int, nargs=2,
                            metavar=('HEIGHT', 'WIDTH'),
                            help='smaller images are padded to it (default: '
                                 "the task's)")
    args = parser.parse_args()
    check_arguments(parser, args)
    return args


def check_arguments(parser, args):
    positional = [args.task, args.source, args.target]
    if args.inspect is not None:
        if any(value is not None for value in positional):
            parser.error('--inspect takes its source itself, and no task or '
                         'target')
        if args.verify is not None:
            parser.error('--verify is for a conversion, not for --inspect')
    elif None in positional:
        parser.error('needed are a task, a source and a target.npz; or '
                     '--inspect SOURCE')
    if args.json and args.inspect is None:
        parser.error('--json goes with --inspect')
    if (args.task == CUSTOM) != (args.class_names is not None):
        parser.error('the task custom and --class-names go together')
    if args.colors and not args.class_names:
        parser.error('--colors goes with --class-names')
    if args.crop_size and min(args.crop_size) < 1:
        parser.error('--crop-size must be positive')


def main():
    args = parse_args()
    with report_errors():
        if args.inspect is not None:
            print_inspection(args)
        else:
            convert(args)


def print_inspection(args):
    from convert.inspection import describe, inspect
    from convert.sources import open_source
    found = inspect(open_source(args.inspect, args.output_stride,
                                args.crop_size))
    print(json.dumps(found, indent=1) if args.json else describe(found))
    if found['problem']:
        raise InputError(found['problem'])


def convert(args):
    from convert.sources import open_source
    from models.classes import read_classes
    from models.utils.files import atomic_path, check_not_source
    source = open_source(args.source, args.output_stride, args.crop_size)
    check_not_source(args.target, source.path)
    conversion = Conversion(source, args.task)
    classes = {} if args.class_names is None else read_classes(
        args.class_names, args.colors, conversion.link.n_class)
    if args.verify is not None and conversion.structure is None:
        raise InputError(f'{source.path} is a checkpoint, which has no graph '
                         'to run: leave --verify out, or export a graph')
    with atomic_path(args.target) as temporary:
        conversion.write(temporary, **classes)
        if args.verify is not None:
            print_verification(conversion, temporary, args.verify)
    print_summary(conversion, args.target)


def print_summary(conversion, target):
    source, found = conversion.source, conversion.metadata()
    height, width = found['min_input_size']
    print(f'{source.path}: DeepLabV3+ xception_65, {found["task"]}, '
          f'{found["n_class"]} classes, output stride '
          f'{found["output_stride"]}, crop {height} x {width}')
    print(f'  sha256 {source.sha256}')
    if source.ignored:
        print('  ignored, needed for training only: '
              f'{", ".join(source.ignored)}')
    if conversion.structure is None:
        print('  a checkpoint does not tell output stride, crop and epsilons: '
              'these are as asked for, or the official ones')
        checked = 'names and shapes'
    else:
        checked = 'names, shapes, connections, strides, dilations and epsilons'
    n_weights = len(source.weights)
    print(f'{target}: {n_weights} weights converted; {checked} agree with '
          'the link', flush=True)


def print_verification(conversion, npz, paths):
    from convert.verification import verify
    print('running the graph in TensorFlow (a Cityscapes graph takes a '
          'minute) ...', flush=True)
    for found in verify(conversion, npz, paths):
        height, width = found['size']
        print(f'{found["name"]}, {height} x {width}: labels '
              f'{100 * found["equal_labels"]:.3f} % equal to TensorFlow; '
              f'logits differ by at most {found["max_difference"]:.1e}, on '
              f'average {found["mean_difference"]:.1e} (standard deviation '
              f'{found["std"]:.2g})', flush=True)


if __name__ == '__main__':
    main()
