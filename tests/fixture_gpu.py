"""A stand-in for CuPy: the engine's own kernels, compiled for the processor.

It is as strict as a GPU or stricter. Its arrays do not become NumPy's unless
they are asked to (`get`), and do not work together with NumPy's; new ones hold
NaN; a kernel gets its arguments in exactly the types that its text names; and
what cuBLAS reads and writes must lie in one array.
"""
import contextlib
import ctypes
import functools
import pathlib
import re
import shutil
import subprocess
import tempfile
import weakref
from types import SimpleNamespace

import chainer
import numpy as np
import pytest
from chainer.backends import _cpu, cuda

from models import cupy_engine, network_graph

SHIM = pathlib.Path(__file__).with_name('fixture_gpu.h')
SIGNATURE = re.compile(r'^KERNEL (\w+)\((.*?)\) {', re.MULTILINE | re.DOTALL)
SCALARS = {'int': (np.int32, ctypes.c_int),
           'float': (np.float32, ctypes.c_float)}
ARRAYS = {'float': np.float32, 'int': np.int32, 'long long': np.int64,
          'unsigned long long': np.uint64, 'void': None}
GUARD = 64  # bytes around an array that nothing may write
GUARD_BYTE = 0xA5
MAX_GRID = (1 << 31) - 1, 65535, 65535  # of CUDA
HANDLE = 12345


class DeviceArray(np.ndarray):
    """An array that refuses to work with NumPy's."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        for array in (*inputs, *out):
            if type(array) is np.ndarray and array.ndim:
                raise TypeError("NumPy's array together with a device's")
        if out:
            kwargs['out'] = tuple(map(inside, out))
        return outside(getattr(ufunc, method)(*map(inside, inputs), **kwargs))

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f'numpy.{function.__name__} of a device array')

    def __array__(self, *args, **kwargs):
        raise TypeError('a device array does not become one of NumPy by '
                        'itself')

    def __getitem__(self, index):
        return outside(inside(self)[index])

    def argmax(self, *args, **kwargs):
        return outside(inside(self).argmax(*args, **kwargs))

    def get(self):
        """Copy it to the CPU."""
        return inside(self).copy()

    @property
    def data(self):
        return SimpleNamespace(ptr=self.__array_interface__['data'][0])


def inside(array):
    return array.view(np.ndarray) if isinstance(array, DeviceArray) else array


def outside(array):
    return array.view(DeviceArray) if isinstance(array, np.ndarray) else array


class Memory:
    """All arrays of the device, between guards."""

    def __init__(self):
        self.blocks = {}  # address -> number of bytes, raw
        self.used = self.peak = 0
        self.limit = float('inf')

    def empty(self, shape, dtype):
        shape = (shape,) if np.ndim(shape) == 0 else tuple(shape)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self.used + n_bytes > self.limit:
            raise OutOfMemoryError
        raw = np.full(n_bytes + 2 * GUARD + 256, GUARD_BYTE, np.uint8)
        begin = -(raw.ctypes.data + GUARD) % 256 + GUARD  # as cudaMalloc aligns
        block = raw[begin:begin + n_bytes]
        block[:] = 0xFF  # NaN
        array = outside(block.view(dtype).reshape(shape))
        address = block.ctypes.data
        self.blocks[address] = n_bytes, weakref.ref(raw)
        self.used += n_bytes
        self.peak = max(self.peak, self.used)
        weakref.finalize(raw, self._forget, address, n_bytes)
        return array

    def _forget(self, address, n_bytes):
        del self.blocks[address]
        self.used -= n_bytes

    def check(self, address, n_bytes):
        """Raise unless the bytes lie in one array of the device."""
        if not any(begin <= address and address + n_bytes <= begin + size
                   for begin, (size, _) in self.blocks.items()):
            raise TypeError(f'{n_bytes} bytes at {address:#x} are not in an '
                            'array of the device')

    def check_guards(self):
        """Raise where something was written beside an array."""
        for address, (n_bytes, raw) in self.blocks.items():
            whole = raw()
            begin = address - whole.ctypes.data
            assert (whole[:begin] == GUARD_BYTE).all()
            assert (whole[begin + n_bytes:] == GUARD_BYTE).all()


class OutOfMemoryError(MemoryError):
    """CuPy's."""


