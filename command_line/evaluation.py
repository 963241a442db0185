"""The steps of eval_cityscapes.py, eval_voc.py and eval_ade20k.py."""
import sys
import time

from command_line.model_options import load_model, model_settings, set_backend
from convert.conversion import CUSTOM
from convert.sources import fetch
from evaluation import labelled_images, report, run
from evaluation.dataset_files import dataset_folder
from evaluation.labelled_images import LabelledImages
from media.batch import threads_beside
from media.segmentation import equal_to_float32
from models.classes import labels_of
from models.utils.errors import InputError
from models.utils.files import check_target, locked, sha256
from models.weights import WeightsFile


def measure(dataset, args, processes):
    """Find the dataset, load the model, go on from what an earlier run saved,
    evaluate, report; return what result.json holds on process 0, else None.
    """
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
    runs_on = args.backend
    if args.gpu >= 0:
        from models.gpu import uses_tf32  # and Chainer, after CUDA's libraries
        runs_on = f'GPU, {"TF32, " if uses_tf32() else ""}{runs_on}'
    label_map = args.label_map and (sha256(args.label_map) if
                                    args.label_map.exists() else
                                    str(args.label_map))
    settings = {  # what must be the same for a run to be resumed
        'dataset': classes, 'images': len(images),
        'images_of_split': len(every), **place, 'label_map': label_map,
        'predictions_saved': args.save_predictions, 'runs_on': runs_on,
        'processes': processes.size, 'model_sha256': sha256(npz),
        'code_sha256': run.code_sha256(), 'output_stride': model.output_stride,
        'scales': model.scales, 'flip': model.flip,
        'resize_range': model.resize_range, 'input_size': model.min_input_size,
        'precision': model.precision}
    if processes.rank == 0:
        check_outputs(args.output, images, [npz, args.label_map],
                      args.save_predictions, args.force)
        for path in run.states_in(args.output) if args.force else ():
            path.unlink()
        say_precision(model, images)
    processes.wait()
    state = evaluate_share(images, model, settings, colors, args.output,
                           args.save_interval, processes)
    processes.wait()
    states = processes.share(state)
    if processes.rank > 0:
        return None
    if processes.size > 1 and args.gpu < 0:  # the others are done
        set_backend(model, args.backend, args.precision, args.threads)
    return say_and_write(args.output, str(args.pretrained_model), settings,
                         images, run.merged(states), model, names, colors)


def classes_of(dataset, weights, label_map):
    """Return whose classes the model has, their names and colours, and the
    `LabelValues` (None: the dataset's own).
    """
    values = None
    if dataset == 'voc' and 'class_names' in weights.metadata:
        dataset, (names, colors) = CUSTOM, labels_of(weights)
        values = labelled_images.own_values(len(names), colors)
    else:
        names, colors = labels_of(weights, dataset)
    known = labelled_images.VALUES.get(dataset, {})
    if label_map is not None and (
            label_map.exists() or str(label_map) not in known):
        values = labelled_images.read_label_map(label_map, len(names))
    elif label_map is not None:
        values = labelled_images.named_values(dataset, str(label_map))
    return dataset, names, colors, values


def find_images(dataset, data_dir, split, image_folder, label_folder, values,
                weights):
    """Return all images of a split, and where they are, for the report."""
    if image_folder is not None:
        places, split = [image_folder, label_folder], None
        images = LabelledImages(dataset, folders=places, values=values)
    elif data_dir is None and 'class_names' in weights.metadata:
        raise InputError(f'{weights.path} has classes of its own: give '
                         '--data-dir, or --images and --labels')
    else:
        places = [data_dir or dataset_folder(dataset, split)]
        images = LabelledImages(dataset, *places, split, values=values)
    if values is None:
        labelled_images.check_values(dataset, images)
    return images, {'data_dir': ', '.join(str(each.resolve())
                                          for each in places), 'split': split}


def check_outputs(output, images, read, predictions, force):
    """Refuse to overwrite an input; or what exists, in a folder where no
    evaluation was begun, without `force`.

    The files `read` are inputs beside the images; `predictions` says whether
    label images will be written.
    """
    states = run.states_in(output)
    paths = [*states, *(output / name for name in report.FILES)]
    if predictions:
        paths += [output / 'predictions' / f'{name}.png'
                  for name in images.names]
    inputs = {path.resolve() for path in filter(None, (
        *read, *images.image_paths, *images.label_paths))}
    for path in paths:
        if path.resolve() in inputs:
            raise InputError(f'{path} is read and would be overwritten: give '
                             'another --output')
        check_target(path, force or bool(states))


def say_precision(model, images):
    """Say how far the first image's labels are those of float32."""
    if model.precision != 'float32':
        image, _ = images[0]
        label, = model.predict([image])
        equal = equal_to_float32(model, image, label)
        print(f'{model.precision}: labels {equal:.2%} equal to float32 in the '
              'first image', file=sys.stderr)


def evaluate_share(images, model, settings, colors, output, save_interval,
                   processes):
    """Evaluate every n-th image that is left; return the `State`."""
    share = images.subset(range(processes.rank, len(images), processes.size))
    output.mkdir(parents=True, exist_ok=True)
    path = run.state_path(output, processes.rank, processes.size)

    def write(i, prediction):
        labelled_images.write_prediction(
            output / 'predictions' / f'{share.names[i]}.png', prediction,
            settings['dataset'], colors)

    with locked(path, wait=False):
        state = run.State.new(len(colors))
        if path.exists():
            state = run.load_state(path, settings, share)
            done, date = len(state.images), time.strftime(
                '%Y-%m-%d %H:%M', time.localtime(state.finished))
            print(f'{path}: resuming after {done} of {len(share)} images'
                  if done < len(share) else
                  f'{path}: all {done} images were evaluated by {date}; '
                  '--force evaluates anew', flush=True)
        return run.evaluate(
            share, model, state,
            lambda state: run.save_state(path, state, settings), save_interval,
            write if settings['predictions_saved'] else None,
            processes.rank == 0, threads_beside(model))


def say_and_write(output, model_name, settings, images, state, model, names,
                  colors):
    """Print the scores, write the files of the report, return the result."""
    result = report.result_of(state, names, settings, model_name)
    for line in result['warnings']:
        print(f'warning: {line}')
    if result['miou'] is None:
        print(f'{len(state.images)} label images: {output}/predictions'
              if settings['predictions_saved'] else
              '--save-predictions writes label images')
        return result
    report.write_report(output, result, state.matrix, colors, list(
        report.examples(images, state.image_miou, model, colors)))
    print(report.table(result))
    print(result['verdict'])
    print(f'{output}/report.html')
    return result
