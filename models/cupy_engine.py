"""Run a link's network on an NVIDIA GPU: cuBLAS and a few kernels, no cuDNN.

The link stays the definition, as on a CPU (openvino_engine.py). In this order:
the engine, from pixels to labels; the network as steps, with its weights; what
is launched for an image size. The kernels are in cupy_kernels.cu.

An array (C, h, w) on the GPU has a row of h w numbers for each channel, padded
to a multiple of `ROW`. A convolution is one product of matrices, W (O, C) times
x (C, h w); bias and ReLU after it are left to whatever reads it, where that can
apply them.
"""
import dataclasses
import functools
import math
import pathlib
import threading
from collections.abc import Callable
from typing import NamedTuple

import chainer
import numpy as np
from chainer.backends import cuda

from . import gpu
from .chainer_engine import Engine, sizes_at
from .constants import OFFSET, SCALE
from .network_graph import NetworkGraph, settings
from .resizing import resize_image
from .utils.errors import BackendError

KERNELS = pathlib.Path(__file__).with_name('cupy_kernels.cu')
ROW = 32  # numbers: TF32 is up to 2.7 times as fast on aligned rows
BLOCK, NUMBERS = 128, 8  # threads of a block; numbers of a row for each thread
LABEL_THREADS = 4096 * BLOCK  # each has memory of its own
N_SUMS = 256  # sums of a row, before these are added up
KEPT_PLANS = 8  # image sizes
# Where TF32 is fast, a product is faster in parts from so many weights and
# pixels on.
MIN_WEIGHTS, MIN_PIXELS = 1 << 18, 1 << 10
# Names of cuBLAS's compute types. The last is float32 even where
# NVIDIA_TF32_OVERRIDE asks for TF32.
COMPUTE_TYPES = {'float32': 'CUBLAS_COMPUTE_32F',
                 'tf32': 'CUBLAS_COMPUTE_32F_FAST_TF32'}
STRICT_FLOAT32 = 'CUBLAS_COMPUTE_32F_PEDANTIC'
FLOAT, AS_IT_IS, BEST = 0, 0, -1  # CUDA_R_32F, CUBLAS_OP_N, _GEMM_DEFAULT
ZERO, ONE = np.float32([0]), np.float32([1])
RELU, NO_RELU = 0., -math.inf  # the least that is left of a number
NO_MEMORY = np.empty(0, np.float32)
ONE_PIXEL = [1, 1, 0, 1]  # a window's ksize, stride, pad and dilate


