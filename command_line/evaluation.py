"""What eval_cityscapes.py, eval_voc.py and eval_ade20k.py do."""
import argparse
import pathlib
import sys
import traceback

from command_line.model_options import (
    add_model_options,
    check_model_options,
    load_model,
    set_backend,
)
from evaluation.processes import Processes, cores
from models.utils.errors import InputError, report_errors


def parse_args(dataset, description):
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, dataset)
    parser.add_argument('--data-dir', required=True, type=pathlib.Path,
                        metavar='DIR', help='where the dataset was unpacked')
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
    parser.add_argument('--output', metavar='DIR', type=pathlib.Path,
                        default=pathlib.Path(f'report_{dataset}'),
                        help='for the report, and what resuming needs '
                             '(default: %(default)s)')
    args = parser.parse_args()
    check_model_options(parser, args)
    if args.limit is not None and args.limit < 1:
        parser.error(f'--limit is {args.limit}, and must be positive')
    return args


def main(dataset, description):
    """Evaluate a model on a dataset, as the command line says."""
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
    """Evaluate this process's share of the images; process 0 reports."""
    from convert.official import fetch
    from evaluation.labelled_images import LabelledImages
    from models.classes import labels_of
    images = LabelledImages(dataset, args.data_dir, args.split)
    npz = fetch(args.pretrained_model)
    model = load(npz, args, processes)
    if dataset == 'voc' and 'class_names' in model.metadata:
        images.set_own_classes(model.n_class)
        names, colors = labels_of(model)
    else:
        names, colors = labels_of(model, dataset)
    n_images = min(len(images), args.limit or len(images))
    settings = {
        'dataset': dataset, 'images': n_images,
        **settings_of(args, npz, model, len(images), processes.size)}
    args.output.mkdir(parents=True, exist_ok=True)
    state = evaluate_share(args, images, n_images, model, colors, settings,
                           processes)
    matrix, image_miou, seconds = gathered(processes, state, n_images)
    if processes.rank == 0:
        if processes.size > 1 and args.gpu < 0:
            set_backend(model, args.backend, cores())  # the others are done
        report(args, images, model, names, colors, settings, matrix,
               image_miou, seconds)
    processes.wait()


def load(npz, args, processes):
    """Return the link on this process's share of the machine."""
    gpu, threads = args.gpu, args.threads
    if processes.size > 1 and gpu >= 0:
        gpu = processes.local_rank
    elif processes.size > 1 and threads is None:
        threads = max(1, cores() // processes.local_size)
    return load_model(npz, args.input_size, args.scales, args.flip,
                      args.output_stride, gpu, args.backend, threads)


def settings_of(args, npz, model, images_of_split, n_processes):
    """Return what must be the same for a run to be resumed."""
    from models.utils.files import sha256
    return {
        'data_dir': str(args.data_dir.resolve()), 'split': args.split,
        'images_of_split': images_of_split, 'model_sha256': sha256(npz),
        'output_stride': model.output_stride, 'scales': list(model.scales),
        'flip': model.flip, 'input_size': list(model.min_input_size),
        'runs_on': 'GPU' if args.gpu >= 0 else args.backend,
        'predictions_saved': args.save_predictions,
        'processes': n_processes}


def evaluate_share(args, images, n_images, model, colors, settings, processes):
    """Evaluate every n-th image, from where a state was saved; return the
    state.
    """
    from evaluation.labelled_images import Subset, write_prediction
    from evaluation.run import State, evaluate
    from models.utils.files import locked
    indices = range(processes.rank, n_images, processes.size)
    path = state_path(args.output, processes)
    folder = args.output / 'predictions'

    def write(i, prediction):
        write_prediction(folder / f'{images.names[indices[i]]}.png',
                         prediction, settings['dataset'], colors)

    if args.save_predictions:
        folder.mkdir(exist_ok=True)
    with locked(path, wait=False):
        state = State(model.n_class)
        if path.exists():
            state = State.load(path, settings)
            print(f'{path}: resuming after {state.done} of {len(indices)} '
                  'images', flush=True)
        try:
            evaluate(Subset(images, indices), model, state,
                     lambda: state.save(path, settings), args.save_interval,
                     write if args.save_predictions else None,
                     show=processes.rank == 0)
        except KeyboardInterrupt:
            raise InputError(
                f'interrupted after {state.done} of {len(indices)} images; '
                'the same command resumes there') from None
    return state


def state_path(folder, processes):
    """Return where this process saves its state.

    Raise InputError where states of another number of processes exist.
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


def gathered(processes, state, n_images):
    """Return matrix, mean IoU of each image and seconds of all processes;
    None three times on other processes than 0.
    """
    processes.wait()
    states = processes.gather((state.matrix, state.image_miou, state.seconds))
    if states is None:
        return None, None, None
    matrices, values, seconds = zip(*states, strict=True)
    image_miou = [0.] * n_images
    for rank, each in enumerate(values):
        image_miou[rank::processes.size] = each
    return sum(matrices), image_miou, max(seconds)


def report(args, images, model, names, colors, settings, matrix, image_miou,
           seconds):
    """Print the scores and write the files of the report."""
    from evaluation.report import (
        best_and_worst,
        example,
        result_of,
        table,
        write_report,
    )
    result = result_of(matrix, names, settings, str(args.pretrained_model),
                       seconds)
    examples = []
    for title, i in best_and_worst(image_miou):
        image, label = images[i]
        prediction, = model.predict([image])
        examples.append(example(title, images.names[i], image_miou[i], image,
                                label, prediction, colors))
    write_report(args.output, result, matrix, colors, examples)
    print(table(result))
    print(result['verdict'])
    print(f'{args.output}/report.html')
