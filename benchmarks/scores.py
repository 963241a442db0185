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
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from command_line.evaluation import finish, parse_args, prepare
from command_line.processes import with_processes
from evaluation.report import PUBLISHED
from models.utils.errors import InputError, error_line
from models.utils.files import atomic_path

TABLE = {  # trained on, evaluated on, mean IoU of the frozen graph
    'voc': ('VOC2012 trainaug', 'VOC2012 val', '82.36 %'),
    'cityscapes': ('Cityscapes train fine', 'Cityscapes val fine',
                   '79.12 % \\*1'),
    'ade20k': ('ADE20K train', 'ADE20K val', '40.13 % \\*2'),
}
ORDER = 'voc', 'ade20k', 'cityscapes'  # as long as they take


def parse(argv=None):
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
    args, options = parser.parse_known_args(argv)
    for option in options:
        name = option.partition('=')[0]
        if name in {'--data-dir', '--images', '--labels', '--split',
                    '--pretrained-model'}:
            parser.error(f'{name} has no place here: three datasets are '
                         'evaluated, each with its own model')
    result = {}
    for dataset in ORDER:
        folder = getattr(args, dataset)
        result[dataset] = parse_args(dataset, __doc__, [
            *options, *(['--data-dir', folder] if folder else []),
            '--output', str(args.output / dataset)])
    return args.output, result


def measure(output, args, processes):
    """Evaluate what is available; return the results and the failures."""
    jobs, failures = {}, {}
    for dataset in ORDER:
        try:
            jobs[dataset], failure = prepare(dataset, args[dataset],
                                             processes), None
        except InputError as error:
            failure = str(error)
        found = [each for each in processes.share(failure) if each]
        if found:
            failures[dataset] = found[0]
            jobs.pop(dataset, None)
            if processes.rank == 0:
                print(f'{dataset} is left out: {found[0]}', file=sys.stderr,
                      flush=True)
    say_how_long(jobs, processes)
    results = {}
    for dataset in list(jobs):
        results[dataset] = finish(jobs.pop(dataset), processes)
        if processes.rank == 0:
            write_table(output, results, failures)
    return results, failures


def say_how_long(jobs, processes):
    total = 0
    for dataset, job in jobs.items():
        left = len(job.share) - job.state.done
        seconds = max(processes.share(left and left * seconds_of_one(job)))
        total += seconds
        if processes.rank == 0:
            print(f'{dataset}: {job.n_images} images, about '
                  f'{duration(seconds)} left', flush=True)
    if processes.rank == 0:
        print(f'together about {duration(total)}', flush=True)


def seconds_of_one(job):
    """Time an image, after another one for which the network is compiled."""
    image, *_ = job.share.read(job.state.done)
    job.model.predict([image])
    start = time.perf_counter()
    job.model.predict([image])
    return time.perf_counter() - start


def duration(seconds):
    if seconds < 90:
        return f'{seconds:.0f} s'
    if seconds < 5400:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h'


def table(results, failures):
    """Return the README's table with what was measured, as Markdown."""
    lines = ['| Trained on | Evaluated on | Frozen graph | Converted | '
             'Measured | |', '|:-:|:-:|:-:|:-:|:-:|:--|']
    for dataset, (trained, evaluated, frozen) in TABLE.items():
        result = results.get(dataset)
        measured, verdict = ('', failures.get(dataset, 'not yet')) if (
            result is None) else (
                f'{100 * result["miou"]:.2f} %', result['verdict'])
        published = PUBLISHED[dataset, 'val', 8, (1.,), False]
        lines.append(f'| {trained} | {evaluated} | {frozen} | {published:.2f} '
                     f'% | {measured} | {verdict} |')
    return '\n'.join(lines)


def write_table(output, results, failures):
    with atomic_path(output / 'scores.md') as temporary:
        temporary.write_text(table(results, failures) + '\n')


def main():
    output, args = parse()
    outcome = {}

    def run(processes):
        results, outcome['failures'] = measure(output, args, processes)
        outcome['speaks'] = processes.rank == 0
        if outcome['speaks']:
            print(table(results, outcome['failures']), flush=True)

    with_processes(run)
    # All processes end by themselves: none is cut off in its last line.
    if outcome['failures'].keys() - {'cityscapes'}:
        sys.exit(error_line('not all was measured: '
                            f'{", ".join(outcome["failures"])}')
                 if outcome['speaks'] else 1)


if __name__ == '__main__':
    main()
