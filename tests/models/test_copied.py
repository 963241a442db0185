"""`models/` copied alone into another project, under another name."""
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = '''
import models, datasets  # the other project's own
assert models.NAME == datasets.NAME == 'mine'
import deeplab
import numpy as np
link = deeplab.DeepLabV3plusXception65(
    n_class=3, min_input_size=33, output_stride=16)
image = np.full((3, 30, 40), 128, np.float32)
for backend in link.to_chainer, link.to_openvino:
    label, = backend().predict([image])
    assert label.shape == (30, 40) and label.dtype == np.int32
import deeplab.cupy_engine, sys
assert 'KERNEL ' in deeplab.cupy_engine.KERNELS.read_text()
assert not {'convert', 'media', 'evaluation'} & set(sys.modules)
'''


@pytest.mark.slow
def test_predicts_under_another_name(tmp_path):
    shutil.copytree(ROOT / 'models', tmp_path / 'deeplab',
                    ignore=shutil.ignore_patterns('__pycache__'))
    for name in 'models', 'datasets':
        (tmp_path / f'{name}.py').write_text("NAME = 'mine'\n")
    environment = {name: value for name, value in os.environ.items()
                   if name != 'PYTHONPATH'}
    result = subprocess.run(
        [sys.executable, '-c', SCRIPT], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr


def test_importing_it_restores_names_alone():
    """Also a second time, which once failed on Python 3.12."""
    subprocess.run([sys.executable, '-c', """
import os, sys, warnings
import numpy
before = dict(os.environ), list(warnings.filters)
import models
models.chainer_compat.restore_names()
assert (dict(os.environ), list(warnings.filters)) == before
assert numpy.float is float
assert 'chainer' not in sys.modules
"""], cwd=ROOT, check=True)
