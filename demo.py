"""Segment pictures with DeepLabV3+.

    python demo.py image.jpg
    python demo.py photos/ --output results --overlay --indexed --html all.html
    python demo.py --pretrained-model voc.npz --output out.png image.jpg

An input is a picture, a folder, a pattern, an http(s) address, a video,
numbered frames (frame_%04d.png), or - for standard input. Without --output a
window opens where there is a display; elsewhere files are written, whose names
are printed.
"""
import argparse
import contextlib
import json
import os
import sys
import time

from command_line.model import (
    add_model_arguments,
    check_model_arguments,
    load_model,
    split_numbers,
)
from media.images import MAX_PIXELS
from models.pretrained import PRETRAINED_MODELS
from models.utils.errors import InputError, drop_output, report_errors


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='demo.py [options] input [input ...]')
    parser.add_argument('inputs', nargs='*', metavar='input',
                        help='what to segment')
    add_model_arguments(parser, 'cityscapes')
    parser.add_argument(
        '--dataset', choices=PRETRAINED_MODELS,
        help='names and colours of the classes (default: what the npz says, '
             'or what its number of classes tells)')
    parser.add_argument('--classes', nargs='+', metavar='NAME',
                        help='show and report only these (give the inputs '
                             'first)')
    parser.add_argument('--max-size', type=int, metavar='PIXELS',
                        help='shrink pictures whose longer side is longer '
                             'than this; labels come back at full size')
    parser.add_argument('--memory', type=float, metavar='GB',
                        help='work in overlapping tiles where a picture '
                             'needs more (default: what is free)')
    parser.add_argument('--max-pixels', type=int, metavar='N',
                        default=MAX_PIXELS, help='refuse pictures of more '
                        '(default: %(default)s)')
    add_output_arguments(parser)
    args = parser.parse_args()
    check_arguments(parser, args)
    return args


def add_output_arguments(parser):
    outputs = parser.add_argument_group('what is written')
    outputs.add_argument('--output', metavar='DIR|FILE',
                         help='a folder, or a file for a single result '
                              '(default: this folder)')
    outputs.add_argument('--figure', action='store_true',
                         help='picture, segmentation and legend (default, '
                              'unless only --json or --html is asked for)')
    outputs.add_argument('--overlay', action='store_true',
                         help='the colours of the classes over the picture')
    outputs.add_argument('--opacity', type=float, metavar='0..1',
                         help='of the colours (default: 0.6)')
    outputs.add_argument('--color-map', action='store_true',
                         help='the colours of the classes alone')
    outputs.add_argument('--indexed', action='store_true',
                         help='a PNG that holds the exact classes, and opens '
                              'in colour')
    outputs.add_argument('--json', metavar='FILE',
                         help='shares of the classes, sizes and times of all '
                              'pictures')
    outputs.add_argument('--html', metavar='FILE',
                         help='one page with all results, to look at')
    existing = outputs.add_mutually_exclusive_group()
    existing.add_argument('--force', action='store_true',
                          help='overwrite what is there')
    existing.add_argument('--skip-existing', action='store_true',
                          help='leave out what is there already')


def check_arguments(parser, args):
    args.input_size, more = split_numbers(args.input_size)
    args.scales, others = split_numbers(args.scales)
    args.inputs += more + others
    if not args.inputs:
        parser.error('an input is needed' + (
            ', before --classes' if args.classes else ''))
    check_model_arguments(parser, args)
    if args.opacity is not None and not args.overlay:
        parser.error('--opacity goes with --overlay')
    args.opacity = 0.6 if args.opacity is None else args.opacity
    if not 0 <= args.opacity <= 1:
        parser.error(f'--opacity is {args.opacity}, and must be 0 to 1')
    for name in 'max_size', 'memory', 'max_pixels':
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f'--{name.replace("_", "-")} must be positive')
    if args.skip_existing and (args.json or args.html):
        parser.error('--skip-existing leaves results out, which --json and '
                     '--html would not have')


