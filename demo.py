"""Segment images with DeepLabV3+.

    python demo.py image.jpg
    python demo.py photos/ --output results --overlay --indexed --html all.html
    python demo.py --pretrained-model voc.npz --output out.png image.jpg

An input is an image, a folder, a pattern, an http(s) address, a video,
numbered frames (frame_%04d.png), or - for standard input. Without --output a
window opens where there is a display; elsewhere files are written, and their
names are printed.
"""
import argparse
import difflib
import gc
import json
import pathlib
import sys

from command_line.model_options import (
    add_model_options,
    check_model_options,
    load_model,
)
from command_line.processes import with_processes
from media.images import MAX_PIXELS
from media.visualization import OPACITY
from models.constants import DATASETS
from models.utils.errors import (
    InputError,
    Interrupted,
    report_errors,
    shortened,
)

DEFAULT_MODEL = 'cityscapes'
KINDS = {  # option of each kind of image: its help
    'figure': 'image, segmentation and legend (default of an image, unless '
              'only --json or --html is given)',
    'overlay': 'the colours of the classes over the image (default of a '
               'video)',
    'color_map': 'the colours of the classes alone',
    'indexed': 'a PNG that holds the exact classes, and opens in colour; of a '
               'video a folder of them',
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='demo.py [options] input [input ...]')
    parser.add_argument('inputs', nargs='*', metavar='input',
                        help='what to segment')
    add_model_options(parser, None, f'that of --dataset, else {DEFAULT_MODEL}')
    parser.add_argument(
        '--dataset', choices=DATASETS,
        help="names and colours of the classes (default: the npz's, else "
             'those of the dataset with as many)')
    parser.add_argument('--classes', nargs='+', metavar='NAME',
                        help='show and report only these (give the inputs '
                             'first)')
    parser.add_argument('--max-size', type=int, metavar='PIXELS',
                        help='shrink images whose longer side is longer than '
                             'this; labels are written at full size')
    parser.add_argument('--memory', type=float, metavar='GB',
                        help='work in overlapping tiles where an image needs '
                             'more (default: what is free)')
    parser.add_argument('--max-pixels', type=int, metavar='N',
                        default=MAX_PIXELS, help='refuse larger images '
                        '(default: %(default)s)')
    add_output_options(parser)
    args = parser.parse_intermixed_args()
    check_arguments(parser, args)
    return args


def add_output_options(parser):
    outputs = parser.add_argument_group('what is written')
    outputs.add_argument('--output', metavar='DIR|FILE',
                         help='a folder, or a file for a single result '
                              '(default: this folder)')
    for kind, text in KINDS.items():
        outputs.add_argument(f'--{kind.replace("_", "-")}', help=text,
                             action='store_true')
    outputs.add_argument('--opacity', type=float, metavar='0..1',
                         help=f'of the colours (default: {OPACITY})')
    outputs.add_argument('--json', metavar='FILE',
                         help='shares of the classes, sizes and times of all '
                              'images')
    outputs.add_argument('--html', metavar='FILE',
                         help='one page with all results, to look at')
    existing = outputs.add_mutually_exclusive_group()
    existing.add_argument('--force', action='store_true',
                          help='overwrite existing results')
    existing.add_argument('--skip-existing', action='store_true',
                          help='skip inputs with existing results')


def check_arguments(parser, args):
    if not args.inputs:
        parser.error('an input is needed' + (
            ', before --classes' if args.classes else ''))
    check_model_options(parser, args)
    if args.pretrained_model is None:
        args.pretrained_model = args.dataset or DEFAULT_MODEL
    if args.dataset and args.pretrained_model in DATASETS and (
            DATASETS[args.pretrained_model] != DATASETS[args.dataset]):
        parser.error(f'--dataset {args.dataset} has other classes than the '
                     f'{args.pretrained_model} model: leave one out')
    if args.opacity is not None and not args.overlay:
        parser.error('--opacity goes with --overlay')
    args.opacity = OPACITY if args.opacity is None else args.opacity
    if not 0 <= args.opacity <= 1:
        parser.error(f'--opacity is {args.opacity}, and must be 0 to 1')
    for name in 'max_size', 'memory', 'max_pixels':
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f'--{name.replace("_", "-")} must be positive')
    if args.skip_existing and (args.json or args.html):
        parser.error('--json and --html would not have the results that '
                     '--skip-existing skips')


def main():
    args = parse_args()
    gc.disable()  # until all is loaded, and nothing is garbage: 0.1 s
    tally = with_processes(lambda processes: segment(args, processes))
    if tally is not None:
        with report_errors():
            finish(tally)


def segment(args, processes):
    """Do all; return the `Tally` of all processes on process 0, None elsewhere.
    """
    from media.segmentation import Tally
    inputs, tally = [], Tally()
    if processes.size > 1 and '-' in args.inputs:
        raise InputError('- (standard input) is for one process: leave mpiexec '
                         'out, or name a file')
    if processes.rank == 0:
        inputs = find(args, tally)
    if processes.size == 1 and wants_window(args):
        show(args, inputs, tally, processes)
    else:
        write(args, inputs, tally, processes)
    return tally if processes.rank == 0 else None


