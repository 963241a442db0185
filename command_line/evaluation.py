"""What eval_cityscapes.py, eval_voc.py and eval_ade20k.py do."""
import argparse
import pathlib
import sys
import time

from command_line.model_options import (
    add_model_options,
    check_model_options,
    load_model,
    model_settings,
    set_backend,
)
from command_line.processes import with_processes
from models.utils.errors import InputError


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
    parser.add_argument('--label-map', type=pathlib.Path, metavar='FILE|NAME',
                        help="what the labels' values mean: lines of 'value "
                             "class' or 'R G B class', where a class is a "
                             "number from 0, or 'ignored'; or a name: trainids "
                             '(of Cityscapes), from0 (ADE20K), official')
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
    with_processes(lambda processes: run(dataset, args, processes))


def run(dataset, args, processes):
    """Find the dataset, load the model, go on from what an earlier run saved,
    evaluate, report; return what result.json holds on process 0, else None.
    """
    from convert.sources import fetch
    from evaluation.run import merged
    from models.weights import WeightsFile
    npz = fetch(args.pretrained_model)
    weights = WeightsFile(npz)
    classes, names, colors, values = classes_of(dataset, weights,
                                                args.label_map)
    every, place = find_images(dataset, args.data_dir, args.split,
                               args.images, args.labels, values, weights)
    images = every.subset(range(len(every))[:args.limit])
    model = load_model(npz, processes, **model_settings(args))
    if processes.size == 1:  # else the last takes more threads at the end
        model.freeze()
    settings = {
        'dataset': classes, 'images': len(images),
        'images_of_split': len(every), **place,
        'label_map': digest(args.label_map),
        'predictions_saved': args.save_predictions,
        'runs_on': (f'{gpu_mode()}, {args.backend}' if args.gpu >= 0 else
                    args.backend),
        'processes': processes.size, **settings_of(model, npz)}
    if processes.rank == 0:
        check_outputs(args.output, images, [args.images, args.labels],
                      [npz, args.label_map], args.save_predictions, args.force)
        if model.precision != 'float32':
            say_precision(model, images)
    state = evaluate_share(images, model, settings, colors, args.output,
                           args.save_interval, args.force, processes)
    processes.wait()
    states = processes.share(state)
    if processes.rank > 0:
        return None
    if processes.size > 1 and args.gpu < 0:  # the others are done
        set_backend(model, args.backend, args.precision, args.threads)
    return report(args.output, str(args.pretrained_model), settings, images,
                  merged(states), model, names, colors)


def classes_of(dataset, weights, label_map):
    """Return whose classes the model has, their names and colours, and the
    `LabelValues` (None: the dataset's own).
    """
    from convert.conversion import CUSTOM
    from evaluation.labelled_images import (
        named_values,
        own_values,
        read_label_map,
        value_names,
    )
    from models.classes import labels_of
    values = None
    if dataset == 'voc' and 'class_names' in weights.metadata:
        dataset, (names, colors) = CUSTOM, labels_of(weights)
        values = own_values(len(names), colors)
    else:
        names, colors = labels_of(weights, dataset)
    if str(label_map) in value_names(dataset) and not label_map.exists():
        values = named_values(dataset, str(label_map))
    elif label_map is not None:
        values = read_label_map(label_map, len(names))
    return dataset, names, colors, values


def find_images(dataset, data_dir, split, image_folder, label_folder, values,
                weights):
    """Return all images of a split, and where they are, for the report."""
    from evaluation.dataset_files import dataset_folder
    from evaluation.labelled_images import LabelledImages, check_values
    if image_folder is not None:
        folders = image_folder, label_folder
        images = LabelledImages(dataset, folders=folders, values=values)
        place, split = ', '.join(str(each.resolve()) for each in folders), None
    else:
        if data_dir is None and 'class_names' in weights.metadata:
            raise InputError(f'{weights.path} has classes of its own: give '
                             '--data-dir, or --images and --labels')
        data_dir = data_dir or dataset_folder(dataset, split)
        images = LabelledImages(dataset, data_dir, split, values=values)
        place = str(data_dir.resolve())
    if values is None:
        check_values(dataset, images)
    return images, {'data_dir': place, 'split': split}


