"""Run a link's network on an NVIDIA GPU: cuBLAS and a few kernels, no cuDNN.

The link stays the definition, as on a CPU (openvino_engine.py). In this order:
the engine, from pixels to labels; the network as steps, with its weights; what
is launched for an image size. The kernels are in cupy_kernels.cu.

An array (C, h, w) on the GPU has a row of h w numbers for each channel, padded
to a multiple of `ROW`. A convolution is one product of matrices, W (O, C) times
x (C, h w); bias and ReLU after it are left to whatever reads it, where that can
apply them.
"""
import bisect
import dataclasses
import functools
import math
import pathlib
import threading
from typing import Any, NamedTuple

import chainer
import numpy as np
from chainer.backends import cuda

from .constants import LOGITS_STRIDE, OFFSET, SCALE
from .network_graph import NetworkGraph
from .openvino_engine import SETTINGS
from .utils.errors import BackendError

ROW = 32  # numbers: TF32 is up to 2.7 times as fast on aligned rows
BLOCK, NUMBERS = 256, 4  # threads of a block; numbers of a row for each thread
LABEL_THREADS = 2048 * BLOCK  # each has memory of its own
N_SUMS = 64  # sums of a row, before these are added up
KEPT_PLANS = 8  # image sizes
# Names of cuBLAS's compute types. The last is float32 even where
# NVIDIA_TF32_OVERRIDE asks for TF32.
COMPUTE_TYPES = {'float32': 'CUBLAS_COMPUTE_32F',
                 'tf32': 'CUBLAS_COMPUTE_32F_FAST_TF32'}
STRICT_FLOAT32 = 'CUBLAS_COMPUTE_32F_PEDANTIC'
FLOAT, AS_IT_IS, BEST = 0, 0, -1  # CUDA_R_32F, CUBLAS_OP_N, _GEMM_DEFAULT
ZERO, ONE = np.float32([0]), np.float32([1])
RELU, NO_RELU = 0., -math.inf  # the least that is left of a number
# From Python's types to a kernel's arguments; None is no array.
C_TYPES = {bool: np.int32, int: np.int32, float: np.float32,
           type(None): lambda none: np.uint64(0)}


class CuPyEngine:
    """Computes labels or logits on the GPU where a link is, in one of
    `COMPUTE_TYPES`.
    """

    def __init__(self, precision='float32'):
        self.precision = precision
        self._compute_type = COMPUTE_TYPES[precision]
        self._lock = threading.Lock()
        self._network, self._memory, self._plans = None, None, {}

    def __reduce__(self):
        """Copies and pickles start without weights."""
        return CuPyEngine, (self.precision,)

    def in_float32(self):
        """Return an engine with the same weights, and the same memory, that
        computes in float32.
        """
        engine = CuPyEngine()
        engine._compute_type, engine._lock = STRICT_FLOAT32, self._lock
        engine._network, engine._memory = self._network, self._memory
        return engine

    def update(self, link):
        """Take a link's weights; quick when they have not changed.

        Raise BackendError where the link has no form as a graph.
        """
        with self._lock, chainer.using_device(link.device):
            fingerprint = _fingerprint(link)
            if self._network is None or (
                    fingerprint != self._network.fingerprint):
                self._network = self._memory = None  # before a new one is made
                self._plans.clear()  # (H, W) -> Plan
                self._network = Network(link, fingerprint)

    def __call__(self, x):
        """Return logits (1, n_class, ceil(H/4), ceil(W/4)) of a prepared image
        (1, 3, H, W), both cupy.ndarray, float32.
        """
        with self._lock, chainer.using_device(self._network.device):
            return self._logits(cuda.cupy.ascontiguousarray(x)[0],
                                x.shape[2:])[np.newaxis]

    def label_map(self, image, size, scales=(1.,), flip=False):
        """Segment an image (3, H, W), RGB in [0, 255], padded to `size`
        (height, width) as `link.prepare` does.

        Return numpy.ndarray, (H, W), int32. Of several scales, and of the
        mirrored image, softmax is averaged.
        """
        with self._lock, chainer.using_device(self._network.device):
            cupy, crop = cuda.cupy, image.shape[1:]
            dtype = np.uint8 if image.dtype == np.uint8 else np.float32
            pixels = cupy.asarray(np.ascontiguousarray(image, dtype))
            x = cupy.empty((3, *size), np.float32)
            run(launch('prepare', math.prod(size), 3, pixels, dtype is np.uint8,
                       *crop, x, *size, SCALE, float(OFFSET)))
            maps = [self._logits(x, scaled, out, mirrored)
                    for scaled, out in _scaled(size, scales)
                    for mirrored in ((False, True) if flip else (False,))]
            table = cupy.asarray(np.array(
                [(each.data.ptr, *each.shape[1:]) for each in maps], np.int64))
            label = cupy.empty(crop, np.int32)
            work = cupy.empty((len(maps), LABEL_THREADS), np.float32)
            run(launch('labels', LABEL_THREADS * NUMBERS, 1, table,
                       maps[0].shape[0], len(maps), *size, label, *crop, work))
            return label.get()

    def memory_needed(self, size, scales=(1.,), flip=False):
        """Return how many more bytes `label_map` takes for an image of `size`
        (height, width); after `update`.
        """
        memory = had = 0 if self._memory is None else self._memory.size
        numbers = 7 * math.prod(size)  # pixels, prepared; labels
        output = self._network.output
        for scaled, out in _scaled(size, scales):
            plan = self._plans.get(scaled) or Plan(self._network, scaled)
            memory = max(memory, plan.n_numbers)
            numbers += (2 if flip else 1) * (
                output.channels * math.prod(out or plan.sizes[output])
                + LABEL_THREADS)
        return 4 * (numbers + memory - had)

    def _logits(self, x, scaled, out=None, mirrored=False):
        """Return logits (n_class, h, w) of x (3, H, W) resized to `scaled`;
        they are resized to `out`, if given. Where `mirrored`, the network sees
        x mirrored, and its logits are mirrored back.
        """
        plan, output = self._plan(scaled), self._network.output
        own = plan.sizes[output]
        y = cuda.cupy.empty((output.channels, *(out or own)), np.float32)
        run(resize(x, math.prod(x.shape[1:]), x.shape[1:],
                   *plan.array(self._network.input), scaled, mirrored),
            *plan.launches,
            resize(*plan.array(output), own, y, math.prod(y.shape[1:]),
                   y.shape[1:], mirrored))
        return y

    def _plan(self, size):
        """Return the plan for an image size; all of them share a memory."""
        if size not in self._plans:
            plan = Plan(self._network, size)
            if len(self._plans) == KEPT_PLANS:
                self._plans.clear()
            if self._memory is None or plan.n_numbers > self._memory.size:
                self._plans.clear()
                self._memory = None  # first, then the larger one
                cuda.cupy.get_default_memory_pool().free_all_blocks()
                self._memory = cuda.cupy.empty(plan.n_numbers, np.float32)
            plan.build(self._memory, self._compute_type)
            self._plans[size] = plan
        return self._plans[size]


