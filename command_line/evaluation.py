"""What eval_cityscapes.py, eval_voc.py and eval_ade20k.py do."""
import argparse
import os
import pathlib
import re
import sys
import time
import typing

from command_line.model_options import (
    add_model_options,
    check_model_options,
    load_model,
    set_backend,
)
from command_line.processes import cores, with_processes
from models.utils.errors import InputError, Interrupted, exit_code

if typing.TYPE_CHECKING:
    import numpy

    from evaluation.labelled_images import LabelledImages, Subset
    from evaluation.run import State
    from models import DeepLabV3plusXception65

STATE = re.compile(r'state(_\d+_of_\d+)?\.npz')


class Job(typing.NamedTuple):
    """An evaluation that is about to begin, or go on."""

    args: argparse.Namespace
    images: 'LabelledImages'
    share: 'Subset'  # what this process evaluates
    n_images: int  # of all processes
    model: 'DeepLabV3plusXception65'
    names: tuple[str, ...]  # of the classes
    colors: 'numpy.ndarray'  # (n_class, 3), uint8, RGB
    settings: dict  # see `settings_of`
    state_path: pathlib.Path
    state: 'State'


def parse_args(dataset, description, argv=None):
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, dataset)
    parser.add_argument('--data-dir', type=pathlib.Path, metavar='DIR',
                        help='where the dataset was unpacked (default: where '
                             'ChainerCV keeps it; VOC2012 and ADE20K are '
                             'downloaded there)')
    parser.add_argument('--images', type=pathlib.Path, metavar='DIR',
                        help='a folder of images, instead of --data-dir')
    parser.add_argument('--labels', type=pathlib.Path, metavar='DIR',
                        help='with --images: a folder of label PNGs with the '
                             'same names, at any depth')
    parser.add_argument('--label-map', type=pathlib.Path, metavar='FILE',
                        help="what the labels' values mean: lines of 'value "
                             "class' or 'R G B class', where a class is a "
                             "number from 0, or 'ignored'")
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
    parser.add_argument('--force', action='store_true',
                        help='evaluate anew, whatever an earlier run has left '
                             'in --output')
    parser.add_argument('--output', metavar='DIR', type=pathlib.Path,
                        default=pathlib.Path(f'report_{dataset}'),
                        help='for the report, and what resuming needs '
                             '(default: %(default)s)')
    args = parser.parse_args(argv)
    check_model_options(parser, args)
    if (args.images is None) != (args.labels is None):
        parser.error('--images and --labels go together')
    if args.data_dir is not None and args.images is not None:
        parser.error('--data-dir and --images exclude each other')
    if args.limit is not None and args.limit < 1:
        parser.error(f'--limit is {args.limit}, and must be positive')
    return args


def main(dataset, description):
    """Evaluate a model on a dataset, as the command line says."""
    args = parse_args(dataset, description)
    with_processes(lambda processes: finish(prepare(dataset, args, processes),
                                            processes))


def prepare(dataset, args, processes):
    """Find the images, load the model and what an earlier run left."""
    from convert.conversion import CUSTOM
    from convert.sources import fetch
    from evaluation.labelled_images import LabelledImages, Subset
    from models.classes import labels_of
    npz = None
    if args.data_dir is None and args.images is None:
        npz = fetch(args.pretrained_model)
        args.data_dir = kept_dataset(dataset, args, npz)
    folders = args.images and (args.images, args.labels)
    images = LabelledImages(dataset, args.data_dir, args.split, folders)
    npz = npz or fetch(args.pretrained_model)
    model = load_model(args, processes, npz)
    if processes.size == 1:  # else the last takes more threads at the end
        model.freeze()
    if dataset == 'voc' and 'class_names' in model.metadata:
        dataset = CUSTOM
        names, colors = labels_of(model)
        images.set_own_classes(model.n_class, colors)
    else:
        names, colors = labels_of(model, dataset)
    if args.label_map is not None:
        images.set_label_map(args.label_map, model.n_class)
    n_images = min(len(images), args.limit or len(images))
    settings = {
        'dataset': dataset, 'images': n_images,
        **settings_of(args, npz, model, len(images), processes.size)}
    if processes.rank == 0:
        check_outputs(args, images, npz)
    args.output.mkdir(parents=True, exist_ok=True)
    share = Subset(images, range(processes.rank, n_images, processes.size))
    path = state_path(args.output, processes, args.force)
    state = load_state(path, settings, share, model.n_class)
    return Job(args, images, share, n_images, model, names, colors, settings,
               path, state)