def main():
    args = parse_args()
    with report_errors():
        from media.inputs import find_inputs
        from media.outputs import KINDS, Outputs
        begun = time.monotonic()
        inputs, problems = find_inputs(args.inputs)
        kinds = [kind for kind in KINDS if getattr(args, kind)]
        to_file = kinds or args.output or args.json or args.html
        tally = Tally(len(inputs) + len(problems))
        if not to_file and has_display():
            outputs, left, skipped = None, inputs, 0
        else:
            if not kinds and (args.output or not to_file):
                kinds = ['figure']
            outputs = Outputs(kinds, args.output, inputs)
            left, skipped = unwritten(outputs, args)
            problems += outputs.problems
        for problem in problems:
            tally.failed(problem)
        if left:
            segment_all(left, outputs, args, tally, begun)
        if skipped:
            print(f'{skipped} left out, as they are there already',
                  file=sys.stderr)
        if tally.n_failed:
            if tally.total > 1:
                print(f'{tally.n_failed} of {tally.total} failed',
                      file=sys.stderr)
            sys.exit(1)


class Tally:
    """How many inputs are done, and how many failed."""

    def __init__(self, total):
        self.total, self.n_done, self.n_failed = total, 0, 0
        self.bar = None  # a progress bar to write above

    def failed(self, reason):
        self.n_failed += 1
        self.say('error: ' + ' '.join(str(reason).split()), sys.stderr)

    def say(self, line, file=sys.stdout):
        try:
            if self.bar is None:
                print(line, file=file, flush=True)
            else:
                self.bar.write(str(line), file=file)
                file.flush()
        except BrokenPipeError:
            drop_output()


def has_display():
    """Tell whether a window can be opened."""
    if sys.platform == 'linux' and not (
            os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        return False
    from matplotlib import pyplot as plt
    canvas = plt.figure().canvas
    plt.close()
    return canvas.required_interactive_framework is not None


def unwritten(outputs, args):
    """Return the inputs to be segmented, and how many are there already."""
    left, skipped = [], 0
    for each in list(outputs.paths):
        existing = [path for path in outputs.paths[each].values()
                    if path.exists()]
        if args.skip_existing and len(existing) == len(outputs.paths[each]):
            skipped += 1
        elif existing and not args.force and not args.skip_existing:
            outputs.problems.append(
                f'{existing[0]} exists: give --force to overwrite it, or '
                '--skip-existing to leave it out')
        else:
            left.append(each)
    for path in filter(None, (args.json, args.html)):
        if os.path.exists(path) and not args.force:
            raise InputError(f'{path} exists: give --force to overwrite it')
    return left, skipped


def segment_all(inputs, outputs, args, tally, begun):
    """Segment inputs, one after another, and write what is asked for, or
    where `outputs` is None show it in windows.
    """
    from models.classes import labels_of
    model = load_model(args, args.dataset)
    names, colors = labels_of(model, args.dataset)
    shown = shown_classes(args.classes, names)
    model.network()  # now it is known whether OpenVINO is to be had
    loaded = time.monotonic() - begun
    from media.segmentation import Segmenter
    with contextlib.ExitStack() as stack:
        page = None
        if args.html:
            from media.results_page import ResultsPage
            page = stack.enter_context(
                ResultsPage(args.html, names, colors, shown))
        segmenter = Segmenter(model, names, colors, shown, outputs, page,
                              args, tally)
        interrupted = False
        try:
            if outputs is None:
                segmenter.show(inputs)
            else:
                segmenter.run(inputs)
        except KeyboardInterrupt:
            interrupted = True
    if args.json:
        write_json(args.json, segmenter.results)
    print_times(loaded, segmenter.times)
    if interrupted:
        raise InputError(f'interrupted: {tally.n_done} of {tally.total} done')


def shown_classes(wanted, names):
    """Return the numbers of the classes of these names; None for all."""
    if wanted is None:
        return None
    unknown = [name for name in wanted if name not in names]
    if unknown:
        import difflib
        near = difflib.get_close_matches(unknown[0], names, 3)
        raise InputError(f'--classes: {unknown[0]} is none of the classes; '
                         + (f'near are {", ".join(near)}' if near else
                            f'they are {", ".join(names[:30])}'))
    return {names.index(name) for name in wanted}


def write_json(path, results):
    from models.utils.files import atomic_path
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + '\n')


def print_times(loaded, times):
    """Loading and the first run, which compiles, apart from the rest."""
    if not times:
        return
    line = f'loading {loaded:.2f} s, first picture {times[0]:.2f} s'
    if len(times) > 1:
        rest = sum(times[1:]) / (len(times) - 1)
        line += f', {len(times) - 1} more at {rest:.2f} s each'
    print(line, file=sys.stderr)


if __name__ == '__main__':
    main()
