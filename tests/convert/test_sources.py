"""What tf2npz.py takes: graphs, archives, folders, checkpoints; and more."""
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
from conftest import ROOT, SMALL, convert, needs_tensorflow
from fixture_graph import FixtureGraph
from fixture_weights import palette_weights
from tensorboard.compat.proto.graph_pb2 import GraphDef

from convert import sources
from convert.conversion import check
from convert.sources import open_source, opened
from convert.verification import built_in_image, verify
from models import DeepLabV3plusXception65
from models.classes import label_colors
from models.pretrained import URLS
from models.utils.errors import InputError
from models.weights import WeightsFile


def tar_gz(path, *members):
    """Write (name or TarInfo, data) as an archive."""
    with tarfile.open(path, 'w:gz', compresslevel=1) as archive:
        for member, data in members:
            info = (member if isinstance(member, tarfile.TarInfo)
                    else tarfile.TarInfo(member))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_archive_and_folder(skeleton, tmp_path):
    (tmp_path / 'one').mkdir()
    (tmp_path / 'one' / 'graph.pb').write_bytes(skeleton)
    archive = tar_gz(tmp_path / 'z.tar.gz', ('../../up/model.ckpt.index', b''),
                     ('/etc/evil/graph.pb', skeleton), ('readme', b'text'),
                     ('._graph.pb', b'from macOS'))
    (tmp_path / 'one' / '._graph.pb').write_bytes(b'from macOS')
    plain = open_source(tmp_path / 'one' / 'graph.pb')
    for path in archive, tmp_path / 'one':
        found = open_source(path)
        assert found.sha256 == plain.sha256
        assert found.file_name == 'graph.pb'
        assert found.weights == plain.weights
    assert not (tmp_path.parent / 'up').exists()
    (tmp_path / 'one' / 'z.tgz').write_bytes(archive.read_bytes())
    with pytest.raises(InputError, match=r'holds 2 sources.*graph.pb.*z.tgz'):
        open_source(tmp_path / 'one')


def link_member(kind):
    info = tarfile.TarInfo('graph.pb')
    info.type, info.linkname = kind, '/etc/hostname'
    return info


@pytest.mark.parametrize('kind', [
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_archive_of_links_and_devices(tmp_path, kind):
    path = tar_gz(tmp_path / 'a.tar.gz', (link_member(kind), b''))
    with pytest.raises(InputError, match='holds no frozen graph'):
        open_source(path)


def test_archive_of_several(skeleton, tmp_path):
    path = tar_gz(tmp_path / 'a.tar.gz', ('a.pb', skeleton),
                  ('b/c.pb', b'other'))
    with pytest.raises(InputError, match=r'2 sources.*: a.pb, c.pb'):
        open_source(path)


def test_archive_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'MAX_ARCHIVE_BYTES', 10 << 20)
    path = tar_gz(tmp_path / 'a.tar.gz', ('readme', bytes(20 << 20)))
    with pytest.raises(InputError, match='unpacks to more than'):
        open_source(path)
    path = tar_gz(tmp_path / 'b.tar.gz',
                  *((f'file{i}', b'') for i in range(5)))
    monkeypatch.setattr(sources, 'MAX_MEMBERS', 4)
    with pytest.raises(InputError, match=r'more than .* or 4 files'):
        open_source(path)
    info = tarfile.TarInfo('x')
    info.type = tarfile.XHDTYPE  # a header as large as it likes
    path = tar_gz(tmp_path / 'c.tar.gz', (info, bytes(5 << 20)))
    with pytest.raises(InputError, match='a header of 5242880 bytes'):
        open_source(path)
    claim = tarfile.TarInfo('graph.pb')
    claim.size = 1 << 40
    with gzip.open(tmp_path / 'd.tar.gz', 'wb') as file:
        file.write(claim.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(InputError, match='unpacks to more than'):
        open_source(tmp_path / 'd.tar.gz')


def test_folder_of_nothing(tmp_path):
    with pytest.raises(InputError, match='holds no frozen graph'):
        open_source(tmp_path)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A checkpoint as the training code writes it, of palette weights."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow as tf
    folder = tmp_path_factory.mktemp('checkpoint')
    weights = palette_weights(label_colors('voc'))
    shapes = {}
    FixtureGraph(lambda name, shape: shapes.setdefault(
        name, shape) and np.zeros(shape, 'f'), 21, (513, 513))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, shape in shapes.items():
            tf.compat.v1.Variable(weights(name, shape), name=name)
        tf.compat.v1.Variable(np.int64(90000), name='global_step')
        tf.compat.v1.Variable(np.zeros(256, 'f'),
                              name='aspp0/BatchNorm/gamma/Momentum')
        tf.compat.v1.Variable(np.float32(0.9), name='beta1_power')
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / 'model.ckpt'))
    return folder


