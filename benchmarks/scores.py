"""Measure the README's table of scores: VOC2012, ADE20K and Cityscapes val.

    python benchmarks/scores.py

Models and data are downloaded to where ChainerCV keeps them; Cityscapes, which
needs a login, is evaluated where its two archives were put there. The same
command resumes a stopped run. Other options are those of eval_voc.py, as
--gpu 0. With mpiexec -n 2, two processes share the images.
"""
import argparse
import pathlib
import sys

from speed import ROOT, timed

from command_line.evaluation import finish, parse_args, prepare
from command_line.processes import with_processes
from models.utils.errors import InputError, error_line
from models.utils.files import atomic_path

HEAD = '| Trained on | Evaluated on | Frozen graph | Converted |'
ROWS = 'voc', 'cityscapes', 'ade20k'  # below this head in README.md
ORDER = 'voc', 'ade20k', 'cityscapes'  # as long as they take


def parse():
    """Return the output folder, and the arguments of each evaluation."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=pathlib.Path, metavar='DIR',
                        default=pathlib.Path('scores'),
                        help='for scores.md and a report of each dataset '
                             '(default: %(default)s)')
    for dataset in ORDER:
        parser.add_argument(f'--{dataset}', metavar='DIR', help='where it was '
                            'unpacked, if elsewhere')
    args, options = parser.parse_known_args()
    for name in {option.partition('=')[0] for option in options} & {
            '--data-dir', '--images', '--labels', '--split',
            '--pretrained-model'}:
        parser.error(f'{name} has no place here: three datasets are '
                     'evaluated, each with its own model')
    folders = {dataset: getattr(args, dataset) for dataset in ORDER}
    return args.output, {dataset: parse_args(dataset, __doc__, [
        *options, *(['--data-dir', folder] if folder else []),
        '--output', str(args.output / dataset)])
        for dataset, folder in folders.items()}


def measure(output, args, processes):
    """Evaluate what is available; return the results and the failures."""
    jobs, failures, results = {}, {}, {}
    for dataset in ORDER:
        failure = None
        try:
            jobs[dataset] = prepare(dataset, args[dataset], processes)
        except InputError as error:
            failure = str(error)
        found = [each for each in processes.share(failure) if each]
        if found:
            failures[dataset] = found[0]
            jobs.pop(dataset, None)
            say(processes, f'{dataset} is left out: {found[0]}', sys.stderr)
    say_how_long(jobs, processes)
    for dataset in list(jobs):
        results[dataset] = finish(jobs.pop(dataset), processes)
        if processes.rank == 0:
            with atomic_path(output / 'scores.md') as temporary:
                temporary.write_text(table_of(results, failures) + '\n')
    return results, failures


def say(processes, line, file=None):
    if processes.rank == 0:
        print(line, file=file, flush=True)


def say_how_long(jobs, processes):
    total = 0
    for dataset, job in jobs.items():
        left, seconds = len(job.share) - job.state.done, 0
        if left:
            image, *_ = job.share.read(job.state.done)
            job.model.predict([image])  # compiles
            seconds = left * timed(job.model.predict, [image])[0]
        slowest = max(processes.share(seconds))
        total += slowest
        say(processes, f'{dataset}: {job.n_images} images, about '
            f'{duration(slowest)} left')
    say(processes, f'together about {duration(total)}')


def duration(seconds):
    for most, unit, name in (90, 1, 's'), (5400, 60, 'min'):
        if seconds < most:
            return f'{seconds / unit:.0f} {name}'
    return f'{seconds / 3600:.1f} h'


def table_of(results, failures):
    """Return the README's table with what was measured."""
    page = (ROOT / 'README.md').read_text()
    published = page.partition(f'\n{HEAD}\n')[2].splitlines()[1:]
    lines = [f'{HEAD} Measured | |', '|:-:|:-:|:-:|:-:|:-:|:--|']
    for dataset, row in zip(ROWS, published, strict=False):
        result = results.get(dataset)
        lines.append(f'{row} ' + (
            f'{100 * result["miou"]:.2f} % | {result["verdict"]} |' if result
            else f' | {failures.get(dataset, "not yet")} |'))
    return '\n'.join(lines)


def main():
    output, args = parse()

    def run(processes):
        results, failures = measure(output, args, processes)
        say(processes, table_of(results, failures))
        return failures, processes.rank == 0

    failures, speaks = with_processes(run)
    # All processes end by themselves: none is cut off in its last line.
    if failures.keys() - {'cityscapes'}:
        sys.exit(error_line(f'not all was measured: {", ".join(failures)}')
                 if speaks else 1)


if __name__ == '__main__':
    main()