@functools.cache
def compiled(code):
    """Return the kernels as a library, and name -> [(type, name)]."""
    compiler = shutil.which('g++') or shutil.which('clang++')
    if compiler is None:
        pytest.skip('no C++ compiler: the kernels cannot be run on a CPU')
    expanded = code
    for macro, text in re.findall(r'#define (INPUT|OUTPUT) (.*)', code):
        expanded = re.sub(rf'\b{macro}\b', text, expanded)
    kernels = {name: [re.fullmatch(
        r'(?:const )?([a-z ]+?) ?(\*?)(\w+)', ' '.join(each.split())).groups()
        for each in arguments.split(',')]
        for name, arguments in SIGNATURE.findall(expanded)}
    launchers = [
        f'extern "C" void launch_{name}(const int *grid, const int *block'
        + ''.join(f', {"const " if star and kind == "void" else ""}'
                  f'{kind} {star}{argument}'
                  for kind, star, argument in arguments)
        + f') {{ each_thread(grid, block, [&] {{ {name}('
        + ', '.join(argument for *_, argument in arguments) + '); }); }'
        for name, arguments in kernels.items()]
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, 'kernels.cpp')
        source.write_text(f'#include "{SHIM}"\n{code}\n' + '\n'.join(launchers))
        library = pathlib.Path(folder, 'kernels.so')
        subprocess.run([compiler, '-O3', '-march=native', '-std=c++11', '-w',
                        '-shared', '-fPIC', source, '-o', library], check=True)
        return ctypes.CDLL(str(library)), kernels


class RawModule:
    """CuPy's: kernels of a text."""

    def __init__(self, *, code, options=()):
        self.library, self.kernels = compiled(code)

    def get_function(self, name):
        function, arguments = self.library[f'launch_{name}'], self.kernels[name]

        def launch(grid, block, args):
            assert type(grid) is type(block) is type(args) is tuple
            if any(not 0 < side <= most for side, most in zip(
                    grid, MAX_GRID, strict=False)) or not (
                        0 < block[0] <= 1024):
                raise TypeError(f'{name}: a grid of {grid} and {block}')
            given = [_argument(name, *each) for each in zip(
                args, arguments, strict=True)]
            function((ctypes.c_int * 2)(*grid, *(1,) * (2 - len(grid))),
                     (ctypes.c_int * 1)(*block), *given)

        launch.__name__ = name
        return launch


def _argument(kernel, value, argument):
    kind, star, name = argument
    if not star:
        dtype, c_type = SCALARS[kind]
        if type(value) is not dtype:
            raise TypeError(f'{kernel}: {name} is a {type(value).__name__}, '
                            f'and must be a {dtype.__name__}')
        return c_type(value)
    if not isinstance(value, DeviceArray):
        raise TypeError(f'{kernel}: {name} is no array of the device')
    if not value.flags.c_contiguous:
        raise TypeError(f'{kernel}: {name} is not contiguous')
    if ARRAYS[kind] is not None and value.dtype != ARRAYS[kind]:
        raise TypeError(f'{kernel}: {name} is of {value.dtype}')
    return ctypes.c_void_p(value.data.ptr)


class CuBLAS:
    """`cupy.cuda.cublas`, on NumPy."""

    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC = 68, 69
    CUBLAS_COMPUTE_32F_FAST_TF32 = 77

    def __init__(self, memory):
        self.memory, self.compute_types = memory, set()

    def gemmEx(self, handle, transa, transb, m, n, k, alpha,  # noqa: N802
               a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc,
               compute_type, algorithm):
        numbers = (handle, transa, transb, m, n, k, alpha, a, a_type, lda, b,
                   b_type, ldb, beta, c, c_type, ldc, compute_type, algorithm)
        if any(type(number) is not int for number in numbers):
            raise TypeError(f'cuBLAS takes integers, not {numbers}')
        assert handle == HANDLE
        assert (transa, transb, algorithm) == (0, 0, -1)
        assert {a_type, b_type, c_type} == {0}  # CUDA_R_32F
        assert min(m, n, k) > 0
        assert lda >= m
        assert ldb >= k
        assert ldc >= m
        assert max(m, n, k, lda, ldb, ldc) < 1 << 31
        self.compute_types.add(compute_type)
        a, b, c = (self._matrix(*each) for each in (
            (a, m, k, lda), (b, k, n, ldb), (c, m, n, ldc)))
        alpha, beta = (ctypes.c_float.from_address(each).value
                       for each in (alpha, beta))
        if compute_type == self.CUBLAS_COMPUTE_32F_FAST_TF32:
            a, b = _tf32(a), _tf32(b)
        with np.errstate(invalid='ignore'):  # padding is NaN
            found = alpha * (b @ a)
            c[...] = found + beta * c if beta else found

    def _matrix(self, address, rows, columns, ld):
        """Return a matrix, which cuBLAS has columns first, transposed."""
        n = ld * (columns - 1) + rows
        self.memory.check(address, 4 * n)
        flat = np.ctypeslib.as_array(
            (ctypes.c_float * n).from_address(address))
        return np.lib.stride_tricks.as_strided(
            flat, (columns, rows), (4 * ld, 4))


