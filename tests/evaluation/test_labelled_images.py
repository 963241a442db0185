"""The data sets, read from their official folders."""
import numpy as np
import pytest
from fixture_images import patches, write_tree
from PIL import Image

from evaluation.labelled_images import LabelledImages
from models.classes import label_colors
from models.utils.errors import InputError


@pytest.mark.parametrize('dataset', ['cityscapes', 'voc', 'ade20k'])
def test_reads_the_official_layout(tmp_path, dataset):
    truth = patches(dataset, 3)
    images = LabelledImages(dataset, write_tree(dataset, tmp_path, truth),
                            'val')
    assert len(images) == 3
    for i, (image, label) in enumerate(images[i] for i in range(3)):
        np.testing.assert_array_equal(label, truth[i])
        np.testing.assert_array_equal(
            image, label_colors(dataset)[truth[i]].transpose(2, 0, 1))


def damage(path, **changes):
    values = np.asarray(Image.open(path)).copy()
    if 'value' in changes:
        values[3, 4] = changes['value']
    if 'rows' in changes:
        values = values[:changes['rows']]
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(('dataset', 'value', 'expected'), [
    ('cityscapes', 0, -1), ('cityscapes', 255, -1), ('cityscapes', 34, None),
    ('voc', 255, -1), ('voc', 21, None), ('ade20k', 0, -1),
    ('ade20k', 151, None)])
def test_label_values(tmp_path, dataset, value, expected):
    root = write_tree(dataset, tmp_path, patches(dataset, 1))
    images = LabelledImages(dataset, root, 'val')
    damage(images.label_paths[0], value=value)
    if expected is None:
        with pytest.raises(InputError, match=f'holds the value {value}, which'
                           ' is no class'):
            images[0]
    else:
        assert images[0][1][3, 4] == expected


def test_refuses_names_that_lead_elsewhere(tmp_path):
    root = write_tree('voc', tmp_path, patches('voc', 1))
    listing = root / 'VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt'
    listing.write_text('../../evil\n')
    with pytest.raises(InputError, match=r'lists ../../evil, and must'):
        LabelledImages('voc', root, 'val')


@pytest.mark.parametrize('dataset', ['cityscapes', 'voc', 'ade20k'])
def test_refuses_damaged_trees(tmp_path, dataset):
    root = write_tree(dataset, tmp_path, patches(dataset, 2))
    images = LabelledImages(dataset, root, 'val')
    damage(images.label_paths[1], rows=50)
    with pytest.raises(InputError, match='has 50 x 96 pixels, and its image '
                       '72 x 96'):
        images[1]
    images.label_paths[1].write_bytes(b'no picture')
    with pytest.raises(InputError, match='cannot be read as a label'):
        images[1]
    images.label_paths[1].unlink()
    with pytest.raises(InputError, match=r'has no label|is missing'):
        LabelledImages(dataset, root, 'val')
    with pytest.raises(InputError, match='--split'):
        LabelledImages(dataset, root, 'other')
    with pytest.raises(InputError, match='--data-dir'):
        LabelledImages(dataset, tmp_path / 'nothing', 'val')