def check_outputs(args, images, npz):
    """Refuse to overwrite an input; or what exists, in a folder where no
    evaluation was begun, without --force.
    """
    from evaluation.report import FILES
    from models.utils.files import check_target
    for folder in filter(None, (args.images, args.labels)):
        if folder.resolve() in (args.output.resolve(),
                                *args.output.resolve().parents):
            raise InputError(f'--output {args.output} is in {folder}, and what '
                             'is written there would be read: give another')
    states = list(states_in(args.output))
    paths = [*states, *(args.output / name for name in FILES)]
    if args.save_predictions:
        paths += [prediction_path(args.output, name) for name in images.names]
    read = {file_key(path) for path in (
        npz, args.label_map, *images.image_paths, *images.label_paths) if path}
    for path in paths:
        if path.exists() and file_key(path) in read:
            raise InputError(f'{path} is read and would be overwritten: give '
                             'another --output')
        check_target(path, args.force or bool(states))


def file_key(path):
    """Return what is the same for all names of a file."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def prediction_path(folder, name):
    return folder / 'predictions' / f'{name}.png'


def states_in(folder):
    """Yield the files in which processes have saved their state."""
    for path in folder.glob('state*.npz'):
        if STATE.fullmatch(path.name):
            yield path


def finish(job, processes):
    """Evaluate this process's images; process 0 reports.

    Return what result.json holds on process 0, and None on others.
    """
    if job.model.precision != 'float32' and processes.rank == 0:
        say_precision(job)
    evaluate_share(job, processes)
    found = gathered(processes, job.state, job.n_images)
    result = None
    if processes.rank == 0:
        if processes.size > 1 and job.args.gpu < 0:  # the others are done
            set_backend(job.model, job.args, cores())
        result = report(job, *found)
    processes.wait()
    return result


def say_precision(job):
    """Say how far the first image's labels are those of float32."""
    from media.segmentation import equal_to_float32
    image, _ = job.images[0]
    label, = job.model.predict([image])
    equal = equal_to_float32(job.model, image, label)
    print(f'{job.model.precision}: labels {equal:.2%} equal to float32 in the '
          'first image', file=sys.stderr)


def kept_dataset(dataset, args, npz):
    """Return the folder of the official dataset, for a model that fits it."""
    from evaluation.dataset_files import dataset_folder
    from models.constants import DATASETS
    from models.weights import WeightsFile
    weights = WeightsFile(npz)
    if (weights.n_class != DATASETS[dataset]['n_class']
            or 'class_names' in weights.metadata):
        raise InputError(
            f'{args.pretrained_model} has {weights.n_class} classes of its '
            'own: give --data-dir, or --images and --labels')
    return dataset_folder(dataset, args.split)


def settings_of(args, npz, model, images_of_split, n_processes):
    """Return what must be the same for a run to be resumed."""
    from models.utils.files import sha256
    data = {'data_dir': str(args.data_dir.resolve()),
            'split': args.split} if args.images is None else {
            'data_dir': f'{args.images.resolve()}, {args.labels.resolve()}',
            'split': None}
    return {
        **data, 'label_map': args.label_map and sha256(args.label_map),
        'images_of_split': images_of_split, 'model_sha256': sha256(npz),
        'code_sha256': code_sha256(), 'output_stride': model.output_stride,
        'scales': list(model.scales), 'flip': model.flip,
        'resize_range': model.resize_range and list(model.resize_range),
        'input_size': list(model.min_input_size),
        'precision': model.precision,
        'runs_on': gpu_mode() if args.gpu >= 0 else args.backend,
        'predictions_saved': args.save_predictions,
        'processes': n_processes}


