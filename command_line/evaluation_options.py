"""The options of eval_cityscapes.py, eval_voc.py and eval_ade20k.py."""
import argparse
import pathlib

from command_line.model_options import add_model_options, check_model_options
from command_line.processes import with_processes


def parse_args(dataset, description, argv=None):
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, dataset)
    parser.add_argument('--data-dir', type=pathlib.Path, metavar='DIR',
                        help='where the dataset was unpacked (default: where '
                             'ChainerCV keeps it; VOC2012 and ADE20K are '
                             'downloaded there)')
    parser.add_argument('--images', type=pathlib.Path, metavar='DIR',
                        help='a folder of images, instead of --data-dir')
    parser.add_argument('--labels', type=pathlib.Path, metavar='DIR',
                        help='with --images: a folder of label PNGs with the '
                             'same names, at any depth')
    parser.add_argument('--label-map', type=pathlib.Path, metavar='FILE|NAME',
                        help="what the labels' values mean: lines of 'value "
                             "class' or 'R G B class', a class from 0 or "
                             "'ignored'; or trainids, from0, official")
    parser.add_argument('--split', default='val',
                        help='which of its images (default: %(default)s)')
    parser.add_argument('--limit', type=int, metavar='N',
                        help='only the first N images')
    parser.add_argument('--save-interval', type=float, default=20.,
                        metavar='SECONDS', help='how often to save what '
                        'resuming needs (default: %(default)g)')
    parser.add_argument('--save-predictions', action='store_true',
                        help='write label images to predictions/ beside the '
                             "report, in the form of the dataset's benchmark")
    parser.add_argument('--force', action='store_true',
                        help='evaluate anew, whatever --output holds')
    parser.add_argument('--output', metavar='DIR', type=pathlib.Path,
                        default=pathlib.Path(f'report_{dataset}'),
                        help='for the report, and what resuming needs '
                             '(default: %(default)s)')
    args = parser.parse_args(argv)
    check_model_options(parser, args)
    if (args.images is None) != (args.labels is None) or (
            args.data_dir and args.images):
        parser.error('--images and --labels go together, without --data-dir')
    for folder in filter(None, (args.images, args.labels)):
        if args.save_predictions and folder.resolve() in (
                args.output / 'predictions').resolve().parents:
            parser.error(f'--output {args.output} is in {folder}, and a later '
                         'run would read the predictions: give another')
    if args.limit is not None and args.limit < 1:
        parser.error(f'--limit is {args.limit}, and must be positive')
    return args


def main(dataset, description):
    """Evaluate a model on a dataset, as the command line says."""
    args = parse_args(dataset, description)

    def run(processes):
        from command_line.evaluation import measure  # too slow for --help
        measure(dataset, args, processes)

    with_processes(run)
