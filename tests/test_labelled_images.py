"""The data sets, read from their official folders."""
import numpy as np
import pytest
from PIL import Image

from datasets import label_colors, label_names
from labelled_images import CITYSCAPES_IDS, LabelledImages
from models.errors import InputError

# The value that stands for each class in the data sets' label pictures.
VALUES = {'cityscapes': np.array(CITYSCAPES_IDS), 'voc': np.arange(21),
          'ade20k': np.arange(1, 151)}


def write_tree(dataset, root, truth, wrong=0):
    """Write images in palette colours and their labels, official layout.

    The first `wrong` columns of each label are of another class than shown.
    """
    colors = label_colors(dataset)
    for i, shown in enumerate(truth):
        image = Image.fromarray(colors[shown])
        label = shown.copy()
        label[:, :wrong] = (label[:, :wrong] + 1) % len(colors)
        name = f'a{"_".join(map(str, (i, i, i)))}'
        if dataset == 'cityscapes':
            image_path = root / f'leftImg8bit/val/city/{name}_leftImg8bit.png'
            label_path = root / f'gtFine/val/city/{name}_gtFine_labelIds.png'
        elif dataset == 'voc':
            base = root / 'VOCdevkit/VOC2012'
            image_path = base / f'JPEGImages/{name}.jpg'
            label_path = base / f'SegmentationClass/{name}.png'
            listing = base / 'ImageSets/Segmentation/val.txt'
            listing.parent.mkdir(parents=True, exist_ok=True)
            with open(listing, 'a') as file:
                print(name, file=file)
        else:
            base = root / 'ADEChallengeData2016'
            image_path = base / f'images/validation/{name}.jpg'
            label_path = base / f'annotations/validation/{name}.png'
        for path in image_path, label_path:
            path.parent.mkdir(parents=True, exist_ok=True)
        # PNG data under a JPEG's name: the colours must stay exact.
        image.save(image_path, format='PNG')
        Image.fromarray(VALUES[dataset][label].astype(np.uint8)).save(
            label_path)
    return root


def patches(dataset, n_images, seed=0):
    """Labels made of patches wide enough for the stand-in to see them."""
    n_class = len(label_names(dataset))
    rng = np.random.default_rng(seed)
    small = rng.integers(n_class, size=(n_images, 3, 4))
    return np.kron(small, np.ones((1, 24, 24), int)).astype(np.int32)


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
    with pytest.raises(InputError, match=r'names ../../evil, and must'):
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
