"""Images and datasets that the stand-in weights can tell apart."""
import io
import tarfile
import zipfile
from fractions import Fraction

import numpy as np
from PIL import Image

from evaluation import labelled_images
from models.classes import label_colors, label_names

# The value of each class in the label images.
VALUES = {name: np.array(known[labelled_images.OFFICIAL][0])
          for name, known in labelled_images.VALUES.items()}
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


def write_film(path, frames, rate=12, times=None, sound=None, codec='libx264',
               time_base=Fraction(1, 1000), options=None, sound_settings=None,
               **settings):
    """Write (H, W, 3), uint8, RGB frames in the format of the name.

    `times` are of the frames, in `time_base`; `sound` is the name of a codec,
    or the arguments of `add_sound`, and sound_settings are of `write_sound`;
    settings are attributes of the codec's context, as its colours, and options
    those of the format.
    """
    import av
    with av.open(f'file:{path}', 'w', options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        height, width, _ = frames[0].shape
        stream.height, stream.width = (side + side % 2
                                       for side in (height, width))
        stream.pix_fmt = settings.pop('pix_fmt', 'yuv420p')
        stream.options = {'crf': '1'} if codec == 'libx264' else {}
        context = stream.codec_context
        for name, value in settings.items():
            setattr(context, name, value)
        if times is not None:
            context.time_base = time_base
        if sound is not None:
            write_sound(add_sound(container, *(
                [sound] if isinstance(sound, str) else sound)),
                **(sound_settings or {}))
        for i, pixels in enumerate(frames):
            even = np.pad(pixels, [(0, side % 2) for side in pixels.shape[:2]]
                          + [(0, 0)], mode='edge')
            frame = av.VideoFrame.from_ndarray(even, format='rgb24').reformat(
                format=stream.pix_fmt, dst_colorspace=settings.get(
                    'colorspace'), dst_color_range=settings.get('color_range'))
            frame.pts = i if times is None else times[i]
            frame.time_base = context.time_base or Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def add_sound(container, codec, layout='mono', rate=48000):
    stream = container.add_stream(codec, rate=rate, layout=layout,
                                  bit_rate=128_000)
    stream.options = {'strict': 'experimental'}
    return stream


def write_sound(stream, start=0, spoiled=()):
    """Write half a second of a tone in each channel, from a second on; the
    packets of the numbers `spoiled` hold nonsense.
    """
    import av
    rate, layout = stream.rate, stream.layout
    tones = 400 * np.arange(1, 1 + layout.nb_channels)[:, None]
    seconds = np.arange(rate // 2) / rate
    frame = av.AudioFrame.from_ndarray(np.sin(
        2 * np.pi * tones * seconds, dtype=np.float32) / 4, 'fltp', layout.name)
    frame.rate, frame.pts, frame.time_base = rate, rate * start, (
        Fraction(1, rate))
    packets = [*stream.encode(frame), *stream.encode()]
    for i in spoiled:
        spoilt = av.Packet(b'\xff' * packets[i].size)
        for name in 'pts', 'dts', 'time_base', 'stream':
            setattr(spoilt, name, getattr(packets[i], name))
        packets[i] = spoilt
    stream.container.mux(packets)


def copy_film(source, target):
    """Write a video's frames as they are, as an overlay of opacity 0 does;
    return the `Video`.
    """
    from media.video import open_video, writing
    with open_video(source) as video, writing(target, video) as writer:
        for frame in video.frames:
            writer.write(None if frame.image is None else Image.fromarray(
                frame.image.transpose(1, 2, 0).astype(np.uint8)), frame)
    return video


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