@needs_tensorflow
@pytest.mark.slow
def test_checkpoint(checkpoint, run_script, palette_graphs):
    result = run_script('tf2npz.py', 'voc', checkpoint, 'a.npz',
                        '--output-stride', 16)
    assert result.returncode == 0, result.stderr
    assert ('ignored, only needed for training: aspp0/BatchNorm/gamma/'
            'Momentum, beta1_power, global_step') in result.stdout
    found = dict(np.load(run_script.folder / 'a.npz'))
    assert found['metadata/output_stride'] == 16
    assert found['metadata/min_input_size'].tolist() == [513, 513]
    for name, array in np.load(palette_graphs('voc')[1]).items():
        if not name.startswith('metadata/'):
            np.testing.assert_array_equal(found[name], array)


@needs_tensorflow
@pytest.mark.slow
def test_damaged_checkpoint(checkpoint, fails, tmp_path):
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:len(data) // 2])
    fails('model.ckpt is not a whole checkpoint', 'tf2npz.py', 'voc',
          tmp_path / 'model.ckpt', 'a.npz')


@pytest.mark.parametrize(('version', 'command'), [
    ((3, 13), '`make setup-dev`'),
    ((3, 14), '`make PYTHON=python3.13 setup-dev` (it has no wheel for Python '
              '3.14)')])
def test_without_tensorflow(skeleton, tmp_path, monkeypatch, version, command):
    monkeypatch.setitem(sys.modules, 'tensorflow', None)
    monkeypatch.setattr(sys, 'version_info', version)
    for end in '.index', '.data-00000-of-00001':
        (tmp_path / f'model.ckpt{end}').touch()
    with pytest.raises(InputError, match=re.escape(
            f'model.ckpt is a checkpoint, and reading one needs TensorFlow: '
            f'install it with {command}, or convert a frozen graph')):
        open_source(tmp_path / 'model.ckpt')
    (tmp_path / 'g.pb').write_bytes(skeleton)
    conversion = convert(tmp_path / 'g.pb', 'voc', tmp_path / 'a.npz')
    with pytest.raises(InputError, match=re.escape(
            f'--verify needs TensorFlow: install it with {command}, or leave '
            f'--verify out')):
        list(verify(conversion, tmp_path / 'a.npz', {'': np.zeros((3, 9, 9))}))


def test_options_of_a_checkpoint_only(fails, tmp_path, skeleton):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    fails('is no checkpoint', 'tf2npz.py', 'voc', tmp_path / 'g.pb', 'a.npz',
          '--output-stride', 8)


def test_inspect(skeleton, tmp_path, run_script):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    result = run_script('tf2npz.py', '--inspect', tmp_path / 'g.pb', '--json')
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found['problem'] is None
    expected = {
        'dataset': 'voc', 'classes': 21, 'outputs': 21,
        'backbone': 'xception_65', 'output_stride': 8,
        'atrous_rates': [12, 24, 36], 'era': 2018,
        'epsilons': {'0.001': 132, '1.001e-05': 14},
        'min_input_size': [513, 513],
        'parameters': 41258213, 'dropped': [], 'kind': 'frozen graph'}
    assert {key: found[key] for key in expected} == expected
    assert len(found['weights']) == 732
    assert found['weights']['aspp0/weights'] == {
        'shape': [1, 1, 2048, 256], 'target': 'aspp/conv1x1/conv/W',
        'target_shape': [256, 2048, 1, 1]}
    text = run_script('tf2npz.py', '--inspect', tmp_path / 'g.pb').stdout
    assert 'epsilons       0.001: 132, 1.001e-05: 14\n' in text
    assert ('aspp0/weights 1x1x2048x256 -> aspp/conv1x1/conv/W '
            '256x2048x1x1\n') in text


