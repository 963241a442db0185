"""Images and datasets that the stand-in weights can tell apart."""
import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

from evaluation.labelled_images import CLASS_VALUES
from models.classes import label_colors, label_names

# The value of each class in the label images.
VALUES = {name: np.array(values) for name, values in CLASS_VALUES.items()}
PATCH = 24  # pixels


def patches(dataset, n_images, seed=0, size=(72, 96)):
    """Return label maps (N, H, W), int32, of patches wide enough for the
    stand-in to see them.
    """
    rng = np.random.default_rng(seed)
    small = rng.integers(len(label_names(dataset)), size=(
        n_images, *(-(-side // PATCH) for side in size)))
    labels = np.kron(small, np.ones((1, PATCH, PATCH), int))
    return labels[:, :size[0], :size[1]].astype(np.int32)


def write_image(path, seed=0, size=(72, 96)):
    """Write patches in the colours of Cityscapes; return the path."""
    label, = patches('cityscapes', 1, seed, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label_colors('cityscapes')[label]).save(path, 'PNG')
    return path


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


def packed(tree, ending):
    """Return a folder's files as the bytes of an archive."""
    file = io.BytesIO()
    with (zipfile.ZipFile(file, 'w') if ending == '.zip' else
          tarfile.open(fileobj=file, mode='w')) as archive:
        add = archive.write if ending == '.zip' else archive.add
        for path in sorted(tree.rglob('*')):
            if path.is_file():
                add(path, path.relative_to(tree))
    return file.getvalue()
