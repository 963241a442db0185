"""The data sets, read from their official folders."""
import unicodedata

import numpy as np
import pytest
from fixture_images import patches, write_tree
from PIL import Image

from evaluation.labelled_images import (
    LabelledImages,
    check_values,
    named_values,
    read_label_map,
)
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
        with pytest.raises(InputError, match=f'holds the value {value} at '
                           'row 3, column 4, which is no class'):
            images[0]
    else:
        assert images[0][1][3, 4] == expected


@pytest.mark.parametrize(('dataset', 'ignored', 'name'), [
    ('cityscapes', 0, 'trainids'), ('cityscapes', 255, 'trainids'),
    ('ade20k', 255, 'from0')])
def test_other_values(tmp_path, dataset, ignored, name):
    """Of other tools: classes from 0 on, and 255 for ignored pixels."""
    truth = patches(dataset, 2)
    images = LabelledImages(dataset, write_tree(dataset, tmp_path, truth))
    check_values(dataset, images)
    for path, label in zip(images.label_paths, truth, strict=True):
        stored = label.astype(np.uint8)
        stored[:8] = ignored
        Image.fromarray(stored).save(path)
    with pytest.raises(InputError, match=f'look like {name}: give --label-map '
                       f'{name}, or --label-map official where'):
        check_values(dataset, images)
    images = LabelledImages(dataset, tmp_path, values=named_values(
        dataset, name))
    np.testing.assert_array_equal(images[0][1][8:], truth[0][8:])
    assert (images[0][1][:8] == (-1 if ignored else 0)).all()


@pytest.mark.parametrize('values', [[0, 1, 2, 3], [7, 8, 11, 21], [255]])
def test_official_values(tmp_path, values):
    """Those of a split without labels, of few classes, and of none."""
    images = LabelledImages('cityscapes', write_tree(
        'cityscapes', tmp_path, patches('cityscapes', 2)))
    for path in images.label_paths:
        Image.fromarray(np.tile(np.uint8(values), (72, 24))).save(path)
    check_values('cityscapes', images)


def test_train_ids_alone(tmp_path):
    truth = patches('cityscapes', 1)
    root = write_tree('cityscapes', tmp_path, truth)
    path, = root.glob('gtFine/val/*/*.png')
    path.unlink()
    Image.fromarray(truth[0].astype(np.uint8)).save(str(path).replace(
        'labelIds', 'labelTrainIds'))
    images = LabelledImages('cityscapes', root)
    check_values('cityscapes', images)
    np.testing.assert_array_equal(images[0][1], truth[0])


def test_refuses_names_that_lead_elsewhere(tmp_path):
    root = write_tree('voc', tmp_path, patches('voc', 1))
    listing = root / 'VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt'
    listing.write_text('../../evil\n')
    with pytest.raises(InputError, match=r'evil.jpg.* lists is missing'):
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


def voc_tree(root, names=('a',), ending='.jpg', listed=None):
    """Write images of one class each, 0, 1, ..., in VOC2012's layout."""
    base = root / 'VOCdevkit/VOC2012'
    for folder in 'JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation':
        (base / folder).mkdir(parents=True)
    for i, name in enumerate(names):
        Image.new('RGB', (20, 10), (i, 0, 0)).save(
            base / f'JPEGImages/{name}{ending}', format='PNG')
        Image.new('L', (20, 10), i).save(
            base / f'SegmentationClass/{name}.png')
    (base / 'ImageSets/Segmentation/val.txt').write_bytes(
        '\n'.join(names).encode() if listed is None else listed)
    return base


@pytest.mark.parametrize('ending', ['.jpg', '.JPG', '.jpeg', '.png', '.PNG'])
def test_lists_and_names_as_people_have_them(tmp_path, ending):
    names = 'a', 'on the beach'
    voc_tree(tmp_path, names, ending,
             b'\xef\xbb\xbfa\r\non the beach  \r\n\r\n')
    images = LabelledImages('voc', tmp_path, 'val')
    assert images.names == names
    assert [int(label.max()) for _, label in images] == [0, 1]


def test_says_which_list_is_missing(tmp_path):
    listing = voc_tree(tmp_path) / 'ImageSets/Segmentation/val.txt'
    listing.write_bytes('ü'.encode('latin-1'))
    with pytest.raises(InputError, match=r'val.txt is no text in UTF-8'):
        LabelledImages('voc', tmp_path, 'val')
    listing.unlink()
    with pytest.raises(InputError, match=r'there is no .*val.txt: check --data-'
                       'dir.* and --split; a split of your own is a list'):
        LabelledImages('voc', tmp_path, 'val')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_pixels_are_those_stored(tmp_path, orientation):
    base = voc_tree(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (10, 20, 3), np.uint8)
    Image.fromarray(pixels).save(base / 'JPEGImages/a.jpg', format='PNG',
                                 exif=exif)
    images = LabelledImages('voc', tmp_path, 'val')
    np.testing.assert_array_equal(images[0][0], pixels.transpose(2, 0, 1))
    Image.new('L', (10, 20)).save(base / 'SegmentationClass/a.png')
    with pytest.raises(InputError, match=r'a.png has 20 x 10 pixels, and its '
                       'image 10 x 20 as stored, before any EXIF orientation'):
        images[0]