def test_inspect_another_network(tmp_path, run_script):
    graph = GraphDef()
    for name in 'MobilenetV2/Conv/weights', 'logits/semantic/weights':
        graph.node.add(name=name, op='Const')
        graph.node.add(name=f'{name}/read', op='Identity', input=[name])
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    result = run_script('tf2npz.py', '--inspect', tmp_path / 'g.pb')
    assert result.returncode == 1
    assert 'backbone       MobilenetV2\n' in result.stdout
    assert 'another network' in result.stderr


@needs_tensorflow
@pytest.mark.slow
def test_verify_finds_a_difference(random_graphs, run_script, tmp_path):
    """TensorFlow runs another graph than was converted."""
    pb, _ = random_graphs('voc', crop=SMALL)
    result = run_script('tf2npz.py', 'voc', pb, 'good.npz', '--verify')
    assert result.returncode == 0, result.stderr
    assert 'labels 99.99' in result.stdout or 'labels 100' in result.stdout
    assert not result.stderr  # nor what TensorFlow logs

    conversion = convert(pb, 'voc', tmp_path / 'a.npz')
    image = {'built-in': built_in_image(conversion.min_input_size)}
    arrays = dict(np.load(tmp_path / 'a.npz'))
    arrays['decoder/conv2/pw_bn/beta'] += np.float32(0.2)
    np.savez(tmp_path / 'b.npz', **arrays)
    with pytest.raises(InputError, match='does not do what the graph does'):
        list(verify(conversion, tmp_path / 'b.npz', image))


@needs_tensorflow
@pytest.mark.slow
def test_verify_finds_other_padding(random_graphs, tmp_path):
    graph = GraphDef.FromString(
        random_graphs('voc', crop=SMALL)[0].read_bytes())
    mean, = (node for node in graph.node if node.name == 'Reshape/tensor')
    mean.attr['value'].tensor.tensor_content = bytes(12)  # black, for grey
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    conversion = convert(tmp_path / 'g.pb', 'voc', tmp_path / 'a.npz')
    with pytest.raises(InputError, match='does not do what the graph does'):
        list(verify(conversion, tmp_path / 'a.npz', {
            'built-in': built_in_image(conversion.min_input_size)}))


@needs_tensorflow
@pytest.mark.slow
def test_verify_feeds_an_image_of_any_name(random_graphs, run_script,
                                           tmp_path):
    graph = GraphDef.FromString(
        random_graphs('voc', crop=SMALL)[0].read_bytes())
    for node in graph.node:
        node.name = node.name.replace('ImageTensor', 'Photograph')
        for i, name in enumerate(node.input):
            node.input[i] = name.replace('ImageTensor', 'Photograph')
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    result = run_script('tf2npz.py', 'voc', tmp_path / 'g.pb', 'a.npz',
                        '--verify-on', ROOT / 'assets/street.png')
    assert result.returncode == 0, result.stderr


def test_refuses_what_is_no_regular_file(fails, tmp_path):
    os.mkfifo(tmp_path / 'pipe.pb')
    fails('is no regular file', 'tf2npz.py', 'voc', tmp_path / 'pipe.pb',
          'a.npz')
    fails('is no regular file', 'tf2npz.py', '--inspect', '/dev/zero')


def test_never_writes_over_the_source(skeleton, fails, tmp_path):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    (tmp_path / 'link.pb').symlink_to('g.pb')
    os.link(tmp_path / 'g.pb', tmp_path / 'hard.pb')
    (tmp_path / 'image.png').write_bytes(b'mine')
    for target in ('g.pb', 'link.pb', 'hard.pb', 'image.png',
                   'missing/../g.pb'):
        fails('input and output are the same file', 'tf2npz.py', 'voc',
              tmp_path / 'g.pb', tmp_path / target, '--force', '--verify-on',
              tmp_path / 'image.png')
    assert (tmp_path / 'g.pb').read_bytes() == skeleton


def test_never_replaces_without_force(skeleton, fails, run_script, tmp_path):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    target = tmp_path / 'a.npz'
    target.write_bytes(b'mine')
    command = 'tf2npz.py', 'voc', tmp_path / 'g.pb', target
    fails(f'{target} exists: give --force to overwrite it', *command)
    assert target.read_bytes() == b'mine'
    assert run_script(*command, '--force').returncode == 0
    assert WeightsFile(target).n_class == 21
    target.unlink()
    os.mkfifo(target)
    fails('is no regular file: name another', *command, '--force')


