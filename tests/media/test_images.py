"""Images as cameras and programs write them."""
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from media import images
from media.images import read_image
from media.inputs import find_inputs
from models.utils.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def encoded(kind, pixels=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def with_jpeg_part(marker, content):
    data = encoded('JPEG', quality=90)
    return data[:2] + struct.pack('>2BH', 0xff, marker,
                                  len(content) + 2) + content + data[2:]


def with_png_part(kind, content, crc_change=0):
    data = encoded('PNG')
    crc = zlib.crc32(kind + content) ^ crc_change
    return (data[:33] + struct.pack('>I', len(content)) + kind + content
            + struct.pack('>I', crc) + data[33:])


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize(('marker', 'start'), [
    (0xe1, b'Exif\0\0'), (0xe1, b'Exif\0\0II*\0\x08\0\0\0'),
    (0xe1, b'Exif\0\0MM\0*\0\0\0\x08\0\x01'),
    (0xe1, b'http://ns.adobe.com/xap/1.0/\0'),
    (0xe2, b'ICC_PROFILE\0\x01\x01'), (0xe2, b'MPF\0II*\0'),
    (0xed, b'Photoshop 3.0\x008BIM'), (0xec, b''), (0xfe, b'comment')])
def test_metadata_of_jpeg_cost_no_image(marker, start, seed):
    content = start + np.random.default_rng(seed).bytes(40 * seed)
    found = read_image(io.BytesIO(with_jpeg_part(marker, content)))
    expected = np.asarray(Image.open(io.BytesIO(encoded('JPEG', quality=90))))
    assert sorted(found.shape) == [3, 40, 60]
    if found.shape == (3, 40, 60) and marker != 0xe1:
        np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('crc_change', [0, 1])
@pytest.mark.parametrize('kind', [
    b'iCCP', b'eXIf', b'tEXt', b'zTXt', b'iTXt', b'pHYs', b'gAMA', b'cHRM',
    b'sRGB', b'bKGD', b'hIST', b'tIME', b'acTL', b'teSt', b'cICP'])
@pytest.mark.parametrize('content', [b'', b'\0', b'name\0\0' + bytes(9),
                                     b'x\0\0\xff\xff\xff\xff' * 5])
def test_metadata_of_png_cost_no_image(kind, content, crc_change):
    found = read_image(io.BytesIO(with_png_part(kind, content, crc_change)))
    np.testing.assert_array_equal(found, PIXELS.transpose(2, 0, 1))


def test_says_that_metadata_are_ignored():
    data = with_png_part(b'tEXt', b'', 1)
    with pytest.warns(UserWarning, match='its metadata are damaged, and are'):
        read_image(io.BytesIO(data))
    data = with_jpeg_part(0xe2, b'ICC_PROFILE\0\x01\x01' + bytes(200))
    with pytest.warns(UserWarning, match='its colour profile cannot be unders'):
        read_image(io.BytesIO(data))


def test_a_part_of_an_image_is_no_image():
    data = with_jpeg_part(0xe1, b'Exif\0\0')
    with pytest.raises(InputError, match='cannot be read as an image: image '
                       'file is truncated'):
        read_image(io.BytesIO(data[:len(data) // 2]))


def swapped_profile():
    """sRGB with red and green exchanged, under another name."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    data = data.replace(b'rXYZ', b'----').replace(b'gXYZ', b'rXYZ').replace(
        b'----', b'gXYZ')
    return data.replace('sRGB'.encode('utf-16-be'), 'Mine'.encode('utf-16-be'))


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
def test_colour_profiles_are_converted(kind):
    red = np.full((4, 4, 3), (250, 10, 10), np.uint8)
    options = {'lossless': True} if kind == 'WEBP' else {}
    data = encoded(kind, red, icc_profile=swapped_profile(), **options)
    np.testing.assert_allclose(read_image(io.BytesIO(data))[:, 0, 0],
                               [10, 250, 10], atol=4)
    np.testing.assert_array_equal(
        read_image(io.BytesIO(data), as_stored=True)[:, 0, 0], [250, 10, 10])


def tiff(bits, bands, data, layout, width=4, height=2):
    """A TIFF of one strip, as a scanner or a satellite writes it."""
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, bits),
            (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, bands),
            (278, 3, 1, height), (279, 4, 1, len(data)), (284, 3, 1, layout)]
    return (struct.pack('<2sHI', b'II', 42, 8 + len(data)) + data
            + struct.pack('<H', len(tags)) + b''.join(
                struct.pack('<2HII', *tag) for tag in tags) + bytes(4))


def test_twelve_bits_keep_their_brightness():
    values = [0, 4095, 2048, 1024] * 2
    packed = b''.join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
                      for a, b in zip(values[::2], values[1::2], strict=True))
    found = read_image(io.BytesIO(tiff(12, 1, packed, 1)))
    assert found[0, 0].tolist() == [0, 255, 128, 64]


def test_names_what_a_tiff_is():
    with pytest.raises(InputError, match='a TIFF of 5 bands with 8 bits, planar'
                       ': save it as RGB'):
        read_image(io.BytesIO(tiff(8, 5, bytes(40), 2)))


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG'])
def test_says_that_only_a_frame_is_used(kind):
    file, frames = io.BytesIO(), [Image.new('RGB', (20, 10), (i, 0, 0))
                                  for i in (0, 200)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match='only the first of 2 frames is used'):
        read_image(io.BytesIO(file.getvalue()))


def test_a_damaged_later_frame_costs_nothing():
    file, frames = io.BytesIO(), [Image.new('L', (20, 10), i) for i in (9, 200)]
    frames[0].save(file, 'GIF', save_all=True, append_images=frames[1:])
    data = file.getvalue()
    found = read_image(io.BytesIO(data[:-12]))
    assert (found == 9).all()


HEIC = b'\0\0\0\x18ftypheic' + bytes(40)


def test_names_what_a_folder_has(tmp_path, monkeypatch):
    monkeypatch.setattr('media.inputs.formats', lambda: images.FORMATS)
    (tmp_path / 'linked').mkdir()
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/more').symlink_to(tmp_path / 'linked')
    (tmp_path / 'linked/back').symlink_to(tmp_path / 'in')
    for name, data in {
            'in/a.jpg': b'', 'in/b.HEIC': HEIC, 'in/c': HEIC, 'in/d.NEF': b'',
            'in/e.psd': b'', 'in/f.txt': b'text', 'in/g.ts': b'let a = 1',
            'in/IMG_1': encoded('JPEG'), 'linked/h.PNG': b'',
            'in/i.ts': b'G', 'in/.j.png': b''}.items():
        (tmp_path / name).write_bytes(data)
    found, problems, notes = find_inputs([str(tmp_path / 'in')])
    assert [(str(each.stem), each.is_video) for each in found] == [
        ('IMG_1', False), ('a', False), ('i', True), ('more/h', False)]
    assert problems == []
    assert sorted(notes) == sorted([
        'skipped 2 files, HEIC is not supported without pillow-heif (pip '
        f'install pillow-heif): {tmp_path}/in/b.HEIC, {tmp_path}/in/c',
        "skipped 1 file, a camera's raw format is not supported (save as JPEG "
        f'or PNG): {tmp_path}/in/d.NEF',
        f'skipped 1 file, Photoshop is not supported: {tmp_path}/in/e.psd'])


def test_heic_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(images, 'formats', lambda: images.FORMATS)
    (tmp_path / 'a.heic').write_bytes(HEIC)
    with pytest.raises(InputError, match='HEIC needs pillow-heif: pip install'):
        read_image(tmp_path / 'a.heic')


def test_one_long_name_is_one_failure(tmp_path):
    (tmp_path / 'a.png').touch()
    found, problems, _ = find_inputs(['x' * 5000, str(tmp_path / 'a.png')])
    assert len(found) == 1
    assert 'File name too long' in problems[0]