def gpu_mode():
    from models.gpu import uses_tf32
    return 'GPU, TF32' if uses_tf32() else 'GPU'


def code_sha256():
    """Return a digest of the code of the network."""
    import models
    from models.utils.files import sha256
    return sha256(*sorted(pathlib.Path(models.__file__).parent.glob('*.py')))


def load_state(path, settings, share, n_class):
    """Return the state that an earlier run has left, or a new one."""
    from evaluation.run import State
    from models.utils.files import locked
    if not path.exists():
        return State(n_class)
    with locked(path, wait=False):
        state = State.load(path, settings, share)
    print(f'{path}: {progress_of(state, len(share))}', flush=True)
    return state


def evaluate_share(job, processes):
    """Evaluate every n-th image that is left."""
    from evaluation.labelled_images import write_prediction
    from evaluation.run import evaluate
    from models.utils.files import locked
    args, state = job.args, job.state

    def write(i, prediction):
        path = prediction_path(args.output, job.share.names[i])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_prediction(path, prediction, job.settings['dataset'], job.colors)

    with locked(job.state_path, wait=False):
        try:
            evaluate(job.share, job.model, state,
                     lambda: state.save(job.state_path, job.settings),
                     args.save_interval,
                     write if args.save_predictions else None,
                     show=processes.rank == 0)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f'interrupted after {state.done} of {len(job.share)} images; '
                'the same command resumes there', exit_code(error)) from None


def progress_of(state, n_images):
    if state.done < n_images:
        return f'resuming after {state.done} of {n_images} images'
    date = time.strftime('%Y-%m-%d %H:%M', time.localtime(state.finished))
    return (f'all {n_images} images were evaluated by {date}; --force '
            'evaluates anew')


def state_path(folder, processes, force):
    """Return where this process saves its state; with `force`, remove all.

    Raise InputError where states of another number of processes exist.
    """
    if force and processes.rank == 0:
        for path in states_in(folder):
            path.unlink()
    processes.wait()
    ending = '' if processes.size == 1 else (
        f'_{processes.rank}_of_{processes.size}')
    for path in states_in(folder):
        if path.stem.partition('_of_')[2] != ending.partition('_of_')[2]:
            raise InputError(
                f'{path} is of a run with another number of processes than '
                f'{processes.size}: give the same, another --output, or '
                'evaluate anew with --force')
    return folder / f'state{ending}.npz'


def gathered(processes, state, n_images):
    """Return matrix, ignored pixels, mean IoU of each image and seconds of all
    processes; None on other processes than 0.
    """
    processes.wait()
    states = processes.gather((state.matrix, state.ignored, state.image_miou,
                               state.seconds))
    if states is None:
        return None
    matrices, ignored, values, seconds = zip(*states, strict=True)
    image_miou = [0.] * n_images
    for rank, each in enumerate(values):
        image_miou[rank::processes.size] = each
    return sum(matrices), sum(ignored), image_miou, max(seconds)


def report(job, matrix, ignored, image_miou, seconds):
    """Print the scores, write the files of the report, return the result."""
    from evaluation.report import (
        best_and_worst,
        example,
        result_of,
        table,
        write_report,
    )
    output = job.args.output
    result = result_of(matrix, ignored, job.names, job.settings,
                       str(job.args.pretrained_model), seconds)
    for line in result['warnings']:
        print(f'warning: {line}')
    if result['miou'] is None:
        print(f'{len(image_miou)} label images: {output}/predictions'
              if job.args.save_predictions else
              '--save-predictions writes label images')
        return result
    examples = []
    for title, i in best_and_worst(image_miou):
        image, label = job.images[i]
        prediction, = job.model.predict([image])
        examples.append(example(title, job.images.names[i], image_miou[i],
                                image, label, prediction, job.colors))
    write_report(output, result, matrix, job.colors, examples)
    print(table(result))
    print(result['verdict'])
    print(f'{output}/report.html')
    return result
