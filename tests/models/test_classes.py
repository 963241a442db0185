"""Names and colours of classes, and the links that ChainerCV lends."""
import subprocess
import sys

import numpy as np
import pytest
from chainercv import datasets
from conftest import ROOT

from models.classes import label_colors, label_names
from models.constants import DATASETS


@pytest.mark.parametrize('dataset', DATASETS)
def test_palettes_are_chainercvs(dataset):
    np.testing.assert_array_equal(label_colors(dataset), getattr(
        datasets, f'{dataset}_semantic_segmentation_label_colors'))
    assert len(label_names(dataset)) == DATASETS[dataset]['n_class']


def test_names_of_voc_are_chainercvs():
    assert label_names('voc') == datasets.voc_semantic_segmentation_label_names


def test_links_come_without_the_rest_of_chainercv():
    """Which would bring Matplotlib; what is loaded later is the same."""
    subprocess.run([sys.executable, '-c', """
import sys
from models.xception import Conv2DBNActiv, SeparableConv2DBNActiv
assert not {'chainercv', 'matplotlib', 'pkg_resources'} & sys.modules.keys()
from chainercv import links
assert links.Conv2DBNActiv is Conv2DBNActiv
assert links.SeparableConv2DBNActiv is SeparableConv2DBNActiv
"""], cwd=ROOT, check=True)
