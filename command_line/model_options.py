"""Options that several scripts share: which model to load, what runs it."""
import argparse
import re
import sys

from models.constants import DATASETS, MAX_INPUT_SIDE, MAX_SCALE, OUTPUT_STRIDES
from models.utils.errors import InputError


def add_model_options(parser, default, said=None):
    """Add the options that `load_model` takes; the help describes the `default`
    model as `said`, if given.
    """
    parser.add_argument('--gpu', type=int, default=-1, metavar='GPU',
                        help='number of the GPU to run on (default: the CPU)')
    parser.add_argument('--tf32', action='store_true',
                        help='let a GPU compute in TF32: faster, some labels '
                             'differ')
    parser.add_argument(
        '--pretrained-model', default=default, metavar='MODEL',
        help=f'an npz file, or one of {", ".join(DATASETS)}, downloaded at '
             'the first use, from the folder that DEEPLAB_MIRROR names if it '
             f'is set (default: {said or default})')
    parser.add_argument(
        '--input-size', '--min-input-size', type=image_size, metavar='SIZE',
        help='pad smaller images to this size, 513 or 1025x2049 (height x '
             "width; default: the model's)")
    parser.add_argument(
        '--output-stride', type=int, choices=OUTPUT_STRIDES,
        help='16 is three times as fast and a little less accurate (default: '
             "the model's, mostly 8)")
    parser.add_argument('--scales', type=image_scales, metavar='SCALES',
                        help='average over scales, as 0.75,1.0,1.25 (default: '
                             "the model's, mostly 1.0)")
    parser.add_argument('--flip', action=argparse.BooleanOptionalAction,
                        help='average over the mirrored image, too (default: '
                             "as the model's graph, mostly not)")
    parser.add_argument(
        '--backend', choices=['auto', 'openvino', 'chainer'], default='auto',
        help='what runs the network (default: on a CPU OpenVINO where it is '
             'installed, else Chainer; on a GPU CuPy)')
    parser.add_argument(
        '--precision', choices=['float32', 'bfloat16'], default='float32',
        help='bfloat16 takes half the time on processors that have it; some '
             'labels differ (default: %(default)s)')
    parser.add_argument('--threads', type=int, metavar='N',
                        help='threads on a CPU (default: one for each core)')


def image_size(text):
    """Parse '513', '513x1025' or '513 1025' as (height, width) in pixels."""
    sides = re.split('[x, ]+', text.strip())
    if len(sides) > 2 or not all(
            side.isdecimal() and 0 < int(side) <= MAX_INPUT_SIDE
            for side in sides):
        raise argparse.ArgumentTypeError(
            f'a size is one or two numbers up to {MAX_INPUT_SIDE}, as 513 or '
            f'513x1025, not {text!r}')
    return int(sides[0]), int(sides[-1])


def image_scales(text):
    """Parse '0.75,1.0' or '0.75 1.0' as scales, a tuple of float."""
    try:
        scales = tuple(map(float, re.split('[, ]+', text.strip())))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale <= MAX_SCALE for scale in scales):
        raise argparse.ArgumentTypeError(
            f'scales are positive numbers up to {MAX_SCALE}, as 0.75,1.0, not '
            f'{text!r}')
    return scales


def check_model_options(parser, args):
    """Refuse combinations that cannot work."""
    if args.threads is not None and args.threads < 1:
        parser.error(f'--threads is {args.threads}, and must be positive')
    if args.tf32 and args.gpu < 0:
        parser.error('--tf32 is for --gpu')
    if args.gpu >= 0 and (args.backend == 'openvino' or args.threads):
        parser.error('--backend openvino and --threads are for a CPU, not for '
                     '--gpu')
    if args.precision != 'float32' and (
            args.gpu >= 0 or args.backend == 'chainer'):
        parser.error(f'--precision {args.precision} is for OpenVINO on a CPU')
    if args.gpu >= 0:
        from models.chainer_compat import load_cuda_libraries
        load_cuda_libraries(args.tf32)  # before anything imports Chainer


def model_settings(args):
    """Return the options above as what `load_model` takes by name."""
    return {'gpu': args.gpu, 'threads': args.threads, 'backend': args.backend,
            'precision': args.precision, 'min_input_size': args.input_size,
            'output_stride': args.output_stride, 'scales': args.scales,
            'flip': args.flip}


def load_model(pretrained_model, processes, gpu=-1, threads=None,
               backend='auto', precision='float32', **settings):
    """Return the link on its device; the settings are the link's.

    Raise InputError where there is no such GPU or model, or it does not fit.
    """
    from convert.sources import fetch
    from models import DeepLabV3plusXception65
    from models.memory import cores
    if processes.size > 1 and gpu > 0:
        raise InputError(
            f'--gpu is {gpu}, and of several processes each takes the GPU of '
            'its own number: give --gpu 0')
    if gpu >= 0:
        from models.gpu import check_gpu
        gpu += processes.local_rank
        check_gpu(gpu)
    elif processes.size > 1:
        threads = threads or max(1, cores() // processes.local_size)
    model = DeepLabV3plusXception65(
        pretrained_model=fetch(pretrained_model), **settings)
    if gpu >= 0:
        import chainer
        chainer.cuda.get_device_from_id(gpu).use()
        model.to_gpu(gpu)
        if backend == 'chainer':
            model.to_chainer()
    else:
        set_backend(model, backend, precision, threads)
    if processes.rank == 0:
        _say_settings(model, **settings)
    return model


def _say_settings(model, scales=None, flip=None, **_):
    """Say what the model does, and no option asks for."""
    if model.xp.__name__ == 'cupy':
        from models.gpu import uses_tf32
        if uses_tf32():
            print('float32 may be computed in TF32: some labels differ',
                  file=sys.stderr)
    if (scales, flip) == (None, None) and (
            model.scales, model.flip) != ((1.,), False):
        print('as its graph, the model averages over the scales '
              f'{", ".join(map(str, model.scales))}'
              f'{" and the mirrored image" if model.flip else ""}: --scales 1 '
              '--no-flip is faster', file=sys.stderr)
    if model.resize_range is not None:
        print(f'as its graph, the model resizes images to '
              f'{model.resize_range}', file=sys.stderr)


def set_backend(model, backend, precision, threads):
    """Choose what runs the link on a CPU, with how many threads."""
    from threadpoolctl import threadpool_limits

    from models.memory import cores
    threadpool_limits(threads or cores())  # of NumPy's matrix products
    if backend == 'chainer':
        model.to_chainer()
    else:
        model.to_openvino(threads, backend == 'openvino'
                          or precision != 'float32', precision)
