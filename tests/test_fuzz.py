"""Damaged files at every level: a good result or one clear line, nothing else.

    FUZZ_SECONDS=600 python -m pytest tests/test_fuzz.py     (`make fuzz`)

Each test damages its file in seeded ways for that long (by default a few
seconds), within a bound of memory.
"""
import gzip
import io
import os
import resource
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.graph_pb2 import GraphDef

from conversion import Conversion
from frozen_graph import FrozenGraph
from images import read_image
from models.errors import InputError
from models.weights import load_weights, read_npz
from sources import open_source

SECONDS = float(os.environ.get('FUZZ_SECONDS', '4'))
SEED = int(os.environ.get('FUZZ_SEED', '0'))
MEMORY = 2 << 30  # bytes beyond what the tests have at the start


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (
        size * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def damaged(data, rng):
    """Return data with a few bits, or a piece, changed."""
    result = bytearray(data)
    kind = rng.integers(5)
    start, stop = np.sort(rng.integers(0, len(data) + 1, 2))
    stop = min(stop, start + rng.integers(1, 64))
    if kind == 0:
        return bytes(result[:start])
    if kind == 1:
        result[start:stop] = bytes(stop - start)
    elif kind == 2:
        result[start:start] = result[start:stop]
    elif kind == 3:
        result[start:stop] = rng.bytes(stop - start)
    else:
        for place in rng.integers(0, len(data), rng.integers(1, 8)):
            result[place] ^= 1 << rng.integers(8)
    return bytes(result)


def fuzz(data, use, at_least):
    """Damage data again and again; `use` may only succeed or say why not."""
    rng = np.random.default_rng(SEED)
    deadline = time.monotonic() + SECONDS
    refused = count = 0
    while count < at_least or time.monotonic() < deadline:
        count += 1
        bad = damaged(data, rng)
        start = time.monotonic()
        try:
            use(bad)
        except InputError:
            refused += 1
        assert time.monotonic() - start < 10, 'it hangs'
    assert refused > count // 10  # the damage was felt
    print(f'{count} cases, {refused} refused')


def small_graph():
    graph = GraphDef()
    node = graph.node.add(name='aspp0/weights', op='Const')
    tensor = node.attr['value'].tensor
    tensor.dtype = 1
    for side in (1, 1, 3, 5):
        tensor.tensor_shape.dim.add().size = side
    tensor.tensor_content = np.arange(15, dtype='f').tobytes()
    graph.node.add(name='aspp0/weights/read', op='Identity',
                   input=['aspp0/weights'])
    node = graph.node.add(name='aspp0/Conv2D', op='Conv2D',
                          input=['x', 'aspp0/weights/read'])
    node.attr['strides'].list.i.extend([1, 1, 1, 1])
    node.attr['padding'].s = b'SAME'
    graph.node.add(name='x', op='Placeholder')
    return graph.SerializeToString()


def test_graph():
    def use(data):
        graph = FrozenGraph(data, 'graph.pb')
        for name in graph.weights:
            graph.weight(name)
            graph.convolution(name)

    fuzz(small_graph(), use, 1000)


def test_whole_graph(skeleton):
    def use(data):
        for _ in Conversion(FrozenGraph(data, 'graph.pb'), 'voc').arrays():
            pass

    # Nodes are what to damage; most of the bytes are names.
    fuzz(skeleton, use, 20)


def archive():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=tarfile.PAX_FORMAT) as tar:
        for name, data in (('readme', b'text' * 200),
                           ('ü' * 120 + '/graph.pb', small_graph())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def test_gzip(tmp_path):
    def use(data):
        (tmp_path / 'a.tar.gz').write_bytes(data)
        open_source(tmp_path / 'a.tar.gz')

    fuzz(gzip.compress(archive()), use, 500)


def test_tar(tmp_path):
    def use(data):
        (tmp_path / 'a.tar.gz').write_bytes(gzip.compress(data, 1))
        open_source(tmp_path / 'a.tar.gz')

    fuzz(archive(), use, 500)


def small_link():
    import chainer
    return chainer.links.Linear(3, 4)


def npz_bytes():
    file = io.BytesIO()
    np.savez(file, W=np.ones((4, 3), 'f'), b=np.ones(4, 'f'),
             **{'metadata/task': np.asarray('voc'),
                'metadata/min_input_size': np.array([513, 513])})
    return file.getvalue()


def test_zip(tmp_path):
    link = small_link()

    def use(data):
        (tmp_path / 'a.npz').write_bytes(data)
        read_npz(tmp_path / 'a.npz')
        load_weights(tmp_path / 'a.npz', link)

    fuzz(npz_bytes(), use, 500)


def test_npy_header(tmp_path):
    link = small_link()
    npy = io.BytesIO()
    np.save(npy, np.ones((4, 3), 'f'))

    def use(data):
        write_member(tmp_path / 'a.npz', data)
        load_weights(tmp_path / 'a.npz', link)

    fuzz(npy.getvalue(), use, 500)


def write_member(path, data):
    """Write an npz whose W.npy is data, with a right checksum."""
    with (zipfile.ZipFile(io.BytesIO(npz_bytes())) as good,
          zipfile.ZipFile(path, 'w') as bad):
        for name in good.namelist():
            bad.writestr(name, data if name == 'W.npy' else good.read(name))


@pytest.mark.parametrize('shape', ['(1099511627776,)', '(1048576, 1048576)',
                                   '(-1, 3)', '(4, 3.0)', '(4, 9**9**9)'])
def test_absurd_shapes(tmp_path, shape):
    header = (f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, "
              '}').ljust(117) + '\n'
    write_member(tmp_path / 'a.npz', b'\x93NUMPY\x01\x00' + len(
        header).to_bytes(2, 'little') + header.encode() + bytes(48))
    with pytest.raises(InputError):
        load_weights(tmp_path / 'a.npz', small_link())


def test_zip_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w',
                         zipfile.ZIP_DEFLATED) as archive:
        for name in 'W', 'b', 'metadata/task':
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array_header_1_0(file, {
                    'descr': '<f4', 'fortran_order': False,
                    'shape': (1 << 28,)})
                for _ in range(64):
                    file.write(bytes(1 << 22))
    with pytest.raises(InputError):
        load_weights(tmp_path / 'a.npz', small_link())


def test_pictures(tmp_path):
    from PIL import Image
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    for ending in 'png', 'jpg', 'bmp', 'gif', 'tiff', 'webp':
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, {'jpg': 'jpeg'}.get(ending, ending))

        def use(data, path=tmp_path / f'a.{ending}'):
            path.write_bytes(data)
            read_image(path)

        fuzz_briefly(file.getvalue(), use)


def fuzz_briefly(data, use):
    rng = np.random.default_rng(SEED)
    for _ in range(int(50 * SECONDS)):
        try:
            use(damaged(data, rng))
        except InputError:
            continue
