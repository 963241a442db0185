"""What eval_cityscapes.py, eval_voc.py and eval_ade20k.py have in common."""
import argparse
import math
import pathlib
import platform
import sys
import traceback

from command_line.model import (
    add_model_arguments,
    check_model_arguments,
    load_model,
    set_backend,
)
from evaluation.processes import Processes, cores
from models.utils.errors import InputError, report_errors

N_EXAMPLES = 3  # best, and worst, images on the page


def parse_args(dataset, description):
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, dataset)
    parser.add_argument('--data-dir', required=True, type=pathlib.Path,
                        metavar='DIR', help='where the data set was unpacked')
    parser.add_argument('--split', default='val',
                        help='which of its images (default: %(default)s)')
    parser.add_argument('--limit', type=int, metavar='N',
                        help='only the first N images')
    parser.add_argument('--save-interval', type=float, default=20.,
                        metavar='SECONDS', help='how often to keep what is '
                        'needed to go on (default: %(default)g)')
    parser.add_argument('--save-predictions', action='store_true',
                        help='write label pictures to predictions/ beside the '
                             "report, as the data set's benchmark wants them")
    parser.add_argument('--output', metavar='DIR', type=pathlib.Path,
                        default=pathlib.Path(f'report_{dataset}'),
                        help='for the report, and what is needed to go on '
                             'after a break (default: %(default)s)')
    args = parser.parse_args()
    check_model_arguments(parser, args)
    if args.limit is not None and args.limit < 1:
        parser.error(f'--limit is {args.limit}, and must be positive')
    return args