def _scaled(size, scales):
    """Yield to what `link.predict` resizes at each scale: the image; and the
    logits, or None.
    """
    for scale in scales:
        yield (tuple(int((side - 1) * scale + 1) for side in size),
               None if scale >= 1 else tuple(math.ceil(side / LOGITS_STRIDE)
                                             for side in size))


def _fingerprint(link):
    """Return what changes when the network's output does."""
    settings, arrays = [link.device], []
    for path, child in link.namedlinks(skipself=True):
        values = vars(child)
        settings.append((path, type(child),
                         [values.get(key) for key in SETTINGS]))
        found = (getattr(values[name], 'array', values[name])
                 for name in (*child._params, *child._persistent))
        arrays += [array for array in found if getattr(array, 'ndim', 0)]
    table = cuda.cupy.asarray(np.array(
        [(array.data.ptr, array.nbytes // 4) for array in arrays], np.int64))
    sums = cuda.cupy.asarray(np.zeros(len(arrays), np.uint64))
    run(launch('digest', 1 << 14, len(arrays), table, sums))
    return settings, [array.shape for array in arrays], sums.get().tobytes()


@functools.cache
def _kernel(name):
    """Return a kernel; CuPy compiles it at its first use on a GPU."""
    path = pathlib.Path(__file__).with_name('cupy_kernels.cu')
    return cuda.cupy.RawModule(code=path.read_text()).get_function(name)


def launch(name, n, rows, *args):
    """Return (kernel, arguments) for `rows` rows of n numbers."""
    grid = math.ceil(n / (BLOCK * NUMBERS)), rows
    return _kernel(name), (grid, (BLOCK,), tuple(
        C_TYPES[type(each)](each) if type(each) in C_TYPES else each
        for each in args))


def run(*launches):
    """Start one after another; CuPy does not wait for their end."""
    for function, arguments in launches:
        function(*arguments)


def resize(x, pitch, size, y, y_pitch, y_size, mirrored=False):
    """Return the launch that resizes x (C, *size) to y (C, *y_size)."""
    return launch('resize', math.prod(y_size), y.size // y_pitch, x, pitch,
                  *size, y, y_pitch, *y_size, mirrored)


def product(m, n, k, x, ldx, W, beta, y, ldy, compute_type):
    """Compute y = W x + beta y, of W (n, k), x (k, m) and y (n, m), by address;
    rows of x and y begin ldx and ldy numbers apart.

    cuBLAS has columns first: it sees the transposed matrices, y' = x' W'.
    """
    blas = cuda.cupy.cuda.cublas
    blas.gemmEx(cuda.cupy.cuda.get_cublas_handle(), AS_IT_IS, AS_IT_IS, m, n, k,
                ONE.ctypes.data, x, FLOAT, ldx, W, FLOAT, k, beta.ctypes.data,
                y, FLOAT, ldy, getattr(blas, compute_type), BEST)


@dataclasses.dataclass(eq=False)
class Tensor:
    """An array (channels, h, w); maybe a part of another, `whole`."""

    channels: int
    whole: 'Tensor | None' = None
    first: int = 0  # of the channels of `whole`
    bias: Any = None  # (channels,), float32, which readers must add
    # Of each reader: whether it wants ReLU first, and whether it can apply
    # that, and the bias.
    reads: list = dataclasses.field(default_factory=list)

    @property
    def least(self):
        """What its writer may leave: all readers may want ReLU."""
        return RELU if all(relu for relu, _ in self.reads) else NO_RELU

    @property
    def buffer(self):
        return self.whole or self


class Read(NamedTuple):
    """What the operations of a Network take and return."""

    tensor: Tensor
    relu: bool = False


@dataclasses.dataclass(eq=False)
class Step:
    """One operation, from x to y."""

    kind: str  # a method of Plan
    x: Read
    y: Tensor
    settings: tuple = (1, 1, 0, 1)  # kernel size, stride, pad, dilation
    W: Any = None  # (O, weights of each), on the GPU
    b: Any = None  # (O,), on the GPU; None where left to the readers of y
    onto: Tensor | None = None  # to which y is added, in its place
    like: Tensor | None = None  # has the height and width of y
    size: tuple | None = None  # of y


class Network(NetworkGraph):
    """A network as steps in order, with weights on the current GPU."""

    def __init__(self, link, fingerprint):
        super().__init__(link)
        self.fingerprint, self.device = fingerprint, link.device
        self.steps, self.input = [], Tensor(3)
        self.output = self._finished(self.network(link, Read(self.input)))
        for step in self.steps:
            self._leave_bias(step)
        for step in self.steps:
            step.W, step.b, step.y.bias = (
                None if array is None else cuda.cupy.asarray(array)
                for array in (step.W, step.b, step.y.bias))

    def conv(self, x, path, W, b, link):
        pairs = W.shape[2:], link.stride, link.pad, link.dilate
        settings = tuple(int(pair[0]) for pair in pairs)
        is_depthwise = W.shape[1:] == (1, 3, 3) and len(W) == link.groups
        if any(len(set(pair)) > 1 for pair in pairs) or (
                link.groups > 1 and not is_depthwise):
            raise BackendError(f'{path}, a convolution of this shape, has no '
                               'form on a GPU')
        y = Tensor(len(W))
        W = np.ascontiguousarray(W.reshape(len(W), -1))
        if is_depthwise:
            return self._add('depthwise', x, y, settings, W=W, b=b)
        if settings[:3] != (1, 1, 0):
            x = self._add('columns', x, Tensor(W.shape[1]), settings)
        return self._add('product', x, y, W=W, b=b)

    def relu(self, x):
        return Read(x.tensor, True)

    def total(self, x, y):
        """Let the product that makes x be added to y, in the place of y."""
        step = next(step for step in self.steps if step.y is x.tensor)
        if x.relu or y.relu or step.kind != 'product':
            raise BackendError('a sum after an activation has no form on a GPU')
        self.steps.remove(step)
        self.steps.append(step)  # after those that make y
        y.tensor.reads.append((False, True))
        step.onto, x.tensor.whole = y.tensor, y.tensor.buffer
        return x

    def concat(self, *xs):
        whole = Tensor(0)
        for part in xs:
            tensor = self._finished(part)
            tensor.whole, tensor.first = whole, whole.channels
            whole.channels += tensor.channels
        return Read(whole)

    def mean(self, x):
        n = x.tensor.channels
        sums = self._add('add_up', x, Tensor(n), size=(1, N_SUMS))
        return self._add('add_up', sums, Tensor(n), size=(1, 1))

    def resize(self, x, like):
        return self._add('resize', x, Tensor(x.tensor.channels),
                         like=like.tensor)

    expand = resize  # from one pixel

    def _add(self, kind, x, y, *args, **options):
        """Add a step; return what it computes."""
        x.tensor.reads.append((x.relu, kind in {'depthwise', 'columns'}))
        self.steps.append(Step(kind, x, y, *args, **options))
        return Read(y)

    def _finished(self, x):
        """Return the tensor, for a reader that can apply nothing."""
        x.tensor.reads.append((x.relu, False))
        return x.tensor

    def _leave_bias(self, step):
        """Leave bias and ReLU to the readers of y, if all can apply them."""
        y = step.y
        if y.least == NO_RELU and (True, False) in y.reads:
            raise BackendError('an activation in front of such a layer has no '
                               'form on a GPU')
        if step.onto is not None and step.onto.bias is not None:
            step.b = step.b + step.onto.bias
        if step.kind == 'product' and all(can for _, can in y.reads):
            y.bias, step.b = step.b, None


class Plan:
    """What is launched for an image size.

    Arrays that are not in use at the same time may share their place in a
    memory of `n_numbers`, which `build` takes.
    """

    def __init__(self, network, size):
        self._steps, self.sizes = network.steps, {network.input: size}
        lives = {}
        for time, step in enumerate(self._steps):
            self.sizes[step.y.buffer] = self._size_after(step)
            self.sizes[step.y] = self.sizes[step.y.buffer]
            for tensor in step.x.tensor, step.y:
                n = tensor.buffer.channels * self._pitch(tensor)
                _, first, _ = lives.get(tensor.buffer, (n, time, time))
                lives[tensor.buffer] = n, first, time
        self._places, self.n_numbers = _packed(lives)

    def build(self, memory, compute_type):
        """Set `launches`, (function, arguments), in a memory on the GPU."""
        self._memory, self._compute_type = memory, compute_type
        self.launches = [each for step in self._steps
                         for each in getattr(self, f'_{step.kind}')(step)]

    def array(self, tensor):
        """Return a tensor's array, and the numbers from row to row."""
        pitch = self._pitch(tensor)
        begin = self._places[tensor.buffer] + tensor.first * pitch
        return self._memory[begin:begin + tensor.channels * pitch], pitch

    def _pitch(self, tensor):
        return math.ceil(math.prod(self.sizes[tensor]) / ROW) * ROW

    def _size_after(self, step):
        if step.size is not None:
            return step.size
        if step.like is not None:
            return self.sizes[step.like]
        ksize, stride, pad, dilate = step.settings
        return tuple((side + 2 * pad - dilate * (ksize - 1) - 1) // stride + 1
                     for side in self.sizes[step.x.tensor])

    def _depthwise(self, step):
        yield self._window(step, step.W, step.b, step.y.least,
                           *step.settings[1:])

    def _columns(self, step):
        yield self._window(step, *step.settings)

    def _window(self, step, *args):
        x, size = step.x.tensor, self.sizes[step.y]
        return launch(step.kind, math.prod(size), step.y.channels,
                      *self.array(x), *self.sizes[x], x.bias,
                      RELU if step.x.relu else NO_RELU, *args,
                      *self.array(step.y), *size)

    def _product(self, step):
        (x, x_pitch), (y, pitch) = map(self.array, (step.x.tensor, step.y))
        yield product, (
            pitch, *step.W.shape, x.data.ptr, x_pitch, step.W.data.ptr,
            ZERO if step.onto is None else ONE, y.data.ptr, pitch,
            self._compute_type)
        if step.b is not None:
            yield launch('finish', pitch, step.y.channels, y, pitch, step.b,
                         step.y.least)

    def _add_up(self, step):
        x, n_sums = step.x.tensor, math.prod(step.size)
        n = math.prod(self.sizes[x])
        yield launch('add_up', n_sums, step.y.channels, *self.array(x), n,
                     *self.array(step.y), n_sums, 1. if n_sums == 1 else 1 / n)

    def _resize(self, step):
        x, y = step.x.tensor, step.y
        yield resize(*self.array(x), self.sizes[x], *self.array(y),
                     self.sizes[y])


def _packed(lives):
    """Give buffers places in a memory where those in use at the same time do
    not overlap: the largest first, each in the first gap.

    `lives` is buffer -> numbers, first and last time of use. Return buffer ->
    place, and the numbers of the memory.
    """
    places, taken = {}, []  # (begin, end, first, last), sorted
    for key, (n, first, last) in sorted(
            lives.items(), key=lambda life: -life[1][0]):
        place = 0
        for begin, end, other_first, other_last in taken:
            if first <= other_last and other_first <= last:
                if place + n <= begin:
                    break
                place = max(place, end)
        places[key] = place
        bisect.insort(taken, (place, place + n, first, last))
    return places, max(end for _, end, _, _ in taken)