def test_datasets_of_python(tmp_path):
    (tmp_path / 'g.pb').write_bytes(FixtureGraph(
        lambda name, shape: np.ones(shape, 'f'), 7, (65, 65)
    ).graph.SerializeToString())
    with pytest.raises(InputError, match='the dataset is coco, and must'):
        convert(tmp_path / 'g.pb', 'coco', tmp_path / 'a.npz')
    convert(tmp_path / 'g.pb', 'custom', tmp_path / 'a.npz')
    assert DeepLabV3plusXception65(
        pretrained_model=tmp_path / 'a.npz').n_class == 7


def write_classes(folder, names, colors=None):
    (folder / 'names.txt').write_text('\n'.join(names), encoding='utf-8')
    if colors:
        (folder / 'colors.txt').write_text('\n'.join(colors))


@pytest.mark.slow
def test_own_classes(palette_graphs, run_script, tmp_path):
    pb, _ = palette_graphs('voc')
    names = [f'Größe {i}' for i in range(21)]
    write_classes(tmp_path, names, ['#804080', '1 2 3'] + ['7, 8, 9'] * 19)
    options = ('--class-names', tmp_path / 'names.txt')
    result = run_script('tf2npz.py', 'custom', pb, 'a.npz', *options,
                        '--colors', tmp_path / 'colors.txt')
    assert result.returncode == 0, result.stderr
    model = DeepLabV3plusXception65(
        pretrained_model=run_script.folder / 'a.npz')
    assert model.metadata['class_names'] == names
    assert model.metadata['class_colors'][:3] == [
        [128, 64, 128], [1, 2, 3], [7, 8, 9]]
    result = run_script('npz2onnx.py', 'a.npz', 'a.onnx')
    assert result.returncode == 0, result.stderr
    import onnx
    properties = {each.key: each.value for each in onnx.load(
        run_script.folder / 'a.onnx').metadata_props}
    assert json.loads(properties['class_names']) == names
    assert properties['task'] == 'custom'


@pytest.mark.parametrize(('names', 'colors', 'words'), [
    (['a'], None, 'has 1 lines, and the model 21 classes'),
    (['a'] * 21, None, 'has a twice'),
    (list('abcdefghijklmnopqrstu'), ['1 2'] * 21, "'1 2' is no colour"),
    (list('abcdefghijklmnopqrstu'), ['1 2 256'] * 21, 'is no colour'),
])
def test_refuses_classes(skeleton, fails, tmp_path, names, colors, words):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    write_classes(tmp_path, names, colors)
    options = ['--colors', tmp_path / 'colors.txt'] if colors else []
    fails(words, 'tf2npz.py', 'custom', tmp_path / 'g.pb', 'a.npz',
          '--class-names', tmp_path / 'names.txt', *options)


@pytest.mark.slow
def test_killed_conversion(palette_graphs, run_script):
    pb, npz = palette_graphs('voc')
    command = [sys.executable, ROOT / 'tf2npz.py', 'voc', pb, 'a.npz']
    process = subprocess.Popen(command, cwd=run_script.folder)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(
            path.stat().st_size for path in run_script.folder.iterdir()):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (run_script.folder / 'a.npz').exists()
    assert run_script('tf2npz.py', 'voc', pb, 'a.npz').returncode == 0
    assert (run_script.folder / 'a.npz').read_bytes() == npz.read_bytes()


