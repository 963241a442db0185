"""Options that the scripts share: which model, and what runs it."""
from models.errors import InputError
from models.pretrained import PRETRAINED_MODELS


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


def load_model(args, dataset=None, **options):
    """Return the link, on its device, with settings from the command line.

    Args:
        args (argparse.Namespace): see `add_model_arguments`.
        dataset (str): what it is for; by default, what the npz says.
        options: passed to the link.

    Raises:
        InputError: there is no such GPU or model, or it does not fit.

    """
    from datasets import guess_dataset
    from models import DeepLabV3plusXception65
    if args.gpu >= 0:
        check_gpu(args.gpu)
    model = DeepLabV3plusXception65(
        pretrained_model=args.pretrained_model,
        min_input_size=args.input_size, **options)
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
    import chainer
    if not chainer.cuda.available:
        raise InputError(f'--gpu {gpu} needs CuPy and a CUDA GPU, and Chainer '
                         'finds none: leave --gpu out to run on the CPU, or '
                         'install requirements-gpu.txt')
    count = chainer.cuda.cupy.cuda.runtime.getDeviceCount()
    if gpu >= count:
        raise InputError(f'--gpu {gpu} is not there: GPUs 0 to {count - 1} are')
