"""npz files: whole, checked, never unpickled."""
import zipfile

import chainer
import numpy as np
import pytest
from chainer import optimizers, serializers, training
from chainercv.links import PixelwiseSoftmaxClassifier

from models import DeepLabV3plusXception65
from models.utils.errors import InputError
from models.weights import named_arrays, write_npz


@pytest.fixture(scope='module')
def link():
    return DeepLabV3plusXception65(n_class=2)


@pytest.fixture(scope='module')
def arrays(link):
    return named_arrays(link)


def load(path):
    return DeepLabV3plusXception65(pretrained_model=path)


def test_round_trip(tmp_path, arrays):
    write_npz(tmp_path / 'a.npz', arrays.items(), {'output_stride': 16})
    model = load(tmp_path / 'a.npz')
    assert model.output_stride == 16
    for name, array in named_arrays(model).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


@pytest.mark.parametrize(('change', 'words'), [
    ({'aspp/proj/conv/W': None}, r'aspp/proj/conv/W \(256, 1280, 1, 1\) is '
                                 'missing'),
    ({'aspp/proj/conv/V': np.zeros(3)}, r'aspp/proj/conv/V \(3,\) is unknown'),
    ({'aspp/proj/bn/beta': np.zeros(1)}, r'shape \(1,\), and must have '
                                         r'\(256,\)'),
    ({'aspp/proj/bn/beta': np.full(256, 'x')}, 'holds <U1, not float32'),
    ({'aspp/proj/bn/N': np.array(0.5)}, 'holds float64, not int'),
    ({'aspp/proj/bn/avg_var': np.full(256, np.nan)}, 'is not finite'),
    ({'decoder/conv_logits/W': None}, 'does not hold a DeepLabV3'),
])
def test_refuses_what_does_not_fit(tmp_path, arrays, change, words):
    changed = {name: array for name, array in {**arrays, **change}.items()
               if array is not None}
    write_npz(tmp_path / 'a.npz', changed.items(), {})
    with pytest.raises(InputError, match=words):
        load(tmp_path / 'a.npz')


@pytest.mark.parametrize(('metadata', 'words'), [
    ({'min_input_size': 'wide'}, 'metadata/min_input_size is <U4 of shape'),
    ({'min_input_size': [513]}, r'metadata/min_input_size is int64 of shape '
                                r'\(1,\)'),
    ({'min_input_size': [1 << 40, 1]}, '1 to 16384 pixels'),
    ({'output_stride': [8]}, 'metadata/output_stride is int64'),
    ({'class_names': ['a'], 'class_colors': np.full((1, 3), 300)},
     'metadata/class_colors is int64'),
    ({'format_version': 4}, 'format_version is 4, and this program reads 1 to'),
    ({'background_outputs': np.ones((1, 151))},
     'metadata/background_outputs is float64 of shape'),
    ({'background_outputs': np.full((1, 257), np.nan)},
     'background_outputs holds a value that is not finite'),
    ({'background_outputs': np.full((1, 257), np.inf)},
     'background_outputs holds a value that is not finite'),
    ({'scales': [0.5, 0.]}, r'scales is \(0.5, 0.0\), and must be'),
    ({'scales': [float('nan')]}, 'scales holds a value that is not finite'),
    ({'scales': [9.]}, 'positive numbers up to 8'),
    ({'atrous_rates': [6, 12, 1 << 40]}, 'must be three integers, 1 to 1024'),
    ({'resize_range': [65, -1, 0, 0]}, r'resize_range is \[65, -1, 0, 0\]'),
    ({'resize_range': [1 << 20, 0, 0, 0]}, 'this program reads 0 to 16384'),
    ({'atrous_rates': [6, 12]}, 'metadata/atrous_rates is int64 of shape'),
])
def test_refuses_metadata(tmp_path, arrays, metadata, words):
    write_npz(tmp_path / 'a.npz', arrays.items(), metadata)
    with pytest.raises(InputError, match=words):
        load(tmp_path / 'a.npz')


def test_a_compressed_npz_loads(tmp_path, arrays):
    np.savez_compressed(tmp_path / 'a.npz', **arrays)
    for name, array in named_arrays(load(tmp_path / 'a.npz')).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


@pytest.mark.parametrize(('position', 'words'), [
    (0, 'not a whole npz'),  # a mark, before each array
    (-100, 'not a whole npz'),
])
def test_refuses_damaged_arrays(tmp_path, arrays, position, words):
    write_npz(tmp_path / 'a.npz', arrays.items(), {})
    with zipfile.ZipFile(tmp_path / 'a.npz') as archive:
        start = archive.getinfo('decoder/conv_logits/W.npy').header_offset
    with open(tmp_path / 'a.npz', 'r+b') as file:
        file.seek(start + position)
        file.write(b'damage')
    with pytest.raises(InputError, match=words):
        load(tmp_path / 'a.npz')


def test_passes_over_metadata_of_later_versions(tmp_path, arrays):
    write_npz(tmp_path / 'a.npz', arrays.items(), {'mood': [[0.5]]})
    assert load(tmp_path / 'a.npz').metadata == {'format_version': 1}


def test_a_long_list_is_cut(tmp_path, arrays):
    write_npz(tmp_path / 'a.npz', [
        *arrays.items(), *((f'model/{i}', np.zeros(1)) for i in range(9))], {})
    with pytest.raises(InputError, match=r'model/0 .* is unknown.* 6 more$'):
        load(tmp_path / 'a.npz')