def evaluate_share(images, model, settings, colors, output, save_interval,
                   force, processes):
    """Evaluate every n-th image that is left; return the `State`."""
    from evaluation.labelled_images import write_prediction
    from evaluation.run import State, evaluate, load_state, save_state
    from media.batch import threads_beside
    from models.utils.files import locked
    share = images.subset(range(processes.rank, len(images), processes.size))
    output.mkdir(parents=True, exist_ok=True)
    path = own_state_path(output, processes, force)

    def write(i, prediction):
        write_prediction(prediction_path(output, share.names[i]), prediction,
                         settings['dataset'], colors)

    with locked(path, wait=False):
        state = State.new(len(colors))
        if path.exists():
            state = load_state(path, settings, share)
            say_progress(path, state, len(share))
        return evaluate(share, model, state,
                        lambda state: save_state(path, state, settings),
                        save_interval,
                        write if settings['predictions_saved'] else None,
                        processes.rank == 0, threads_beside(model))


def own_state_path(folder, processes, force):
    """Return where this process saves its state; with `force`, remove all."""
    from evaluation.run import state_path, states_in
    if force and processes.rank == 0:
        for path in states_in(folder):
            path.unlink()
    processes.wait()
    return state_path(folder, processes.rank, processes.size)


def say_progress(path, state, n_images):
    n_done = len(state.images)
    date = time.strftime('%Y-%m-%d %H:%M', time.localtime(state.finished))
    print(f'{path}: ' + (
        f'resuming after {n_done} of {n_images} images' if n_done < n_images
        else f'all {n_images} images were evaluated by {date}; --force '
        'evaluates anew'), flush=True)


def check_outputs(output, images, folders, read, predictions, force):
    """Refuse to overwrite an input; or what exists, in a folder where no
    evaluation was begun, without `force`.

    `folders` and the files `read` are inputs beside the images; `predictions`
    says whether label images will be written.
    """
    from evaluation.report import FILES
    from evaluation.run import states_in
    from models.utils.files import check_target
    for folder in filter(None, folders):
        if folder.resolve() in (output.resolve(), *output.resolve().parents):
            raise InputError(f'--output {output} is in {folder}, and what is '
                             'written there would be read: give another')
    states = states_in(output)
    paths = [*states, *(output / name for name in FILES)]
    if predictions:
        paths += [prediction_path(output, name) for name in images.names]
    inputs = {file_key(path) for path in (
        *read, *images.image_paths, *images.label_paths)
        if path and path.exists()}
    for path in paths:
        if path.exists() and file_key(path) in inputs:
            raise InputError(f'{path} is read and would be overwritten: give '
                             'another --output')
        check_target(path, force or bool(states))


def file_key(path):
    """Return what is the same for all names of a file."""
    found = path.stat()
    return found.st_dev, found.st_ino


def prediction_path(folder, name):
    return folder / 'predictions' / f'{name}.png'


def digest(label_map):
    from models.utils.files import sha256
    return sha256(label_map) if label_map and label_map.is_file() else (
        label_map and str(label_map))


def settings_of(model, npz):
    """Return what of a model must be the same for a run to be resumed."""
    from evaluation.run import code_sha256
    from models.utils.files import sha256
    return {'model_sha256': sha256(npz), 'code_sha256': code_sha256(),
            'output_stride': model.output_stride,
            'scales': list(model.scales), 'flip': model.flip,
            'resize_range': model.resize_range and list(model.resize_range),
            'input_size': list(model.min_input_size),
            'precision': model.precision}


def gpu_mode():
    from models.gpu import uses_tf32
    return 'GPU, TF32' if uses_tf32() else 'GPU'


def say_precision(model, images):
    """Say how far the first image's labels are those of float32."""
    from media.segmentation import equal_to_float32
    image, _ = images[0]
    label, = model.predict([image])
    equal = equal_to_float32(model, image, label)
    print(f'{model.precision}: labels {equal:.2%} equal to float32 in the '
          'first image', file=sys.stderr)


def report(output, model_name, settings, images, state, model, names, colors):
    """Print the scores, write the files of the report, return the result."""
    from evaluation.report import (
        best_and_worst,
        example,
        result_of,
        table,
        write_report,
    )
    result = result_of(state.matrix, state.ignored, names, settings,
                       model_name, state.seconds)
    for line in result['warnings']:
        print(f'warning: {line}')
    if result['miou'] is None:
        print(f'{len(state.images)} label images: {output}/predictions'
              if settings['predictions_saved'] else
              '--save-predictions writes label images')
        return result
    examples = []
    for title, i in best_and_worst(state.image_miou):
        image, label = images[i]
        prediction, = model.predict([image])
        examples.append(example(title, images.names[i], state.image_miou[i],
                                image, label, prediction, colors))
    write_report(output, result, state.matrix, colors, examples)
    print(table(result))
    print(result['verdict'])
    print(f'{output}/report.html')
    return result
