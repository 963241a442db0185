"""Options that the scripts share: which model, and what runs it."""
import itertools

from models.constants import OUTPUT_STRIDES
from models.pretrained import PRETRAINED_MODELS
from models.utils.errors import InputError

MAX_SCALE = 8


def add_model_arguments(parser, default):
    """Add the options that `load_model` reads.

    Args:
        parser (argparse.ArgumentParser): the script's.
        default (str): the pretrained model where none is asked for.

    """
    parser.add_argument('--gpu', type=int, default=-1, metavar='GPU',
                        help='number of the GPU to run on (default: the CPU)')
    parser.add_argument(
        '--pretrained-model', default=default, metavar='MODEL',
        help=f'an npz file, or one of {", ".join(PRETRAINED_MODELS)}, which '
             'is downloaded at the first use (default: %(default)s)')
    parser.add_argument(
        '--input-size', nargs='+', metavar='SIZE', default=[],
        help='one number, or height and width: smaller images are padded to '
             'this size (default: what the model was made for)')
    parser.add_argument(
        '--output-stride', type=int, choices=OUTPUT_STRIDES,
        help='16 is three times as fast and a little less accurate (default: '
             "the model's, mostly 8)")
    parser.add_argument('--scales', nargs='+', default=[], metavar='SCALE',
                        help='average over these scales (default: 1.0)')
    parser.add_argument('--flip', action='store_true',
                        help='average over the mirrored image, too')
    parser.add_argument(
        '--backend', choices=['auto', 'openvino', 'chainer'], default='auto',
        help='what runs the network on a CPU (default: OpenVINO where it is '
             'installed, else Chainer)')
    parser.add_argument('--threads', type=int, metavar='N',
                        help='threads on a CPU (default: one for each core)')


def check_model_arguments(parser, args):
    """Refuse what has no meaning; make `input_size` None or two numbers."""
    if args.threads is not None and args.threads < 1:
        parser.error(f'--threads is {args.threads}, and must be positive')
    if args.gpu >= 0 and (args.backend, args.threads) != ('auto', None):
        parser.error('--backend and --threads are for a CPU, not for --gpu')
    sizes = args.input_size
    if sizes and (len(sizes) > 2 or not all(map(str.isdigit, sizes))
                  or min(map(int, sizes)) < 1):
        parser.error('--input-size takes one or two positive numbers, given '
                     f'was {" ".join(sizes)}')
    args.input_size = tuple(map(int, (sizes * 2)[:2])) or None
    try:
        args.scales = tuple(map(float, args.scales)) or (1.,)
    except ValueError:
        args.scales = (0.,)
    if not all(0 < scale <= MAX_SCALE for scale in args.scales):
        parser.error(f'--scales takes positive numbers up to {MAX_SCALE}')


def split_numbers(values):
    """Return the numbers that a list of words begins with, and the rest.

    `--input-size 513 1025 a.png` is meant to end at the second number, and
    argparse hands over all three.
    """
    numbers = list(itertools.takewhile(_is_number, values))
    return numbers, values[len(numbers):]


def _is_number(word):
    try:
        float(word)
    except ValueError:
        return False
    return True


def load_model(args, dataset=None):
    """Return the link, on its device, with settings from the command line.

    Args:
        args (argparse.Namespace): see `add_model_arguments`.
        dataset (str): what it is for; by default, what the npz says.

    Raises:
        InputError: there is no such GPU or model, or it does not fit.

    """
    from models import DeepLabV3plusXception65
    from models.classes import guess_dataset
    if args.gpu >= 0:
        check_gpu(args.gpu)
    model = DeepLabV3plusXception65(
        pretrained_model=args.pretrained_model,
        min_input_size=args.input_size, scales=args.scales, flip=args.flip,
        output_stride=args.output_stride)
    if args.input_size is None and 'min_input_size' not in model.metadata:
        known = PRETRAINED_MODELS[dataset or guess_dataset(model)]
        model.min_input_size = known['min_input_size']
    if args.gpu >= 0:
        import chainer
        chainer.cuda.get_device_from_id(args.gpu).use()
        model.to_gpu(args.gpu)
    else:
        set_backend(model, args.backend, args.threads)
    return model


def set_backend(model, backend, threads):
    """Choose what runs the link on a CPU, with how many threads."""
    if threads is not None:
        from threadpoolctl import threadpool_limits
        threadpool_limits(threads)  # of NumPy's matrix products
    if backend == 'chainer':
        model.to_chainer()
    else:
        model.to_openvino(threads, required=backend == 'openvino')


def check_gpu(gpu):
    """Raise InputError where Chainer cannot use the GPU of this number."""
    from chainer.backends import cuda
    advice = ('leave --gpu out to run on the CPU, or see "On a GPU" in '
              'README.md')
    if not cuda.available:
        raise InputError(f'--gpu {gpu} needs CuPy, and Chainer cannot load it '
                         f'({cuda._resolution_error}): {advice}')
    runtime = cuda.cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise InputError(f'--gpu {gpu} needs a GPU and its driver ({error}): '
                         f'{advice}') from None
    if gpu >= count:
        raise InputError(f'--gpu {gpu} is not there: the GPUs are numbered 0 '
                         f'to {count - 1}')