def test_a_long_header_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as file:
        size = 1 << 28
        file.writestr('decoder/conv_logits/W.npy', b'\x93NUMPY\x02\x00'
                      + size.to_bytes(4, 'little') + bytes(size))
    with pytest.raises(InputError, match='not a whole npz'):
        load(tmp_path / 'a.npz')


def test_refuses_pickles(tmp_path):
    np.savez(tmp_path / 'a.npz', **{
        'decoder/conv_logits/W': np.array([{}], object)})
    with pytest.raises(InputError, match='Object arrays cannot be loaded'):
        load(tmp_path / 'a.npz')


def test_refuses_truncation(tmp_path, arrays):
    write_npz(tmp_path / 'a.npz', arrays.items(), {})
    data = (tmp_path / 'a.npz').read_bytes()
    for content in data[:-1000], data[:1 << 20]:
        (tmp_path / 'b.npz').write_bytes(content)
        with pytest.raises(InputError, match='not a whole npz'):
            load(tmp_path / 'b.npz')


def test_refuses_a_flipped_bit(tmp_path, arrays):
    write_npz(tmp_path / 'a.npz', arrays.items(), {})
    data = bytearray((tmp_path / 'a.npz').read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / 'a.npz').write_bytes(data)
    with pytest.raises(InputError, match='not a whole npz'):
        load(tmp_path / 'a.npz')


def test_an_absurd_shape_allocates_nothing(tmp_path):
    header = (b"{'descr': '<f4', 'fortran_order': False, "
              b"'shape': (2, 1099511627776, 1, 1), }\n")
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr(
            'decoder/conv_logits/W.npy', b'\x93NUMPY\x01\x00'
            + len(header).to_bytes(2, 'little') + header)
    with pytest.raises(InputError, match='not a whole npz'):
        load(tmp_path / 'a.npz')


def wrapped(link, path):
    serializers.save_npz(path, PixelwiseSoftmaxClassifier(link))


def in_snapshot(link, path):
    """By a Trainer, after a step with gradients that are given."""
    optimizer = optimizers.MomentumSGD()
    optimizer.setup(PixelwiseSoftmaxClassifier(link))
    for param in link.params():
        param.grad = np.ones_like(param.array)

    class Updater(training.StandardUpdater):
        def update_core(self):
            optimizer.update()

    trainer = training.Trainer(
        Updater(chainer.iterators.SerialIterator([0], 1), optimizer),
        (1, 'iteration'), path.parent)
    trainer.extend(training.extensions.LogReport())
    trainer.extend(training.extensions.snapshot(filename=path.name),
                   trigger=(1, 'iteration'))
    trainer.run()


@pytest.mark.parametrize('save', [wrapped, in_snapshot])
def test_loads_what_training_saved(tmp_path, link, save):
    link = link.copy('copy')
    save(link, tmp_path / 'a.npz')
    found = named_arrays(load(tmp_path / 'a.npz'))
    for name, array in named_arrays(link).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_refuses_several_networks(tmp_path, arrays):
    np.savez(tmp_path / 'a.npz', **{
        f'{prefix}/{name}': array for name, array in arrays.items()
        for prefix in ('first', 'second/link')})
    with pytest.raises(InputError, match='2 arrays are named decoder/conv_logi'
                       'ts/W, and one must be'):
        load(tmp_path / 'a.npz')


def test_refuses_an_empty_file(tmp_path):
    (tmp_path / 'a').touch()
    with pytest.raises(InputError, match=r'whole npz.* convert it with tf2np'):
        load(tmp_path / 'a')


@pytest.mark.parametrize(('start', 'words'), [
    (b'\x89HDF\r\n\x1a\n', 'an HDF5 file'),
    (b'\x1c\0\0\0TFL3', 'a TFLite model'),
    (b'\x80\x02\x8a\nl\xfc', 'a pickle, as PyTorch makes it'),
    (b'\x08\x07\x12\x07pytorch', 'an ONNX model'),
    (b'\n<!DOCTYPE html>', 'a web page'), (b'<html><head>', 'a web page'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'a pointer of Git LFS'),
    (b'\x40\0\0\0\0\0\0\0{"W":', 'a safetensors file'),
    (b'\x1f\x8b\x08', 'a TensorFlow graph, or an archive'),
    (b'\x93NUMPY\1\0', 'a single array')])
def test_says_what_other_files_are(tmp_path, start, words):
    (tmp_path / 'a').write_bytes(start + bytes(99))
    with pytest.raises(InputError, match=f'npz is needed, and .*a is {words}'):
        load(tmp_path / 'a')


def test_says_what_a_graph_is(tmp_path, skeleton):
    (tmp_path / 'a.pb').write_bytes(skeleton)
    with pytest.raises(InputError, match=r'a\.pb is a TensorFlow graph'):
        load(tmp_path / 'a.pb')


@pytest.mark.parametrize(('member', 'words'), [
    ('model/data.pkl', 'a PyTorch checkpoint'),
    ('model.weights.h5', 'a Keras model'),
    ('saved/saved_model.pb', 'a TensorFlow graph')])
def test_says_what_other_archives_are(tmp_path, member, words):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr(member, b'')
    with pytest.raises(InputError, match=f'a.pth is {words}'):
        load(tmp_path / 'a.pth')