@pytest.mark.parametrize(('name', 'content', 'words'), [
    ('a.tflite', b'\x1c\0\0\0TFL3rest', 'is a TensorFlow Lite model, not a'),
    ('a.onnx', b'\x08\x08\x12\x04', 'is an ONNX model'),
    ('a.h5', b'\x89HDF\r\n', 'is an HDF5 file'),
    ('a.pth', b'\x80\x02', 'is a Python pickle'),
    ('graph.pbtxt', b'node {\n  name: "a"\n}', 'is a graph as text'),
    ('model.ckpt-3.meta', b'\n\x08', "is a checkpoint's structure alone"),
    ('events.out.tfevents.1', b'\x18\0\0\0\0\0\0\0crc.brain.Event', 'is a log'),
])
def test_names_other_formats(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        open_source(tmp_path / name)


@pytest.mark.parametrize(('member', 'words'), [
    ('conv/W.npy', 'is an npz, which has been converted already'),
    ('archive/data.pkl', 'is a PyTorch model'),
    ('config.json', 'is a Keras model'), ('readme', 'is a zip archive'),
])
def test_names_other_zips(tmp_path, member, words):
    with zipfile.ZipFile(tmp_path / 'a', 'w') as archive:
        archive.writestr(member, b'')
    with pytest.raises(InputError, match=words):
        open_source(tmp_path / 'a')


def test_the_file_that_names_a_checkpoint(tmp_path, monkeypatch):
    """In a folder that was moved since; and a folder of several."""
    opened = []
    monkeypatch.setattr('convert.checkpoint.Checkpoint',
                        lambda prefix, *options: opened.append(prefix))
    listing = tmp_path / 'checkpoint'
    listing.write_text('model_checkpoint_path: "/elsewhere/model.ckpt-7"\n')
    with pytest.raises(InputError, match=r'names the checkpoint model\.ckpt-7, '
                       r'whose .*index, which is missing'):
        open_source(listing)
    for step in 3, 7:
        (tmp_path / f'model.ckpt-{step}.index').touch()
    for source in listing, tmp_path, tmp_path / 'model.ckpt-7.meta':
        open_source(source)
    assert opened == 3 * [f'{tmp_path}/model.ckpt-7']


def test_saved_model(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr('convert.checkpoint.Checkpoint',
                        lambda prefix, *options: opened.append(prefix))
    (tmp_path / 'saved_model.pb').write_bytes(b'\x08\x01')
    with pytest.raises(InputError, match='is a SavedModel, whose weights'):
        open_source(tmp_path / 'saved_model.pb')
    (tmp_path / 'variables').mkdir()
    (tmp_path / 'variables/variables.index').touch()
    for source in tmp_path, tmp_path / 'saved_model.pb':
        open_source(source)
    assert opened == 2 * [f'{tmp_path}/variables/variables']


@pytest.fixture
def zoo(host, skeleton, tmp_path, monkeypatch):
    """A host that has an archive of VOC2012's model."""
    host.files['voc.tar.gz'] = tar_gz(
        tmp_path / 'voc.tar.gz', ('model/frozen_inference_graph.pb', skeleton)
    ).read_bytes()
    host.files['g.pb'] = skeleton
    monkeypatch.setitem(URLS, 'voc', {
        **URLS['voc'], 'archive': f'{host.url}/voc.tar.gz'})
    monkeypatch.setattr('chainer.dataset.download._dataset_root',
                        str(tmp_path / 'kept'))
    return host


@pytest.mark.parametrize(('name', 'file_name'), [
    ('zoo', 'frozen_inference_graph.pb'), ('g.pb', 'g.pb')])
def test_a_source_that_is_downloaded(zoo, tmp_path, name, file_name):
    source = 'zoo' if name == 'zoo' else f'{zoo.url}/{name}'
    asked = 'voc.tar.gz' if name == 'zoo' else name
    zoo.plans[asked] = ['cut', 'whole']
    with opened(source, 'voc') as found:
        assert found.file_name == file_name
        assert found.path == f'{zoo.url}/{asked}'
        assert check(found, 'voc').min_input_size == [513, 513]
    assert len(zoo.requests) == 2
    assert [path for path in (tmp_path / 'kept').rglob('*')
            if path.is_file() and path.suffix != '.lock'] == []


@pytest.mark.parametrize(('source', 'dataset', 'words'), [
    ('gone.pb', 'voc', 'gone.pb cannot be downloaded .*HTTP 404.*: download '
     'it in another way'),
    ('zoo', 'custom', 'the zoo has models of voc, cityscapes, ade20k, and no')])
def test_a_source_that_cannot_be_downloaded(zoo, source, dataset, words):
    address = source if source == 'zoo' else f'{zoo.url}/{source}'
    with pytest.raises(InputError, match=words), opened(address, dataset):
        pass


def test_verify_looks_for_tensorflow_first(run_script, tmp_path):
    """Before a long download, say: the source here does not even exist."""
    (tmp_path / 'tensorflow.py').write_text('raise ImportError')
    result = run_script('tf2npz.py', 'voc', 'nowhere.pb', 'a.npz', '--verify',
                        PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith('error: --verify needs TensorFlow: install')
    assert result.stderr.count('\n') == 1