@pytest.mark.parametrize(('dataset', 'ignored'), [
    ('voc', (224, 224, 192)), ('cityscapes', (0, 0, 0)),
    ('ade20k', (0, 0, 0))])
def test_labels_in_colours(tmp_path, dataset, ignored):
    truth = patches(dataset, 1) % 6
    images = LabelledImages(dataset, write_tree(dataset, tmp_path, truth),
                            'val')
    pixels = label_colors(dataset)[truth[0]]
    pixels[0, 0] = ignored
    expected = truth[0].copy()
    expected[0, 0] = -1
    Image.fromarray(pixels).save(images.label_paths[0])
    np.testing.assert_array_equal(images[0][1], expected)
    pixels[3, 4] = 1, 2, 3
    Image.fromarray(pixels).save(images.label_paths[0])
    with pytest.raises(InputError, match=r'the colour \[1, 2, 3\] at row 3, '
                       'column 4, which is no class'):
        images[0]


def test_a_colour_of_two_classes_is_refused(tmp_path):
    colors = label_colors('ade20k')
    _, first, count = np.unique(colors, axis=0, return_index=True,
                                return_counts=True)
    twice = first[count == 2][0]
    images = LabelledImages('ade20k', write_tree('ade20k', tmp_path, patches(
        'ade20k', 1)), 'val')
    Image.fromarray(np.broadcast_to(colors[twice], (72, 96, 3)).copy()).save(
        images.label_paths[0])
    with pytest.raises(InputError, match='which is no class'):
        images[0]


def test_labels_of_16_bits(tmp_path):
    base = voc_tree(tmp_path)
    values = np.full((10, 20), 20, np.uint16)
    path = base / 'SegmentationClass/a.png'
    Image.fromarray(values).save(path)
    images = LabelledImages('voc', tmp_path, 'val')
    assert (images[0][1] == 20).all()
    values[2, 3] = 256
    Image.fromarray(values).save(path)
    with pytest.raises(InputError, match='the value 256 at row 2, column 3'):
        images[0]


def test_folders_and_a_label_map(tmp_path):
    for name, value in ('x/a', 0), ('x/y/b', 255):
        for folder, ending in ('in', '.JPG'), ('out', '.png'):
            path = tmp_path / folder / f'{name}{ending}'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('L', (20, 10), value).save(path, format='PNG')
    folders = tmp_path / 'in', tmp_path / 'out'
    images = LabelledImages('voc', folders=folders)
    assert images.names == ('x/a', 'x/y/b')
    assert (images[1][1] == -1).all()
    (tmp_path / 'map.txt').write_text('0 ignored\r\n255 1\n1 2 3 0\n')
    images = LabelledImages('voc', folders=folders, values=read_label_map(
        tmp_path / 'map.txt', 2))
    assert [int(label.max()) for _, label in images] == [-1, 1]
    Image.new('RGB', (20, 10), (1, 2, 3)).save(tmp_path / 'out/x/a.png')
    assert (images[0][1] == 0).all()
    (tmp_path / 'in/x/a.png').touch()
    with pytest.raises(InputError, match='differ only in their endings'):
        LabelledImages('voc', folders=folders)
    with pytest.raises(InputError, match=r'no image .*no/'):
        LabelledImages('voc', folders=(tmp_path / 'no', tmp_path / 'out'))


@pytest.mark.parametrize('line', ['1', '1 2', '-1 0', '1 2 0', '65536 0',
                                  '1 2 256 0', 'a 0', '1 car', '1 2 3 4 0',
                                  ',,', ', ignored', '1' * 5000 + ' 0',
                                  '1 ' + '0' * 5000])
def test_refuses_label_maps(tmp_path, line):
    (tmp_path / 'map.txt').write_text(f'0 0\n{line}\n')
    with pytest.raises(InputError, match=f"has the line '{line}', and must"):
        read_label_map(tmp_path / 'map.txt', 2)


def test_a_small_file_that_is_a_huge_label(tmp_path):
    images = LabelledImages('voc', write_tree('voc', tmp_path, patches(
        'voc', 1)), 'val')
    limit = Image.MAX_IMAGE_PIXELS
    Image.new('L', (16_000, 16_000)).save(images.label_paths[0])
    with pytest.raises(InputError, match='it has 16000 x 16000 pixels, and at'):
        images[0]
    assert limit is not None
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize('forms', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_names_that_look_the_same(tmp_path, forms):
    """As a disk of macOS and one of Linux store them."""
    stem = 'Zürich é'
    names = [unicodedata.normalize(form, stem) for form in forms]
    for folder, name in zip(('in', 'out'), names, strict=True):
        (tmp_path / folder).mkdir()
        Image.new('L', (20, 10), 7).save(tmp_path / folder / f'{name}.png')
    images = LabelledImages('voc', folders=(tmp_path / 'in', tmp_path / 'out'))
    assert images.names == (unicodedata.normalize('NFC', stem),)
    base = voc_tree(tmp_path)
    for folder in 'JPEGImages', 'SegmentationClass':
        Image.new('L', (20, 10), 7).save(base / folder / f'{names[0]}.png')
    (base / 'ImageSets/Segmentation/val.txt').write_text(names[1])
    assert (LabelledImages('voc', tmp_path, 'val')[0][1] == 7).all()