class CuPyEngine(Engine):
    """Runs a network on the GPU where its link is, in one of COMPUTE_TYPES."""

    def __init__(self, precision='float32'):
        self.precision = precision
        self._compute_type = COMPUTE_TYPES[precision]
        self._lock = threading.Lock()
        self._network, self._memory = None, NO_MEMORY
        self._plans = {}  # (H, W) -> Plan

    def __reduce__(self):
        """Copies and pickles start without weights."""
        return CuPyEngine, (self.precision,)

    def in_float32(self):
        """Return an engine with the same weights and memory, in float32."""
        engine = CuPyEngine()
        engine._compute_type, engine._lock = STRICT_FLOAT32, self._lock
        engine._network, engine._memory = self._network, self._memory
        return engine

    def update(self, link):
        """Take a link's weights; quick when they have not changed."""
        with self._lock, chainer.using_device(link.device):
            fingerprint = _fingerprint(link)
            if fingerprint != getattr(self._network, 'fingerprint', None):
                self._plans.clear()  # before a new one is made
                self._network, self._memory = None, NO_MEMORY
                self._network = Network(link, fingerprint, in_parts=(
                    self.precision == 'float32' and gpu.tf32_is_fast()))

    def __call__(self, x):
        with self._lock, chainer.using_device(self._network.device):
            x = cuda.cupy.ascontiguousarray(x)[0]
            return self._logits_at(x, x.shape[1:])[np.newaxis]

    def label_map(self, link, image):
        size = link.padded_size(*image.shape[1:])
        image = resize_image(image, link.resized_size(*image.shape[1:]))
        crop, is_bytes = image.shape[1:], image.dtype == np.uint8
        is_last = image.transpose(1, 2, 0).flags.c_contiguous  # as it was read
        image = np.ascontiguousarray(
            image.transpose(1, 2, 0) if is_last else image,
            np.uint8 if is_bytes else np.float32)
        with self._lock, chainer.using_device(self._network.device):
            cupy = cuda.cupy
            x, pixels = cupy.empty((3, *size), np.float32), cupy.asarray(image)
            launch('prepare', math.prod(size), 3, pixels, is_bytes, is_last,
                   *crop, SCALE, float(OFFSET), x, *size)()
            maps = [self._logits_at(x, scaled, out, mirrored)
                    for scaled, out in sizes_at(link.scales, size)
                    for mirrored in ((False, True) if link.flip else (False,))]
            table = cupy.asarray(np.array(
                [(each.data.ptr, *each.shape[1:]) for each in maps], np.int64))
            label = cupy.empty(crop, np.int32)
            work = cupy.empty((len(maps), LABEL_THREADS), np.float32)
            launch('labels', LABEL_THREADS * NUMBERS, 1, table, link.n_class,
                   self._network.output.channels, len(maps), *size, label,
                   *crop, work)()
            return label.get()

    def memory_needed(self, link, height, width):
        memory = self._memory.size  # this and the rest is exact
        numbers = 7 * height * width  # pixels, prepared; labels
        output = self._network.output
        for scaled, out in sizes_at(link.scales, (height, width)):
            plan = self._plans.get(scaled) or Plan(self._network, scaled)
            memory = max(memory, plan.n_numbers)
            numbers += (2 if link.flip else 1) * (LABEL_THREADS + (
                output.channels * math.prod(out or plan.sizes[output])))
        return 4 * (numbers + memory - self._memory.size)

    def _logits_at(self, x, scaled, out=None, mirrored=False):
        """Return logits (n_class, h, w) of x (3, H, W) resized to `scaled`,
        mirrored on the way in and out; resized to `out`, if given.
        """
        plan, output = self.plan(scaled), self._network.output
        y = cuda.cupy.empty(
            (output.channels, *(out or plan.sizes[output])), np.float32)
        resize((x, x[0].size, *x.shape[1:]), plan.array(self._network.input),
               mirrored)
        for start in plan.launches:
            start()
        resize(plan.array(output), (y, y[0].size, *y.shape[1:]), mirrored)
        return y

    def plan(self, size):
        """Return the plan for an image size; all of them share a memory."""
        if size not in self._plans:
            plan = Plan(self._network, size)
            if plan.n_numbers > self._memory.size or (
                    len(self._plans) == KEPT_PLANS):
                self._plans.clear()
                self._memory = NO_MEMORY  # first, then the new one
                cuda.cupy.get_default_memory_pool().free_all_blocks()
                self._memory = cuda.cupy.empty(plan.n_numbers, np.float32)
            plan.build(self._memory, self._compute_type)
            self._plans[size] = plan
        return self._plans[size]