def main(dataset, description):
    """Evaluate a model on a data set, as the command line says.

    Args:
        dataset (str): 'cityscapes', 'voc' or 'ade20k'.
        description (str): for `--help`.

    """
    args = parse_args(dataset, description)
    with report_errors():
        processes = Processes()
    try:
        with report_errors():
            run(dataset, args, processes)
    except BaseException as error:
        if processes.size == 1:
            raise
        if isinstance(error, SystemExit):
            print(error.code, file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        processes.abort()


def run(dataset, args, processes):
    """Judge this process's share of the images; process 0 reports on all."""
    from evaluation.labelled_images import LabelledImages
    from models.utils.files import locked
    images = LabelledImages(dataset, args.data_dir, args.split)
    n_images = min(len(images), args.limit or len(images))
    model, names, colors = load(dataset, args, processes)
    if has_own_classes(model, dataset):
        images = LabelledImages(dataset, args.data_dir, args.split,
                                model.n_class)
    settings = settings_of(dataset, args, images, n_images, model, processes)
    part = Part(images, range(processes.rank, n_images, processes.size))
    args.output.mkdir(parents=True, exist_ok=True)
    path = state_path(args.output, processes)
    with locked(path, wait=False):
        state = judge(part, model, colors, path, settings, args,
                      show=processes.rank == 0)
    processes.wait()
    found = processes.gather((state.matrix, state.image_miou, state.seconds))
    if processes.rank == 0:
        matrices, values, seconds = zip(*found, strict=True)
        image_miou = [0.] * n_images
        for rank, each in enumerate(values):
            image_miou[rank::processes.size] = each
        about = {'settings': settings, 'model': str(args.pretrained_model),
                 'versions': versions(), 'seconds': max(seconds)}
        if processes.size > 1 and args.gpu < 0:
            set_backend(model, args.backend, cores())  # the others are done
        report(args.output, about, images, model, names, colors,
               sum(matrices), image_miou)
    processes.wait()


def settings_of(dataset, args, images, n_images, model, processes):
    """Return all that must be the same for a run to be taken up again."""
    from models.pretrained import pretrained_path
    from models.utils.files import sha256
    return {
        'dataset': dataset, 'data_dir': str(args.data_dir.resolve()),
        'split': args.split, 'images': n_images,
        'images_of_split': len(images),
        'model_sha256': sha256(pretrained_path(args.pretrained_model)),
        'output_stride': model.output_stride, 'scales': list(model.scales),
        'flip': model.flip, 'input_size': list(model.min_input_size),
        'runs_on': 'GPU' if args.gpu >= 0 else args.backend,
        'predictions_saved': args.save_predictions,
        'processes': processes.size}


def judge(part, model, colors, path, settings, args, show):
    """Judge images, from where a state was kept; return the state."""
    from evaluation.labelled_images import write_prediction
    from evaluation.run import State, evaluate
    state = State(model.n_class)
    if path.exists():
        state = State.load(path, settings)
        print(f'{path}: going on after {state.done} of {len(part)} images',
              flush=True)

    def save():
        state.save(path, settings)

    def write(i, prediction):
        name = part.sequence.names[part.indices[i]]
        write_prediction(args.output / 'predictions' / f'{name}.png',
                         prediction, settings['dataset'], colors)

    if args.save_predictions:
        (args.output / 'predictions').mkdir(exist_ok=True)
    try:
        evaluate(part, model, state, save, args.save_interval,
                 write if args.save_predictions else None, show)
    except KeyboardInterrupt:
        raise InputError(f'interrupted after {state.done} of {len(part)} '
                         'images; the same command goes on from there'
                         ) from None
    return state


def load(dataset, args, processes):
    """Return the link, on this process's share of the machine, its classes'
    names and colours.
    """
    from models.classes import labels_of
    if processes.size > 1:
        if args.gpu >= 0:
            args.gpu = processes.local_rank
        elif args.threads is None:
            args.threads = max(1, cores() // processes.local_size)
    model = load_model(args, dataset)
    return model, *labels_of(
        model, None if has_own_classes(model, dataset) else dataset)


def has_own_classes(model, dataset):
    """Tell whether this is data of the user's own, in VOC2012's layout."""
    return dataset == 'voc' and 'class_names' in model.metadata


def state_path(folder, processes):
    """Return where this process keeps its state.

    Raises:
        InputError: there are states of another number of processes.

    """
    ending = '' if processes.size == 1 else (
        f'_{processes.rank}_of_{processes.size}')
    for path in folder.glob('state*.npz'):
        if path.stem.partition('_of_')[2] != ending.partition('_of_')[2]:
            raise InputError(
                f'{path} is of a run with another number of processes than '
                f'{processes.size}: give the same, another --output, or '
                'remove it')
    return folder / f'state{ending}.npz'


class Part:

    """Some items of a sequence."""

    def __init__(self, sequence, indices):
        self.sequence, self.indices = sequence, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        return self.sequence[self.indices[i]]


def report(folder, about, images, model, names, colors, matrix, image_miou):
    """Print the scores and write the files of the report.

    Args:
        folder (pathlib.Path): exists.
        about (dict): what result.json is to hold beside the scores.
        images (LabelledImages): to show the best and worst of.
        model (DeepLabV3plusXception65): to segment these again.
        names, colors: of the classes, see `datasets.labels_of`.
        matrix (numpy.ndarray): see `evaluation.confusion_matrix`.
        image_miou (list of float): of each image.

    """
    from evaluation.report import table, verdict, write_report
    from evaluation.run import category_iou, scores
    dataset = about['settings']['dataset']
    found = scores(matrix)
    result = {
        'miou': number(found['miou']),
        'iou': by_name(names, found['iou']),
        'pixel_accuracy': number(found['pixel_accuracy']),
        'class_accuracy': by_name(names, found['class_accuracy']),
        'mean_class_accuracy': number(found['mean_class_accuracy']),
        **about,
    }
    if dataset == 'cityscapes':
        iou = category_iou(matrix)
        result['category_iou'] = by_name(iou, iou.values())
    result['verdict'] = verdict(result)
    examples = []
    for title, i in ranked(image_miou):
        image, label = images[i]
        prediction, = model.predict([image])
        examples.append((title, images.names[i], image, label, prediction,
                         number(image_miou[i])))
    write_report(folder, result, matrix, colors, examples)
    print(table(result))
    print(result['verdict'])
    print(f'{folder}/report.html')


def ranked(image_miou):
    """Return (title, index) of the best and the worst images."""
    order = sorted((miou, i) for i, miou in enumerate(image_miou)
                   if not math.isnan(miou))
    best = [i for _, i in reversed(order)][:N_EXAMPLES]
    worst = [i for _, i in order if i not in best][:N_EXAMPLES]
    return [('Best', i) for i in best] + [('Worst', i) for i in worst]


def number(value):
    """JSON has no nan: None stands for it."""
    return None if math.isnan(value) else float(value)


def by_name(names, values):
    return {name: number(value)
            for name, value in zip(names, values, strict=True)}


def versions():
    from importlib.metadata import PackageNotFoundError, version
    result = {'python': platform.python_version()}
    for name in 'chainer', 'numpy', 'openvino', 'cupy-cuda12x':
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result