def find(args, tally):
    """Return the inputs; say which are missing or passed over."""
    from media.inputs import find_inputs
    from media.outputs import earlier_results
    inputs, problems, notes = find_inputs(args.inputs)
    earlier = earlier_results(inputs, args.output)
    inputs = [each for each in inputs if each not in earlier]
    tally.total = len(inputs) + len(problems)
    for note in notes:
        tally.say(note, sys.stderr)
    say_earlier(earlier, tally)
    for problem in problems:
        tally.failed(problem)
    return inputs


def say_earlier(results, tally):
    if results:
        tally.say(f'skipped {len(results)} that an earlier run has written: '
                  + shortened(sorted(each.name for each in results)),
                  sys.stderr)


def wants_window(args):
    from media.window import has_display
    in_files = args.output or args.json or args.html or chosen_kinds(args)
    return not in_files and has_display()


def chosen_kinds(args):
    return [kind for kind in KINDS if getattr(args, kind)]


def show(args, inputs, tally, processes):
    """Segment images and show them in windows."""
    from media.window import show_results
    if inputs:
        segmenter = load_segmenter(args, tally, processes)
        with tally.interruptible():
            show_results(segmenter, inputs, args.max_pixels)


def write(args, inputs, tally, processes):
    """Segment inputs and write what is asked for."""
    from media.batch import Batch
    from media.results_page import ResultsPage
    outputs = plan(args, inputs, tally) if processes.rank == 0 else None
    outputs = processes.share(outputs)[0]
    page, records = None, {} if args.json else None
    share = dict(list(outputs.items())[processes.rank::processes.size])
    segmenter = load_segmenter(args, tally, processes) if share else None
    if args.html and outputs:
        page = ResultsPage(args.html, outputs, *(
            (segmenter.names, segmenter.colors, segmenter.class_filter)
            if segmenter else ((), (), None)))
    if share:
        with tally.interruptible():
            Batch(segmenter, share, page, args.opacity, args.max_pixels,
                  args.skip_existing, records).run()
    processes.wait()
    collect(args, outputs, tally, page, records, processes)


def plan(args, inputs, tally):
    """Return where results go, see `outputs.Plan`; count what cannot be."""
    from media.outputs import DEFAULT, REFUSE, REPLACE, SKIP, plan_outputs
    kinds = chosen_kinds(args)
    if not kinds and (args.output or not (args.json or args.html)):
        kinds = DEFAULT
    found = plan_outputs(
        kinds, args.output, inputs, REPLACE if args.force else
        SKIP if args.skip_existing else REFUSE,
        {option: path for option, path in (
            ('--json', args.json), ('--html', args.html)) if path},
        [args.pretrained_model])
    say_earlier(found.earlier, tally)
    tally.total -= len(found.earlier)
    for problem in found.problems:
        tally.failed(problem)
    if found.n_skipped:
        tally.say(f'skipped {found.n_skipped} with existing results',
                  sys.stderr)
    return found.results


def collect(args, outputs, tally, page, records, processes):
    """Count what all processes have done; process 0 writes page and JSON."""
    tally.collect(processes)
    if args.html and outputs:
        page.collect(processes)
        if processes.rank == 0:
            with tally.reporting(args.html, is_input=False):
                page.write()
    found = processes.gather(records)
    if args.json and outputs and processes.rank == 0:
        records = {each: some for part in found for each, some in part.items()}
        with tally.reporting(args.json, is_input=False):
            write_json(args.json, [record for each in outputs
                                   for record in records.get(each, [])])


def load_segmenter(args, tally, processes):
    from media.segmentation import Segmenter
    from models.classes import labels_of, numbered_names
    model = load_model(args, processes)
    names, colors = labels_of(model, args.dataset)
    if processes.rank == 0 and names == numbered_names(model.n_class):
        tally.say(f'{args.pretrained_model} does not name its {len(names)} '
                  'classes: they are numbered here (--class-names of tf2npz.py '
                  'names them)', sys.stderr)
    class_filter = class_numbers(args.classes, names)
    model.freeze()  # warns now where OpenVINO is unavailable
    memory = None if args.memory is None else args.memory * 1e9
    tally.loaded()
    gc.freeze()
    gc.enable()
    return Segmenter(model, names, colors, class_filter, args.max_size,
                     memory, tally)


def class_numbers(wanted, names):
    """Return the numbers of the classes of these names; None for all."""
    if wanted is None:
        return None
    unknown = [name for name in wanted if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 3)
        raise InputError(f'--classes: {unknown[0]} is none of the classes; '
                         + (f'near are {", ".join(near)}' if near else
                            f'they are {shortened(names)}'))
    return {names.index(name) for name in wanted}


def write_json(path, records):
    from models.utils.files import atomic_path
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + '\n')


def finish(tally):
    """Print times and failures; exit with 1 where there are some."""
    if tally.times:
        print_times(tally.seconds_to_load, tally.times)
    if tally.interrupted:
        raise Interrupted(f'interrupted: {tally.n_done} of {tally.total} done',
                          tally.interrupted)
    if tally.n_failed and tally.total > 1:
        print(f'{tally.n_failed} of {tally.total} failed', file=sys.stderr)
    if tally.n_failed or not tally.is_complete:
        sys.exit(1)


def print_times(loading, times):
    """Loading and the first image, which compiles, apart from the rest."""
    line = f'loading {loading:.2f} s, first image {times[0]:.2f} s'
    if len(times) > 1:
        rest = sum(times[1:]) / (len(times) - 1)
        line += f', {len(times) - 1} more at {rest:.2f} s each'
    print(line, file=sys.stderr)


if __name__ == '__main__':
    main()
