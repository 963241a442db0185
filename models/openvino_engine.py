"""Run a link's network through OpenVINO: fast on a CPU.

The link stays the definition. Its graph is compiled at the first use and again
after the link has changed.
"""
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from . import memory
from .chainer_engine import Engine
from .network_graph import NetworkGraph, settings
from .utils.errors import BackendError, InputError
from .weights import named_arrays

# A network for any size runs images of up to so many pixels. A larger image
# gets its own (half a second), which takes a third less memory.
SHARED_PIXELS = 1 << 20
# Measured, in bytes: the network as a graph, and compiled; then for each pixel,
# in the shared network and in one for a single size.
GRAPH_MEMORY, COMPILED_MEMORY = 200e6, 240e6
SHARED_PIXEL, OWN_PIXEL = 680, 440
# OpenVINO's names. By default it would use bfloat16 on processors with AMX.
PRECISIONS = {'float32': 'f32', 'bfloat16': 'bf16'}
OPTIONS = {
    'PERFORMANCE_HINT': 'LATENCY',  # all threads work on one image
    # Pinning would put several processes on the same cores.
    'ENABLE_CPU_PINNING': False,
    # The cache would hold some megabytes for each image size.
    'CPU_RUNTIME_CACHE_CAPACITY': '0',
}
CHANNELS, SIDES = 1, [2, 3]  # axes
ANY_SIZE = -1, -1  # OpenVINO's height and width of a free shape


class OpenVINOEngine(Engine):
    """Computes logits in one of `PRECISIONS`; by default on all cores."""

    def __init__(self, threads=None, precision='float32'):
        if precision not in PRECISIONS:
            raise InputError(f'precision is {precision}, and must be one of '
                             f'{", ".join(PRECISIONS)}')
        if threads is not None and threads < 1:
            raise InputError(f'threads is {threads}, and must be positive')
        self.threads, self.precision = threads, precision
        self._options = {
            **OPTIONS, 'INFERENCE_PRECISION_HINT': PRECISIONS[precision],
            'INFERENCE_NUM_THREADS': threads or (  # 0: OpenVINO's choice
                memory.cores() if memory.quota_of_cores() else 0)}
        self._lock = threading.Lock()
        self._fingerprint = self._model = None  # of the weights it has
        self._requests = {}  # (H, W) or `ANY_SIZE` -> openvino.InferRequest
        self._largest = 0  # pixels of the largest image so far

    def __reduce__(self):
        """Copies and pickles start uncompiled."""
        return OpenVINOEngine, (self.threads, self.precision)

    def in_float32(self):
        """Return an engine with the same weights that computes in float32."""
        engine = OpenVINOEngine(self.threads)
        engine._fingerprint, engine._model = self._fingerprint, self._model
        return engine

    def check_usable(self):
        """Raise BackendError where OpenVINO or the precision is missing."""
        try:
            import openvino  # noqa: F401
            import xxhash  # noqa: F401
        except Exception as error:  # broken ones fail in many ways
            raise BackendError(f'OpenVINO cannot be used ({error}): install '
                               'requirements.txt') from None
        if self.precision == 'bfloat16' and not has_bfloat16():
            raise BackendError(
                'this processor has no bfloat16 (AVX-512 BF16 or AMX): take '
                'float32, the default')

    def update(self, link):
        """Take a link's weights; quick when they have not changed.

        Raise BackendError as `check_usable` or where the link has no form as a
        graph, and InputError where the memory is too small.
        """
        self.check_usable()
        with self._lock:
            fingerprint = _fingerprint(link)
            if fingerprint == self._fingerprint:
                return
            self._fingerprint = self._model = None
            self._requests, self._largest = {}, 0
            memory.check_memory(
                'compiling the network', GRAPH_MEMORY + COMPILED_MEMORY,
                'free some, or run it on Chainer')
            self._model = openvino_model(link)
            self._fingerprint = fingerprint

    def __call__(self, x):
        """Return logits (1, n_class, ceil(H/4), ceil(W/4)) of a prepared image
        (1, 3, H, W), float32; raise InputError where the memory is too small.
        """
        with self._lock:
            return self._request(*x.shape[2:]).infer(
                [np.ascontiguousarray(x)], share_inputs=True)[0]

    def memory_needed(self, link, height, width):
        scaled = [int(side * max(link.scales)) for side in (height, width)]
        return (self._memory_needed(*scaled)
                + memory.logits_memory(link, height, width))

    def _memory_needed(self, height, width):
        """Return about how many more bytes the network takes."""
        pixels = height * width
        if pixels <= self._largest:
            return 0
        return COMPILED_MEMORY + pixels * (
            SHARED_PIXEL if pixels <= SHARED_PIXELS else OWN_PIXEL)

    def _request(self, height, width):
        """Return what runs images of this size; compile it at first use.

        The first size has a network of its own, which is a few percent faster;
        so has a large one. Other sizes share one.
        """
        pixels, size = height * width, (height, width)
        if size not in self._requests and self._requests and (
                pixels <= SHARED_PIXELS):
            size = ANY_SIZE
        if pixels > self._largest or size not in self._requests:
            memory.check_memory(f'an image of {height} x {width} pixels',
                                self._memory_needed(height, width))
        if size not in self._requests:
            self._compile(size)
        self._largest = max(pixels, self._largest)
        return self._requests[size]

    def _compile(self, size):
        import openvino
        # Each holds the weights: keep the shared one and one for a large size.
        self._requests = {
            other: request for other, request in self._requests.items()
            if (math.prod(other) > SHARED_PIXELS if size == ANY_SIZE
                else other == ANY_SIZE)}
        self._largest = min(self._largest,
                            SHARED_PIXELS if self._requests else 0)
        memory.give_back()
        self._model.reshape([1, 3, *size])
        self._requests[size] = openvino.compile_model(
            self._model, 'CPU', self._options).create_infer_request()