def _fingerprint(link):
    """Return what changes when the network's output does."""
    arrays = [getattr(vars(child)[name], 'array', vars(child)[name])
              for child in link.links()
              for name in (*child._params, *child._persistent)]
    arrays = [array for array in arrays if getattr(array, 'ndim', 0)]
    table = cuda.cupy.asarray(np.array(
        [(array.data.ptr, array.nbytes // 4) for array in arrays], np.int64))
    sums = cuda.cupy.asarray(np.zeros(len(arrays), np.uint64))
    launch('digest', 1 << 14, len(arrays), table, sums)()
    return (link.device, settings(link), [array.shape for array in arrays],
            sums.get().tobytes())


@functools.cache
def _kernel(name):
    """Return a kernel; CuPy compiles it at its first use on a GPU."""
    return cuda.cupy.RawModule(code=KERNELS.read_text()).get_function(name)


def launch(name, n, rows, *args):
    """Return a function that starts a kernel, for `rows` rows of n numbers."""
    return functools.partial(
        _kernel(name), (math.ceil(n / (BLOCK * NUMBERS)), rows), (BLOCK,),
        tuple(np.float32(each) if isinstance(each, float) else
              np.int32(each) if isinstance(each, int) else each
              for each in args))


def resize(x, y, mirrored):
    """Resize x to y; each is as `Plan.array` returns it."""
    array, pitch, *size = y
    launch('resize', math.prod(size), array.size // pitch, *x, mirrored, *y)()


def product(compute_type, n, W, beta, x, x_pitch, y, pitch):
    """Compute y = W x + beta y, of the first n columns of W (O, C), of x (n,
    x_pitch) and y (O, pitch).

    cuBLAS has columns first: it sees the transposed matrices, y' = x' W'.
    """
    cublas, handle = cuda.cupy.cuda.cublas, cuda.cupy.cuda.get_cublas_handle()
    cublas.gemmEx(
        handle, AS_IT_IS, AS_IT_IS, pitch, len(W), n, ONE.ctypes.data,
        x.data.ptr, FLOAT, x_pitch, W.data.ptr, FLOAT, W.shape[1],
        beta.ctypes.data, y.data.ptr, FLOAT, pitch,
        getattr(cublas, compute_type), BEST)


def product_in_parts(W, beta, x, x_pitch, *y):
    """Compute a product nearly as exactly as float32, in TF32: three, of parts.

    W (O, 2C) is what TF32 holds of each weight, then the rests; x (2C, x_pitch)
    is the rests, then what TF32 holds.
    """
    n = W.shape[1] // 2
    product(COMPUTE_TYPES['tf32'], 2 * n, W, beta, x, x_pitch, *y)
    product(COMPUTE_TYPES['tf32'], n, W, ONE, x[n * x_pitch:], x_pitch, *y)


def in_parts(W):
    """Return (O, 2C) of W (O, C): what TF32 holds of each number, and the rest,
    as `store` of cupy_kernels.cu has them.
    """
    held = ((W.view(np.uint32) + np.uint32(0x1000))
            & np.uint32(0xffffe000)).view(np.float32)
    return np.concatenate([held, W - held], 1)


@dataclasses.dataclass(eq=False)
class Tensor:
    """An array (channels, h, w); maybe a part of another, `whole`."""

    channels: int
    size_of: Callable | None = None  # (h, w) from the sizes of others
    whole: 'Tensor | None' = None
    first: int = 0  # of the channels of `whole`
    bias: np.ndarray | None = None  # (channels,), float32, still to be added
    parts: bool = False  # a product may take it in parts
    least: float = NO_RELU  # RELU once that is applied

    @property
    def buffer(self):
        return self.whole or self


class Read(NamedTuple):
    """What the operations of a Network take and return."""

    tensor: Tensor
    relu: bool = False


class Step(NamedTuple):
    """One operation, from x to y."""

    kind: str  # a kernel, or 'product'
    x: Tensor
    y: Tensor
    args: list  # of the kernel; of a product W, beta, and W in parts or None


class Network(NetworkGraph):
    """A network as steps in order, with weights on the current GPU."""

    def __init__(self, link, fingerprint, in_parts=False):
        super().__init__(link)
        self.fingerprint, self.device = fingerprint, link.device
        self.in_parts = in_parts  # whether products may be, where that pays
        self.steps, self.input = [], Tensor(3)
        self.output = self._finished(self.network(link, Read(self.input)))

    def conv(self, x, path, W, b, link):
        pairs = W.shape[2:], link.stride, link.pad, link.dilate
        window = ksize, stride, pad, dilate = [int(pair[0]) for pair in pairs]
        is_depthwise = W.shape[1:] == (1, 3, 3) and len(W) == link.groups
        if W.dtype != np.float32 or (
                any(len(set(pair)) > 1 for pair in pairs)) or (
                link.groups > 1 and not is_depthwise):
            raise BackendError(f'{path}, a convolution of this shape or type, '
                               'has no form on a GPU')

        def size_of(sizes, source=x.tensor):
            return tuple(
                (side + 2 * pad - dilate * (ksize - 1) - 1) // stride + 1
                for side in sizes[source])

        W = np.ascontiguousarray(W.reshape(len(W), -1))
        if is_depthwise:
            return self._add('depthwise', x.tensor, Tensor(len(W), size_of),
                             *self._left(x), stride, pad, dilate,
                             *map(cuda.cupy.asarray, (W, b)), NO_RELU)
        if window[:3] != ONE_PIXEL[:3]:
            x = self._add('columns', x.tensor, Tensor(W.shape[1], size_of),
                          *self._left(x), *window)
        x = self._finished(x)
        y = Tensor(len(W), lambda sizes: sizes[x], bias=b)
        x.parts = self.in_parts and W.size >= MIN_WEIGHTS and [
            (step.kind, step.y) for step in self.steps[-1:]
        ] == [('depthwise', x)]
        return self._add('product', x, y, cuda.cupy.asarray(W), ZERO,
                         cuda.cupy.asarray(in_parts(W)) if x.parts else None)

    def relu(self, x):
        last = self.steps[-1]
        if last.kind == 'depthwise' and last.y is x.tensor:
            last.args[-1] = x.tensor.least = RELU
        return Read(x.tensor, True)

    def total(self, x, y):
        """Let the product that makes x be added to y, in the place of y."""
        tensor, onto = x.tensor, y.tensor
        if x.relu or y.relu or onto.least == RELU or tensor.bias is None:
            raise BackendError('a sum after an activation has no form on a GPU')
        step = next(step for step in self.steps if step.y is tensor)
        self.steps.remove(step)
        self.steps.append(step)  # after those that make y
        step.args[1], tensor.whole = ONE, onto.buffer
        if onto.bias is not None:
            tensor.bias = tensor.bias + onto.bias
        return x

    def concat(self, *xs):
        whole = Tensor(0)
        for tensor in map(self._finished, xs):
            tensor.whole, tensor.first = whole, whole.channels
            whole.channels += tensor.channels
        return Read(whole)

    def mean(self, x):
        for n_sums in N_SUMS, 1:
            source = self._finished(x)
            y = Tensor(source.channels, lambda sizes, n=n_sums: (1, n))
            x = self._add('add_up', source, y, n_sums > 1)
        return x

    def resize(self, x, like):
        source = self._finished(x)
        y = Tensor(source.channels, lambda sizes: sizes[like.tensor])
        return self._add('resize', source, y, False)

    expand = resize  # from one pixel

    def _add(self, kind, x, y, *args):
        """Add a step; return what it computes."""
        self.steps.append(Step(kind, x, y, list(args)))
        return Read(y)

    def _left(self, x):
        """Return what a reader must apply: a bias, and the least."""
        if x.tensor.parts or (x.tensor.least == RELU and not x.relu):
            raise BackendError('an array that is read twice, in parts or before'
                               ' and after an activation, has no form on a GPU')
        bias = (np.zeros(x.tensor.channels, np.float32)
                if x.tensor.bias is None else x.tensor.bias)
        return cuda.cupy.asarray(bias), RELU if x.relu else NO_RELU

    def _finished(self, x):
        """Return the tensor, after what is left is applied in its place."""
        tensor, (bias, least) = x.tensor, self._left(x)
        if tensor.bias is not None or least > tensor.least:
            self._add('columns', tensor, tensor, bias, least, *ONE_PIXEL)
            tensor.bias, tensor.least = None, least
        return tensor


class Plan:
    """What is launched for an image size, in a memory of `n_numbers`; arrays
    that are not in use at the same time may share their place there.
    """

    def __init__(self, network, size):
        self.steps, self.sizes = network.steps, {network.input: size}
        lives = {}  # buffer -> numbers, first and last time of use
        for time, step in enumerate(self.steps):
            self.sizes[step.y] = self.sizes[step.y.buffer] = step.y.size_of(
                self.sizes)
            for tensor in step.x, step.y:
                n = self._rows(tensor.buffer) * self._pitch(tensor)
                _, first, _ = lives.get(tensor.buffer, (n, time, time))
                lives[tensor.buffer] = n, first, time
        self.places, self.n_numbers = _packed(lives)

    def build(self, memory, compute_type):
        """Set `launches`, functions, in a memory on the GPU."""
        self._memory, self.launches = memory, []
        for step in self.steps:
            x, y = self.array(step.x), self.array(step.y)
            if step.kind == 'product':
                W, beta, parts = step.args
                which = ((product_in_parts, parts) if self._in_parts(step.x)
                         else (product, compute_type, W.shape[1], W))
                start = functools.partial(*which, beta, *x[:2], *y[:2])
            else:
                parts = [self._in_parts(step.y)] * (step.kind == 'depthwise')
                start = launch(step.kind, math.prod(y[2:]), step.y.channels, *x,
                               *step.args, *parts, *y)
            self.launches.append(start)

    def array(self, tensor):
        """Return a tensor's array, its numbers from row to row, and h, w."""
        pitch = self._pitch(tensor)
        begin = self.places[tensor.buffer] + tensor.first * pitch
        return (self._memory[begin:begin + self._rows(tensor) * pitch], pitch,
                *self.sizes[tensor])

    def _in_parts(self, tensor):
        return tensor.parts and math.prod(self.sizes[tensor]) >= MIN_PIXELS

    def _rows(self, tensor):
        return tensor.channels * (2 if self._in_parts(tensor) else 1)

    def _pitch(self, tensor):
        return math.ceil(math.prod(self.sizes[tensor]) / ROW) * ROW


def _packed(lives):
    """Return buffer -> place, and the numbers of a memory, so that none in use
    at the same time overlap: the largest first, each in the first gap.
    """
    places, taken = {}, []  # (begin, end, first, last)
    for key, (n, first, last) in sorted(
            lives.items(), key=lambda life: -life[1][0]):
        others = [(begin, end) for begin, end, born, gone in taken
                  if first <= gone and born <= last]
        place = places[key] = min(
            place for place in (0, *(end for _, end in others))
            if all(place + n <= begin or end <= place for begin, end in others))
        taken.append((place, place + n, first, last))
    return places, max(end for _, end, _, _ in taken)
