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
from media import MAX_PIXELS, OPACITY
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
    if args.dataset and DATASETS.get(args.pretrained_model) not in (
            None, DATASETS[args.dataset]):
        parser.error(f'--dataset {args.dataset} has other classes than the '
                     f'{args.pretrained_model} model: leave one out')
    if args.opacity is not None and not (
            args.overlay and 0 <= args.opacity <= 1):
        parser.error('--opacity goes with --overlay, and must be 0 to 1')
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
    done = with_processes(lambda processes: run(args, processes, begun))
    with report_errors():
        finish(*done)


def run(args, processes, begun):
    """Find inputs, plan, load the model, segment and write; return what
    `finish` takes.
    """
    from media.batch import Batch, threads_beside
    from media.inputs import find_inputs, is_read_once
    from media.outputs import REFUSE, REPLACE, SKIP, plan_outputs
    from media.results_page import ResultsPage
    from media.segmentation import Segmenter
    from media.visualization import Style
    from media.window import has_display, show_results
    from models.classes import labels_of, numbered_names
    if processes.size > 1 and (args.html or args.json or any(
            map(is_read_once, args.inputs))):
        raise InputError('several processes cannot share --html, --json, pipes '
                         'and - (standard input): leave mpiexec out, or these')
    pretrained_model = args.pretrained_model or args.dataset or DEFAULT_MODEL
    kinds = [kind for kind in KINDS if getattr(args, kind)]
    existing = (REPLACE if args.force else
                SKIP if args.skip_existing else REFUSE)
    inputs, problems, notes = find_inputs(args.inputs)
    in_window = processes.size == 1 and not (
        args.output or args.json or args.html or kinds) and has_display()
    if in_window:
        results = {each: {} for each in inputs}
    else:
        results, refused, skipped = plan_outputs(
            kinds, args.output, inputs, existing,
            {'--json': args.json, '--html': args.html},
            {pretrained_model} - DATASETS.keys())
        problems, notes = problems + refused, notes + skipped
    processes.wait()  # none writes while another still looks what exists
    mine = dict(list(results.items())[processes.rank::processes.size])
    if processes.rank > 0:  # process 0 says and counts them
        problems, notes = [], []
    for line in [*notes, *map(error_line, problems)]:
        print(line, file=sys.stderr, flush=True)
    n_inputs = len(mine) + len(problems)
    if not mine:
        return n_inputs, len(problems)
    model = load_model(pretrained_model, processes, **model_settings(args))
    names, colors = labels_of(model, args.dataset)
    if processes.rank == 0 and names == numbered_names(model.n_class):
        print(f'{pretrained_model} does not name its {len(names)} classes: '
              'they are numbered here (--class-names of tf2npz.py names them)',
              file=sys.stderr)
    style = Style(names, colors, class_numbers(args.classes, names),
                  OPACITY if args.opacity is None else args.opacity)
    segmenter = Segmenter(model, args.max_size,
                          args.memory and args.memory * 1e9)
    model.freeze()  # warns now where OpenVINO is unavailable
    gc.freeze()
    gc.enable()
    seconds_to_load = time.monotonic() - begun
    page = ResultsPage(args.html, mine, style) if args.html else None
    outcomes, interrupted = follow(
        show_results(segmenter, mine, style, args.max_pixels) if in_window else
        Batch(segmenter, style, mine, page, args.max_pixels, existing,
              bool(args.json), threads_beside(model)).run(), len(mine))
    writers = {args.html: page.write} if page else {}
    if args.json:
        writers[args.json] = lambda: write_json(args.json, outcomes)
    return (n_inputs, len(problems), outcomes, write_documents(writers),
            seconds_to_load, interrupted)


def class_numbers(wanted, names):
    """Return the numbers of the classes of these names; None for all."""
    for name in wanted or ():
        if name not in names:
            near = difflib.get_close_matches(name, names, 3)
            raise InputError(f'--classes: {name} is none of the classes, such '
                             f'as {shortened(near or names)}')
    return None if wanted is None else {names.index(name) for name in wanted}


def follow(outcomes, n_inputs):
    """Print each outcome as it comes; return all, and the exit code of Ctrl-C
    or 0.
    """
    from tqdm import tqdm
    done = []
    with tqdm(total=n_inputs, unit='input',
              disable=None if n_inputs > 1 else True) as bar:

        def take(some):
            for outcome in some:
                done.append(outcome)
                say(outcome, bar)

        try:
            take(outcomes)
        except KeyboardInterrupt as error:
            with contextlib.suppress(KeyboardInterrupt, StopIteration):
                take([outcomes.throw(error)])  # of what was begun
                take(outcomes)
            return done, exit_code(error)
    return done, 0


def say(outcome, bar):
    for path in outcome.paths:
        bar.write(str(path))
    sys.stdout.flush()
    for line in outcome.notes:
        bar.write(f'{outcome.each.name}: {line}', file=sys.stderr)
    if outcome.error is not None:
        bar.write(error_line(outcome.error), file=sys.stderr)
    bar.update()


def write_documents(writers):
    """Call what writes each path; return whether all could be written."""
    is_complete = True
    for path, write in writers.items():
        try:
            write()
        except (InputError, OSError) as error:
            print(error_line(describe(error, path)), file=sys.stderr)
            is_complete = False
    return is_complete


def write_json(path, outcomes):
    from models.utils.files import atomic_path
    records = [record for each in outcomes for record in each.records]
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + '\n')


def finish(n_inputs, n_failed, outcomes=(), is_complete=True,
           seconds_to_load=0., interrupted=0):
    """Print times and failures; exit with 1 where there are some.

    `n_failed` inputs have no outcome, as the plan refused them; `interrupted`
    is the exit code after Ctrl-C, or 0.
    """
    n_failed += sum(each.error is not None for each in outcomes)
    seconds = [value for each in outcomes for value in each.seconds]
    if seconds:  # loading and the first image, which compiles, apart
        first, *rest = seconds
        print(f'loading {seconds_to_load:.2f} s, first image {first:.2f} s' + (
            f', {len(rest)} more at {sum(rest) / len(rest):.2f} s each'
            if rest else ''), file=sys.stderr)
    if interrupted:
        n_done = sum(each.error is None and each.is_whole for each in outcomes)
        raise Interrupted(f'interrupted: {n_done} of {n_inputs} done',
                          interrupted)
    if n_failed and n_inputs > 1:
        print(f'{n_failed} of {n_inputs} failed', file=sys.stderr)
    if n_failed or not is_complete:
        sys.exit(1)


if __name__ == '__main__':
    main()
