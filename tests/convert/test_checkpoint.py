"""Checkpoints of TensorFlow, and the lack of it."""
import os
import re
import sys

import numpy as np
import pytest
from conftest import convert, needs_tensorflow
from fixture_graph import FixtureGraph
from fixture_weights import palette_weights

from convert.sources import open_source
from convert.verification import verify
from models.classes import label_colors
from models.utils.errors import InputError


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


def test_without_tensorflow(skeleton, tmp_path, monkeypatch):
    command = '`make setup-dev` (on Python 3.13 at most)'
    monkeypatch.setitem(sys.modules, 'tensorflow', None)
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
