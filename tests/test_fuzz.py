"""Damaged files at every level: a good result or one clear line, nothing else.

    FUZZ=20 python -m pytest tests/test_fuzz.py     (`make fuzz`)

Hypothesis invents the damage, always the same; FUZZ times as much of it, and
new in each run, where that is set. All within a bound of memory.
"""
import contextlib
import datetime
import functools
import gzip
import io
import os
import resource
import sys
import tarfile
import zipfile
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest
from av.codec import Codec
from av.codec.codec import UnknownCodecError, codecs_available
from av.error import FFmpegError
from conftest import SMALL, thinned
from fixture_graph import FixtureGraph
from fixture_images import copy_film, write_film
from fixture_tools import constants_folded, folded, quantized
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from tensorboard.compat.proto.graph_pb2 import GraphDef

from convert.conversion import check, converted_arrays
from convert.frozen_graph import FrozenGraph
from convert.sources import open_source
from media.images import read_image
from models import DeepLabV3plusXception65
from models.classes import labels_of
from models.utils.errors import InputError
from models.weights import LOGITS, METADATA, METADATA_FORMS, WeightsFile

TIMES = int(os.environ.get('FUZZ', '0'))
MEMORY = 2 << 30  # bytes beyond what the tests have at the start
OPS = ['Const', 'Identity', 'Conv2D', 'DepthwiseConv2dNative', 'BiasAdd',
       'FusedBatchNorm', 'Relu', 'Add', 'ConcatV2', 'ResizeBilinear', 'Pad',
       'SpaceToBatchND', 'BatchToSpaceND', 'AvgPool', 'ArgMax', 'Nonsense']


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == 'linux':  # elsewhere there is no such limit
        size = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(strategy, use, n_cases):
    """Call `use` with what a strategy makes: it may work, or say why not."""
    refused = 0

    @settings(max_examples=n_cases * (TIMES or 1), database=None,
              derandomize=not TIMES, deadline=datetime.timedelta(seconds=20),
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(case):
        nonlocal refused
        try:
            use(case)
        except InputError:
            refused += 1

    one()
    assert refused > n_cases // 20  # the damage was felt


@st.composite
def damaged(draw, data):
    """A file of which a piece was cut out, and perhaps another put in."""
    start = draw(st.integers(0, len(data)))
    length = draw(st.integers(0, 64) | st.just(len(data)))
    return data[:start] + draw(st.binary(max_size=64)) + data[start + length:]


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


def test_graph_bytes():
    def use(data):
        graph = FrozenGraph(data, 'graph.pb')
        for node in graph.nodes.values():
            if node.op == 'Const':
                graph.weight(node)

    fuzz(damaged(small_graph()), use, 1000)


@st.composite
def rewired(draw, serialized, wanted=None):
    """A whole graph with one node changed, one of those `wanted`."""
    graph = GraphDef.FromString(serialized)
    names = [node.name for node in graph.node]
    wanted = wanted or range(len(names))
    node = graph.node[wanted[draw(st.integers(0, len(wanted) - 1))]]
    changes = ['op', 'name', 'remove']
    changes += ['input', 'inputs'] * bool(node.input)
    changes += [f'attr {key}' for key in sorted(node.attr)]
    change = draw(st.sampled_from(changes))
    if change == 'op':
        node.op = draw(st.sampled_from(sorted({*OPS, *(
            each.op for each in graph.node)})))
    elif change == 'name':
        node.name = draw(st.sampled_from(names) | st.text(max_size=9))
    elif change == 'remove':
        graph.node.remove(node)
    elif change == 'input':
        node.input[draw(st.integers(0, len(node.input) - 1))] = draw(
            st.sampled_from(names) | st.text(max_size=9))
    elif change == 'inputs':
        del node.input[draw(st.integers(0, len(node.input) - 1)):]
    else:
        change_attribute(draw, node.attr[change.removeprefix('attr ')])
    return graph.SerializeToString()


def change_attribute(draw, value):
    number = st.integers(-2, 5) | st.integers(-2**63, 2**63 - 1)
    if value.HasField('list'):
        del value.list.i[:]
        value.list.i.extend(draw(st.lists(number, max_size=5)))
    elif value.HasField('tensor'):
        tensor = value.tensor
        tensor.dtype = draw(st.sampled_from([0, 1, 2, 3, 7, 9, 19, 99]))
        tensor.tensor_content = draw(st.binary(max_size=16))
        for dim in tensor.tensor_shape.dim:
            dim.size = draw(number)
    else:
        value.f = draw(st.floats(width=32))


def made(tool=lambda graph: graph, n_output=21, **options):
    """Make a small graph of some form."""
    return thinned(tool(FixtureGraph(
        lambda name, shape: np.ones(shape, 'f'), n_output, SMALL, **options
        ).graph))


@functools.cache
def plain_nodes():
    return {(node.name, node.op) for node in made().node}


FORMS = {
    'plain': made,
    'scales': lambda: made(scales=(1.0, 0.75), flip=True),
    'ade20k at scales': lambda: made(n_output=151, scales=(1.0, 0.75)),
    'constants folded': lambda: made(constants_folded),
    'range': lambda: made(era=2020, resize_range=(129, 257, 16)),
    'range of 2018': lambda: made(resize_range=(129, 257, 16)),
    'folded': lambda: made(folded),
    'quantized': lambda: made(lambda graph: quantized(folded(graph, True))),
}


@pytest.mark.parametrize('form', FORMS)
def test_graph_nodes(form):
    """What makes the form is changed; of the plain one, all."""
    graph, dataset = FORMS[form](), 'ade20k' if 'ade20k' in form else 'voc'
    wanted = [i for i, node in enumerate(graph.node)
              if (node.name, node.op) not in plain_nodes()]

    def use(data):
        source = FrozenGraph(data, 'g.pb')
        for _ in converted_arrays(check(source, dataset)):
            pass

    data = graph.SerializeToString()
    fuzz(rewired(data, wanted), use, 30)


def archive():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=tarfile.PAX_FORMAT) as tar:
        for name, data in (('readme', b'text' * 200),
                           ('ü' * 120 + '/graph.pb', small_graph())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize('layer', ['gzip', 'tar'])
def test_archive(tmp_path, layer):
    path, tar = tmp_path / 'a.tar.gz', archive()

    def use(data):
        path.write_bytes(data if layer == 'gzip' else gzip.compress(data, 1))
        open_source(path)

    fuzz(damaged(gzip.compress(tar) if layer == 'gzip' else tar), use, 500)


B = 'decoder/conv_logits/b'


def small_link():
    import chainer
    decoder = chainer.Chain(conv_logits=chainer.links.Convolution2D(3, 4, 1))
    return chainer.Chain(decoder=decoder)


def load(path, link):
    WeightsFile(path).load_into(link)


def npz_bytes(**metadata):
    file = io.BytesIO()
    np.savez(file, **{
        LOGITS: np.ones((4, 3, 1, 1), 'f'), B: np.ones(4, 'f')}, **{
        METADATA + name: value for name, value in metadata.items()})
    return file.getvalue()


def test_npz_bytes(tmp_path):
    path, link = tmp_path / 'a.npz', small_link()

    def use(data):
        path.write_bytes(data)
        load(path, link)

    fuzz(damaged(npz_bytes(task='voc', min_input_size=[513, 513])), use, 500)


KINDS = (stnp.scalar_dtypes() | stnp.unicode_string_dtypes()
         | st.sampled_from(['f', 'i8', 'u1']))


def test_npz_arrays(tmp_path):
    path, link = tmp_path / 'a.npz', small_link()
    names = st.sampled_from([LOGITS, B]) | st.text(max_size=9)
    arrays = stnp.arrays(KINDS, st.sampled_from(
        [(4, 3, 1, 1), (4,), (), (2, 0)]))

    def use(arrays):
        write_arrays(path, arrays)
        load(path, link)

    fuzz(st.dictionaries(names, arrays, max_size=3), use, 300)


def write_arrays(path, arrays):
    """Write an npz whose members may have any name."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array(file, array)


@st.composite
def metadata(draw):
    """Some of what an npz says of itself, most of it in the right form."""
    result = {}
    for name in draw(st.sets(st.sampled_from(sorted(METADATA_FORMS)))):
        kind, sides = METADATA_FORMS[name]
        kinds = {np.integer: stnp.integer_dtypes(), np.uint8: st.just('u1'),
                 np.floating: stnp.floating_dtypes(), np.bool_: st.just('?'),
                 np.str_: stnp.unicode_string_dtypes()}[kind]
        shape = [draw(st.integers(0, 3)) if side is None else side
                 for side in sides]
        if not draw(st.integers(0, 9)):
            kinds, shape = KINDS, draw(stnp.array_shapes(min_dims=0))
        result[METADATA + name] = draw(stnp.arrays(kinds, tuple(shape)))
    return result


def test_npz_metadata(tmp_path):
    path = tmp_path / 'a.npz'
    classifier = np.zeros((2, 256, 1, 1), 'f')

    def use(arrays):
        write_arrays(path, {**arrays, LOGITS: classifier})
        found = WeightsFile(path).metadata
        with contextlib.suppress(InputError):
            labels_of(SimpleNamespace(n_class=2, metadata=found))
        DeepLabV3plusXception65(pretrained_model=path)  # lacks most weights

    fuzz(metadata(), use, 60)


@pytest.mark.parametrize('shape', [
    '(1099511627776, 3, 1, 1)', '(1048576, 1048576, 1, 1)', '(-1, 3, 1, 1)',
    '(4, 3.0, 1, 1)', '(4, 9**9**9, 1, 1)'])
def test_absurd_shapes(tmp_path, shape):
    header = (f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, "
              '}').ljust(117) + '\n'
    write_member(tmp_path / 'a.npz', b'\x93NUMPY\x01\x00' + len(
        header).to_bytes(2, 'little') + header.encode() + bytes(48))
    with pytest.raises(InputError):
        load(tmp_path / 'a.npz', small_link())


def write_member(path, data):
    """Write an npz whose classifier is data, with a right checksum."""
    with (zipfile.ZipFile(io.BytesIO(npz_bytes())) as good,
          zipfile.ZipFile(path, 'w') as bad):
        for name in good.namelist():
            bad.writestr(name, data if name == f'{LOGITS}.npy'
                         else good.read(name))


def test_npy_header(tmp_path):
    path, link = tmp_path / 'a.npz', small_link()
    npy = io.BytesIO()
    np.save(npy, np.ones((4, 3, 1, 1), 'f'))

    def use(data):
        write_member(path, data)
        load(path, link)

    fuzz(damaged(npy.getvalue()), use, 500)


def test_zip_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w',
                         zipfile.ZIP_DEFLATED) as archive:
        for name in LOGITS, B, 'metadata/task':
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array_header_1_0(file, {
                    'descr': '<f4', 'fortran_order': False,
                    'shape': (1 << 28,)})
                for _ in range(64):
                    file.write(bytes(1 << 22))
    with pytest.raises(InputError):
        load(tmp_path / 'a.npz', small_link())


@pytest.mark.filterwarnings('ignore')  # Pillow's, of the damage
@pytest.mark.parametrize('ending', ['png', 'jpeg', 'bmp', 'gif', 'tiff',
                                    'webp'])
def test_images(tmp_path, ending):
    from PIL import Image
    path, file = tmp_path / f'a.{ending}', io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(file, ending)

    def use(data):
        path.write_bytes(data)
        read_image(path)

    fuzz(damaged(file.getvalue()), use, 150)


# The ending of a format, and a codec of video that it takes.
FORMATS = {
    '.mp4': 'libx264', '.mov': 'libx264', '.3gp': 'mpeg4', '.3g2': 'mpeg4',
    '.f4v': 'libx264', '.ismv': 'libx264', '.mkv': 'libx264',
    '.webm': 'libvpx', '.avi': 'mpeg4', '.ts': 'libx264', '.m2ts': 'libx264',
    '.mpg': 'mpeg2video', '.vob': 'mpeg2video', '.flv': 'libx264',
    '.wmv': 'msmpeg4', '.mxf': 'mpeg2video', '.ogv': 'libvpx',
    '.nut': 'libx264', '.wtv': 'mpeg2video', '.dv': 'dvvideo',
    '.gxf': 'mpeg2video', '.ivf': 'libvpx', '.h264': 'libx264',
    '.hevc': 'libx265', '.y4m': 'rawvideo', '.mjpeg': 'mjpeg', '.h261': 'h261'}
N_FRAMES = 24
WITHOUT_TIMES = {'.avi', '.wmv', '.mxf'}  # of B-frames
SIZES = {'h261': (144, 176), 'h263': (144, 176), 'amv': (144, 176),
         'dvvideo': (576, 720), '.gxf': (480, 720)}
PIXELS = ['yuvj420p', 'yuv420p', 'yuv422p', 'yuv444p', 'rgb24', 'gbrp']
SOUNDS = ['aac', 'ac3', 'libmp3lame', 'libopus', 'pcm_s16le', 'wavpack']


def encoders(kind):
    """Return the names of FFmpeg's encoders, 'video' or 'audio'."""
    found = []
    for name in sorted(codecs_available):
        with contextlib.suppress(UnknownCodecError):
            if Codec(name, 'w').type == kind:
                found.append(name)
    return found


def reading(path):
    """Return FFmpeg's own reading of a film: the times of its frames, and the
    first and last of its sound, if there is one.
    """
    span = []
    with av.open(f'file:{path}') as container:
        times = [frame.time for frame in container.decode(video=0)
                 if not frame.is_corrupt]
    with av.open(f'file:{path}') as container:
        if container.streams.audio:
            for frame in container.decode(audio=0):
                end = frame.time + frame.samples / frame.rate
                span = [*span[:1], end] if span else [frame.time, end]
    return times, span


def make_film(path, codec, sound, **settings):
    """Write a film; return FFmpeg's reading, or None if there is none."""
    names = [each.name for each in Codec(codec, 'w').video_formats or ()]
    settings['pix_fmt'] = next((each for each in PIXELS if each in names),
                               *(names[:1] or ['yuv420p']))
    size = SIZES.get(codec) or SIZES.get(path.suffix, (72, 96))
    frames = [np.full((*size, 3), 9 * i, np.uint8) for i in range(N_FRAMES)]
    if path.suffix in WITHOUT_TIMES:
        settings['max_b_frames'] = 0
    for kind in ('stereo', 48_000), ('mono', 16_000), ('mono', 8000):
        with contextlib.suppress(FFmpegError, ValueError, IndexError,
                                 TypeError):
            write_film(path, frames, 25, codec=codec,
                       sound=sound and (sound, *kind), **settings)
            times, span = reading(path)
            return (times, span) if times else None
    return None


@pytest.mark.parametrize('ending', FORMATS)
def test_formats_of_films(tmp_path, ending):
    """What FFmpeg writes and reads is read as it reads it: all its codecs of
    video and of sound with `make fuzz`, else the usual ones.
    """
    # The threads of so many codecs take much room, of which little is used.
    resource.setrlimit(resource.RLIMIT_AS, [
        resource.getrlimit(resource.RLIMIT_AS)[1]] * 2)
    path, usual = tmp_path / f'a{ending}', FORMATS[ending]
    cases = [(usual, None), *((usual, sound) for sound in SOUNDS)]
    if TIMES:
        cases = [*((codec, None) for codec in encoders('video')),
                 *((usual, sound) for sound in encoders('audio'))]
    n_made = 0
    for codec, sound in cases:
        film = make_film(path, codec, sound)
        if film is None:
            continue
        n_made += 1
        what = codec, sound
        video = copy_film(path, tmp_path / 'b.mp4')
        (before, heard), (after, still_heard) = film, reading(
            tmp_path / 'b.mp4')
        assert not [line for line in video.losses if 'missing' in line], what
        assert video.n_damaged == 0 or len(before) < N_FRAMES, what
        assert len(after) == len(before), what
        assert len(after) == 1 or min(np.diff(after)) > 0, what
        if None not in before and before == sorted(before):
            np.testing.assert_allclose(
                after, before, err_msg=what,  # a frame, where it is a guess
                atol=0.041 if ending in WITHOUT_TIMES else 2e-3)
        if not heard or heard[1] < 2:  # else nonsense, as of AMR in AVI
            np.testing.assert_allclose(still_heard, heard, atol=0.06,
                                       err_msg=what)
    assert n_made