def _tf32(array):
    """Round to ten bits, as a tensor core does."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def stand_in(n_bytes=8e9):
    """Return what stands for the module `cupy`."""
    memory = Memory()

    def asarray(array):
        if isinstance(array, DeviceArray):
            return array
        new = memory.empty(array.shape, array.dtype)
        inside(new)[...] = array
        return new

    pool = SimpleNamespace(free_bytes=lambda: 1e9,
                           free_all_blocks=lambda: None)
    return SimpleNamespace(
        __name__='cupy', memory=memory, pool=pool,
        float32=np.float32, int32=np.int32, asarray=asarray,
        empty=memory.empty, RawModule=RawModule,
        ascontiguousarray=lambda array: outside(
            np.ascontiguousarray(inside(array))),
        get_default_memory_pool=lambda: pool,
        cuda=SimpleNamespace(
            cublas=CuBLAS(memory), get_cublas_handle=lambda: HANDLE,
            Device=lambda: SimpleNamespace(compute_capability='80'),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(memGetInfo=lambda: (n_bytes, n_bytes))))


class StandIn(chainer.backend.Device):
    """One of several GPUs. `current` is the number of the current one."""

    name, supported_array_types = 'stand-in', (DeviceArray,)
    xp = property(lambda self: cuda.cupy)
    current = 0

    def __init__(self, number=0):
        super().__init__()
        self.number = number

    def __eq__(self, other):
        return isinstance(other, StandIn) and other.number == self.number

    __hash__ = None

    def send_array(self, array):
        return cuda.cupy.asarray(array)

    def create_context(self):
        return _current(self.number)


@contextlib.contextmanager
def _current(number):
    before, StandIn.current = StandIn.current, number
    try:
        yield
    finally:
        StandIn.current = before


def emulate(monkeypatch):
    """Let Chainer and the project take the stand-in for CuPy; return it.

    Chainer's own functions are taken as they are: what goes into one must lie
    on the device, and what comes out of it does.
    """
    cupy, apply = stand_in(), chainer.FunctionNode.apply
    array_to_cpu = _cpu._array_to_cpu

    def strict_apply(self, inputs):
        arrays = [getattr(each, 'array', each) for each in inputs]
        on_device = [isinstance(array, DeviceArray) for array in arrays]
        if any(on_device) and not all(on_device):
            raise TypeError(f'{type(self).__name__} of a NumPy array')
        outputs = apply(self, tuple(map(inside, arrays)))
        if all(on_device):
            for output in outputs:
                output.array = outside(output.array)
        return outputs

    def to_cpu(array):
        return (array.get() if isinstance(array, DeviceArray) else
                array_to_cpu(array))

    monkeypatch.setattr(chainer.FunctionNode, 'apply', strict_apply)
    monkeypatch.setattr(_cpu, '_array_to_cpu', to_cpu)
    monkeypatch.setattr(network_graph, 'to_cpu', to_cpu)
    monkeypatch.setattr(cuda, 'cupy', cupy)
    monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '0')
    for name in 'available', 'cudnn_enabled':  # of a CuPy that is installed
        monkeypatch.setattr(cuda, name, False)
    cupy_engine._kernel.cache_clear()
    yield cupy
    cupy_engine._kernel.cache_clear()
    cupy.memory.check_guards()
