"""Measure the README's table of scores: VOC2012, ADE20K and Cityscapes val.

    python benchmarks/scores.py

Models and data are downloaded to where ChainerCV keeps them; Cityscapes, which
needs a login, is evaluated where it was unpacked or linked there. The same
command resumes a stopped run. Other options are those of eval_voc.py, as --gpu
0. With mpiexec -n 2, two processes share the images.
"""
import argparse
import pathlib
import sys

from speed import ROOT

from command_line.evaluation_options import parse_args
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
    args, options = parser.parse_known_args()
    return args.output, {dataset: parse_args(dataset, __doc__, [
        *options, '--output', str(args.output / dataset)])
        for dataset in ORDER}


def measure_all(output, args, processes):
    """Evaluate what is available; return the exit code."""
    from command_line.evaluation import measure
    failures, results, speaks = {}, {}, processes.rank == 0
    output.mkdir(parents=True, exist_ok=True)
    for dataset in ORDER:
        failure = next(filter(None, processes.share(
            missing(dataset, args[dataset]))), None)
        if failure is None:
            results[dataset] = measure(dataset, args[dataset], processes)
        else:
            failures[dataset] = failure
        if failure and speaks:
            print(f'{dataset} is left out: {failure}', file=sys.stderr)
        if speaks:
            with atomic_path(output / 'scores.md') as temporary:
                temporary.write_text(table_of(results, failures) + '\n')
    if speaks:
        print(table_of(results, failures))
    is_complete = not failures.keys() - {'cityscapes'}
    if speaks and not is_complete:
        print(error_line(f'not all was measured: {", ".join(failures)}'),
              file=sys.stderr)
    return 0 if is_complete else 1


def missing(dataset, args):
    """Return why a model or its dataset is unavailable, else None."""
    from convert.sources import fetch
    from evaluation.dataset_files import dataset_folder
    try:
        fetch(args.pretrained_model)
        dataset_folder(dataset, args.split)
    except InputError as error:
        return str(error)


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
    # All processes end by themselves: none is cut off in its last line.
    sys.exit(with_processes(
        lambda processes: measure_all(output, args, processes)))


if __name__ == '__main__':
    main()
