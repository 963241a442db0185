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
import contextlib
import dataclasses
import difflib
import gc
import json
import pathlib
import sys
import time

from command_line.model_options import (
    add_model_options,
    check_model_options,
    load_model,
    model_settings,
)
from command_line.processes import with_processes
from media.images import MAX_PIXELS
from media.visualization import OPACITY
from models.constants import DATASETS
from models.utils.errors import (
    InputError,
    Interrupted,
    describe,
    error_line,
    exit_code,
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
    gc.disable()  # while modules load, which leaves no garbage: saves 0.1 s
    begun = time.monotonic()
    summary = with_processes(lambda processes: run(args, processes, begun))
    with report_errors():
        finish(summary)


@dataclasses.dataclass
class Summary:
    """What this process has done."""

    total: int = 0  # inputs
    n_done: int = 0
    n_failed: int = 0
    is_complete: bool = True  # page and JSON were written
    seconds_to_load: float = 0.
    seconds: list = dataclasses.field(default_factory=list)  # of each image
    interrupted: int = 0  # the exit code, after Ctrl-C say


def run(args, processes, begun):
    """Find inputs, plan, load the model, segment and write; return a `Summary`.
    """
    from media.batch import Batch
    from media.inputs import find_inputs
    from media.outputs import earlier_results
    from media.results_page import ResultsPage
    from media.window import has_display, show_results
    check_processes(args, processes)
    inputs, problems, notes = find_inputs(args.inputs)
    earlier = set(earlier_results(inputs))
    inputs = [each for each in inputs if each not in earlier]
    kinds = [kind for kind in KINDS if getattr(args, kind)]
    in_window = processes.size == 1 and not (
        args.output or args.json or args.html or kinds) and has_display()
    results = {each: {} for each in inputs}
    if not in_window:
        plan = plan_of(args, kinds, inputs)
        results, problems = plan.results, problems + plan.problems
        if plan.n_skipped:
            notes.append(f'skipped {plan.n_skipped} with existing results')
    if earlier:
        notes.append(f'skipped {len(earlier)} that an earlier run has written: '
                     + shortened(sorted(each.name for each in earlier)))
    processes.wait()  # none writes while another still looks what exists
    mine = list(results)[processes.rank::processes.size]
    summary = Summary(len(mine))
    if processes.rank == 0:
        summary.total += len(problems)
        summary.n_failed = len(problems)
        for line in [*notes, *map(error_line, problems)]:
            print(line, file=sys.stderr, flush=True)
    if not mine:
        return summary
    segmenter = load_segmenter(args, processes)
    summary.seconds_to_load = time.monotonic() - begun
    page = args.html and ResultsPage(args.html, mine, segmenter.names,
                                     segmenter.colors, segmenter.class_filter)
    if in_window:
        outcomes = show_results(segmenter, mine, args.max_pixels)
    else:
        outcomes = Batch(segmenter, {each: results[each] for each in mine},
                         page, args.opacity, args.max_pixels,
                         existing(args), bool(args.json)).run()
    records = follow(outcomes, summary)
    for path, write in (args.html, page and page.write), (
            args.json, lambda path=args.json: write_json(path, records)):
        try:
            if path:
                write()
        except (InputError, OSError) as error:
            print(error_line(describe(error, path)), file=sys.stderr)
            summary.is_complete = False
    return summary


def check_processes(args, processes):
    """Refuse what several processes cannot share."""
    if processes.size > 1:
        for option, used in (('--html', args.html), ('--json', args.json),
                             ('- (standard input)', '-' in args.inputs)):
            if used:
                raise InputError(f'{option} is for one process: leave mpiexec '
                                 f'out, or {option.split()[0]}')


def plan_of(args, kinds, inputs):
    from media.outputs import DEFAULT, plan_outputs
    if not kinds and (args.output or not (args.json or args.html)):
        kinds = DEFAULT
    documents = {'--json': args.json, '--html': args.html}
    return plan_outputs(
        kinds, args.output, inputs, existing(args),
        {option: path for option, path in documents.items() if path},
        set() if args.pretrained_model in DATASETS else {args.pretrained_model})


def existing(args):
    from media.outputs import REFUSE, REPLACE, SKIP
    return (REPLACE if args.force else
            SKIP if args.skip_existing else REFUSE)


def load_segmenter(args, processes):
    from media.segmentation import Segmenter
    from models.classes import labels_of, numbered_names
    model = load_model(args.pretrained_model, processes,
                       **model_settings(args))
    names, colors = labels_of(model, args.dataset)
    if processes.rank == 0 and names == numbered_names(model.n_class):
        print(f'{args.pretrained_model} does not name its {len(names)} '
              'classes: they are numbered here (--class-names of tf2npz.py '
              'names them)', file=sys.stderr)
    class_filter = class_numbers(args.classes, names)
    model.freeze()  # warns now where OpenVINO is unavailable
    gc.freeze()
    gc.enable()
    return Segmenter(model, names, colors, class_filter, args.max_size,
                     None if args.memory is None else args.memory * 1e9)


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


def follow(outcomes, summary):
    """Count and print each outcome; return the records of all images."""
    from tqdm import tqdm
    records = []
    with tqdm(total=summary.total - summary.n_failed, unit='input',
              disable=None if summary.total > 1 else True) as bar:

        def take(outcome):
            records.extend(outcome.records)
            summary.seconds += outcome.seconds
            summary.n_failed += outcome.error is not None
            summary.n_done += outcome.error is None and outcome.is_whole
            say(outcome, bar)

        try:
            for outcome in outcomes:
                take(outcome)
        except KeyboardInterrupt as error:
            summary.interrupted = exit_code(error)
            with contextlib.suppress(KeyboardInterrupt, StopIteration):
                take(outcomes.throw(KeyboardInterrupt))  # what was begun
                for outcome in outcomes:
                    take(outcome)
    return records


def say(outcome, bar):
    for path in outcome.paths:
        bar.write(str(path))
    sys.stdout.flush()
    for line in outcome.notes:
        bar.write(f'{outcome.each.name}: {line}', file=sys.stderr)
    if outcome.error is not None:
        bar.write(error_line(outcome.error), file=sys.stderr)
    bar.update()


def write_json(path, records):
    from models.utils.files import atomic_path
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + '\n')


def finish(summary):
    """Print times and failures; exit with 1 where there are some."""
    if summary.seconds:  # loading and the first image, which compiles, apart
        first, *rest = summary.seconds
        line = (f'loading {summary.seconds_to_load:.2f} s, first image '
                f'{first:.2f} s')
        if rest:
            line += f', {len(rest)} more at {sum(rest) / len(rest):.2f} s each'
        print(line, file=sys.stderr)
    if summary.interrupted:
        raise Interrupted(f'interrupted: {summary.n_done} of {summary.total} '
                          'done', summary.interrupted)
    if summary.n_failed and summary.total > 1:
        print(f'{summary.n_failed} of {summary.total} failed', file=sys.stderr)
    if summary.n_failed or not summary.is_complete:
        sys.exit(1)


if __name__ == '__main__':
    main()
