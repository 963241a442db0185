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

from speed import ROOT

from command_line.evaluation import parse_args, run
from command_line.processes import with_processes
from convert.sources import fetch
from evaluation.dataset_files import dataset_folder
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
    failures, results = {}, {}
    for dataset in ORDER:
        found = filter(None, processes.share(missing(dataset, args[dataset])))
        failures.update((dataset, failure) for failure in found)
        if dataset in failures:
            say(processes, f'{dataset} is left out: {failures[dataset]}',
                sys.stderr)
    for dataset in [each for each in ORDER if each not in failures]:
        results[dataset] = run(dataset, args[dataset], processes)
        if processes.rank == 0:
            with atomic_path(output / 'scores.md') as temporary:
                temporary.write_text(table_of(results, failures) + '\n')
    return results, failures


def missing(dataset, args):
    """Return why a model or its dataset is unavailable, else None."""
    try:
        fetch(args.pretrained_model)
        if args.data_dir is None:
            dataset_folder(dataset, args.split)
    except InputError as error:
        return str(error)


def say(processes, line, file=None):
    if processes.rank == 0:
        print(line, file=file, flush=True)


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

    def measure_all(processes):
        results, failures = measure(output, args, processes)
        say(processes, table_of(results, failures))
        return failures, processes.rank == 0

    failures, speaks = with_processes(measure_all)
    # All processes end by themselves: none is cut off in its last line.
    if failures.keys() - {'cityscapes'}:
        sys.exit(error_line(f'not all was measured: {", ".join(failures)}')
                 if speaks else 1)


if __name__ == '__main__':
    main()