def has_bfloat16():
    """Return whether OpenVINO computes in bfloat16 on this processor."""
    import openvino
    return 'BF16' in openvino.Core().get_property(
        'CPU', 'OPTIMIZATION_CAPABILITIES')


def _fingerprint(link):
    """Return a digest of all that affects the network's output."""
    from xxhash import xxh3_128_digest
    arrays = named_arrays(link)
    with ThreadPoolExecutor(2) as pool:  # one core cannot saturate the memory
        digests = list(pool.map(xxh3_128_digest, map(
            np.ascontiguousarray, arrays.values())))
    return digests, settings(link), [
        (name, array.dtype.str, array.shape) for name, array in arrays.items()]


def openvino_model(link):
    """Return an openvino.Model of a link with its present weights, which it
    shares with the graph.

    It maps an image (1, 3, H, W), float32, as `link.prepare` makes it, to
    logits (1, n_class, ceil(H/4), ceil(W/4)), float32. Raise BackendError
    where a part of the link was replaced by an unknown one.
    """
    import openvino
    from openvino import opset13 as ops
    x = ops.parameter([1, 3, -1, -1], np.float32)
    return openvino.Model([_Graph(link, ops).network(link, x)], [x])


class _Graph(NetworkGraph):
    """Its tensors are openvino.Node, of the operations `ops`."""

    def __init__(self, root, ops):
        super().__init__(root)
        self.ops, self.relu, self.total = ops, ops.relu, ops.add

    def conv(self, x, path, W, b, link):
        convolution = self.ops.convolution
        if link.groups > 1:
            convolution = self.ops.group_convolution
            W = W.reshape(link.groups, -1, *W.shape[1:])
        y = convolution(x, self._constant(W), list(link.stride),
                        list(link.pad), list(link.pad), list(link.dilate))
        return self.ops.add(y, self._constant(b[None, :, None, None]))

    def concat(self, *xs):
        return self.ops.concat(xs, CHANNELS)

    def mean(self, x):
        return self.ops.reduce_mean(x, np.array(SIDES), keep_dims=True)

    def expand(self, x, like):
        shape = self.ops.concat([np.array([1, 1]), self._sides(like)], 0)
        return self.ops.broadcast(x, shape, broadcast_spec='BIDIRECTIONAL')

    def resize(self, x, like):
        return self.ops.interpolate(
            x, self._sides(like), mode='linear_onnx',
            shape_calculation_mode='sizes',
            coordinate_transformation_mode='align_corners',
            axes=np.array(SIDES))

    def _constant(self, array):
        """Share an array's memory, if that is of float32; keep it alive."""
        return self.ops.constant(np.ascontiguousarray(array, np.float32),
                                 shared_memory=True)

    def _sides(self, x):
        """Return height and width, as a tensor."""
        return self.ops.gather(
            self.ops.shape_of(x), np.array(SIDES), np.array(0))
