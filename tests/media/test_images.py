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


@pytest.mark.parametrize('options', [
    {}, {'progressive': True}, {'restart_marker_rows': 1}])
def test_a_jpeg_without_its_end(options):
    """All pixels are there: also for an evaluation."""
    data = encoded('JPEG', **options)
    for cut in 1, 2:
        for as_stored in False, True:
            with pytest.warns(UserWarning, match='the mark of its end is miss'):
                found = read_image(io.BytesIO(data[:-cut]), as_stored=as_stored)
            np.testing.assert_array_equal(found, read_image(io.BytesIO(data)))


@pytest.mark.parametrize('options', [
    {}, {'progressive': True}, {'restart_marker_rows': 1}])
def test_a_part_of_a_jpeg(options):
    """It is shown, with a warning, and not evaluated."""
    data = encoded('JPEG', **options)
    for part in data[:-3], data[:len(data) * 2 // 3]:
        with pytest.warns(UserWarning, match='it is cut off, and the rest is'):
            found = read_image(io.BytesIO(part))
        assert found.shape == (3, 40, 60)
        if 'progressive' not in options:  # which comes coarse, and then fine
            whole = read_image(io.BytesIO(data))
            np.testing.assert_array_equal(found[:, :8], whole[:, :8])
        with pytest.raises(InputError, match='image file is truncated'):
            read_image(io.BytesIO(part), as_stored=True)


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'WEBP', 'JPEG2000'])
def test_a_part_of_an_image_is_no_image(kind):
    data = encoded(kind)
    with pytest.raises(InputError, match='cannot be read as an image'):
        read_image(io.BytesIO(data[:len(data) // 2]))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'TIFF', 'WEBP', 'AVIF'])
def test_nothing_of_an_image(kind):
    with pytest.raises(InputError, match='cannot be read as an image'):
        read_image(io.BytesIO(encoded(kind)[:40]))


def swapped_profile(name):
    """sRGB with red and green exchanged, under a name of four letters."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    data = data.replace(b'rXYZ', b'----').replace(b'gXYZ', b'rXYZ').replace(
        b'----', b'gXYZ')
    return data.replace('sRGB'.encode('utf-16-be'), name.encode('utf-16-be'))


def test_srgb_by_any_name_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for name in 'sRGB', 'Mine':
        data = encoded('PNG', icc_profile=profile.replace(
            'sRGB'.encode('utf-16-be'), name.encode('utf-16-be')))
        np.testing.assert_array_equal(read_image(io.BytesIO(data)),
                                      PIXELS.transpose(2, 0, 1))


def to_srgb(linear):
    """IEC 61966-2-1, to [0, 255]."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear,
                          1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
@pytest.mark.parametrize('mode', ['L', 'LA'])
def test_profiles_of_grey(kind, mode):
    curve = struct.pack('>4s2IH', b'curv', 0, 1, 1 << 8)  # linear
    profile = struct.pack(
        '>I4xI4s4s4s12x4s28x3i48xI4s2I', 144 + len(curve), 2 << 24, b'mntr',
        b'GRAY', b'XYZ ', b'acsp', 63190, 65536, 54061, 1, b'kTRC', 144,
        len(curve)) + curve
    file, grey = io.BytesIO(), Image.fromarray(PIXELS).convert('L')
    grey.convert(mode).save(file, kind, icc_profile=profile)
    np.testing.assert_allclose(read_image(io.BytesIO(file.getvalue()))[0],
                               to_srgb(np.asarray(grey) / 255), atol=2)


# x and y of white, red, green and blue.
SRGB = 0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06
DISPLAY_P3 = 0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06
# To linear sRGB, as SMPTE EG 432-1 and IEC 61966-2-1 give it.
FROM_P3 = [[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0],
           [-0.0197, -0.0786, 1.0979]]


def chunk(kind, *values):
    content = struct.pack(f'>{len(values)}I', *(
        round(100_000 * value) for value in values))
    return (struct.pack('>I', len(content)) + kind + content
            + struct.pack('>I', zlib.crc32(kind + content)))


@pytest.mark.parametrize('primaries', [
    [0] * 8, [0.3127, 0.329] * 4, [0.3127, 0, *SRGB[2:]],
    [*SRGB[:4], 0.64001, 0.33, *SRGB[6:]]])
def test_primaries_of_no_colours_are_ignored(primaries):
    data = encoded('PNG')
    with pytest.warns(UserWarning, match='its colour profile cannot be unders'):
        found = read_image(io.BytesIO(
            data[:33] + chunk(b'cHRM', *primaries) + data[33:]))
    np.testing.assert_array_equal(found, PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P'])
@pytest.mark.parametrize(('gamma', 'primaries', 'matrix'), [
    (1, None, np.eye(3)), (1 / 1.8, None, np.eye(3)), (1, SRGB, np.eye(3)),
    (1, DISPLAY_P3, FROM_P3), (0.4, DISPLAY_P3, FROM_P3)])
def test_gamma_of_png(mode, gamma, primaries, matrix):
    file, image = io.BytesIO(), Image.fromarray(PIXELS).convert(
        mode, palette=Image.Palette.ADAPTIVE)
    image.save(file, 'PNG')
    data = file.getvalue()
    chunks = chunk(b'gAMA', gamma) + (
        chunk(b'cHRM', *primaries) if primaries else b'')
    linear = (np.asarray(image.convert('RGB')) / 255) ** (1 / gamma)
    expected = to_srgb((linear @ np.transpose(matrix)).clip(0, 1))
    found = read_image(io.BytesIO(data[:33] + chunks + data[33:]))
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=2)


@pytest.mark.parametrize('chunks', [
    chunk(b'gAMA', 1 / 2.2), chunk(b'gAMA', 1 / 2.2) + chunk(b'cHRM', *SRGB),
    chunk(b'gAMA', 1) + b'\0\0\0\1sRGB\0\xae\xce\x1c\xe9'])
def test_png_that_is_srgb_changes_nothing(chunks):
    data = encoded('PNG')
    np.testing.assert_array_equal(
        read_image(io.BytesIO(data[:33] + chunks + data[33:])),
        PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize('name', ['sRGB', 'Mine'])
@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
def test_colour_profiles_are_converted(kind, mode, name):
    """What they hold counts, not their name."""
    red, file = np.full((4, 4, 3), (250, 10, 10), np.uint8), io.BytesIO()
    Image.fromarray(red).convert(mode, palette=Image.Palette.ADAPTIVE).save(
        file, kind, icc_profile=swapped_profile(name),
        **{'lossless': True} if kind == 'WEBP' else {})
    data = file.getvalue()
    np.testing.assert_allclose(read_image(io.BytesIO(data))[:, 0, 0],
                               [10, 250, 10], atol=4)
    np.testing.assert_array_equal(
        read_image(io.BytesIO(data), as_stored=True)[:, 0, 0], [250, 10, 10])


def tiff(bits, bands, data, layout, size=(2, 4), order='<', **tags):
    """A TIFF of one strip, or of one for each band, as a scanner or a satellite
    writes it; keyword arguments as t262=(2,) are tags, of short numbers.
    """
    height, width = size
    n_strips = bands if layout == 2 else 1
    size = len(data) // n_strips
    tags = {256: [width], 257: [height], 258: [bits] * bands, 259: [1],
            262: [1], 273: [8 + size * i for i in range(n_strips)],
            277: [bands], 278: [height], 279: [size] * n_strips, 284: [layout],
            **{int(name[1:]): value for name, value in tags.items()}}
    end = 8 + len(data)
    entries, more = b'', b''
    for tag, values in sorted(tags.items()):
        content = struct.pack(f'{order}{len(values)}H', *values)
        if len(content) > 4:
            more += content
            content = struct.pack(f'{order}I', end + 6 + 12 * len(tags)
                                  + len(more) - len(content))
        entries += struct.pack(f'{order}2HI', tag, 3, len(values)
                               ) + content.ljust(4, b'\0')
    return (struct.pack(f'{order}2sHI', b'II' if order == '<' else b'MM', 42,
                        end) + data + struct.pack(f'{order}H', len(tags))
            + entries + bytes(4) + more)


@pytest.mark.parametrize('compression', [1, 8])
@pytest.mark.parametrize('layout', [1, 2])
@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize(('photometric', 'extra', 'mode'), [
    (0, 0, 'L'), (1, 0, 'L'), (2, 0, 'RGB'), (2, 1, 'RGB'), (5, 0, 'CMYK')])
def test_tiffs(photometric, extra, mode, order, bits, layout, compression):
    """All planes and byte orders give what was put in."""
    if (photometric, order, bits) == (0, '>', 16):
        pytest.skip('not supported')
    image = Image.fromarray(PIXELS).convert(mode)
    values = np.asarray(image).reshape(40, 60, -1)
    values = np.concatenate([values] + [values[..., :1]] * extra, -1)
    stored = (255 - values if photometric == 0 else values).astype(
        f'{order}u{bits // 8}') * (257 if bits == 16 else 1)
    planes = np.moveaxis(stored, -1, 0) if layout == 2 else [stored]
    strips = [np.ascontiguousarray(each, f'{order}u{bits // 8}').tobytes()
              for each in planes]
    if compression == 8:  # of one length, as zeros may follow
        strips = [zlib.compress(each) for each in strips]
        strips = [each.ljust(max(map(len, strips)), b'\0') for each in strips]
    found = read_image(io.BytesIO(tiff(
        bits, values.shape[-1], b''.join(strips), layout, (40, 60), order,
        t259=[compression], t262=[photometric],
        **{'t338': [2]} if extra else {})))
    np.testing.assert_allclose(
        found, np.asarray(image.convert('RGB')).transpose(2, 0, 1), atol=1)


def test_a_palette_of_8_bits():
    palette = [0, 9, 200, 255] * 3
    found = read_image(io.BytesIO(tiff(
        2, 1, b'\x1b\x1b', 1, t262=[3], t320=palette)))
    assert found[:, 0].tolist() == [palette[:4]] * 3


@pytest.mark.parametrize(('words', 'bits', 'tags'), [
    ('signed grey', 8, {'t339': [2]}), ('signed grey', 16, {'t339': [2]}),
    ('floating-point grey', 32, {'t339': [3]}),
    ('not of 8 to 16 bits', 32, {})])
def test_what_has_no_range(words, bits, tags):
    data = b'\xff' * bits
    with pytest.raises(InputError, match=words):
        read_image(io.BytesIO(tiff(bits, 1, data, 1, **tags)))


@pytest.mark.parametrize('layout', [1, 2])
def test_grey_multiplied_by_alpha(layout):
    data = tiff(8, 2, b'\x32\x64' * 8, layout, t338=[1])
    if layout == 1:
        assert (read_image(io.BytesIO(data)) == 127).all()  # 0x32 / 0x64
        return
    with pytest.raises(InputError, match='a plane for alpha are not sup'):
        read_image(io.BytesIO(data))


def test_twelve_bits_keep_their_brightness():
    values = [0, 4095, 2048, 1024] * 2
    packed = b''.join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
                      for a, b in zip(values[::2], values[1::2], strict=True))
    found = read_image(io.BytesIO(tiff(12, 1, packed, 1)))
    assert found[0, 0].tolist() == [0, 255, 128, 64]


@pytest.mark.parametrize('data', [
    tiff(8, 5, bytes(40), 2), b'MM\0+\0\x08\0\0' + bytes(40)])
def test_a_kind_of_tiff_that_is_not_supported(data):
    """Five bands, and a big-endian BigTIFF."""
    with pytest.raises(InputError, match='or of a kind of TIFF that is not sup'
                       'ported: save it as PNG'):
        read_image(io.BytesIO(data))


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'AVIF', 'TIFF', 'MPO'])
def test_says_that_only_a_frame_is_used(kind):
    file, frames = io.BytesIO(), [Image.new('RGB', (20, 10), (i, 0, 0))
                                  for i in (0, 200)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match='only the first of 2 frames is used'):
        read_image(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize('mode', ['1', 'L', 'RGB', 'I;16'])
def test_says_that_only_an_image_of_pnm_is_used(mode):
    file = io.BytesIO()
    Image.new(mode, (20, 10)).save(file, 'PPM')
    with pytest.warns(UserWarning, match='only the first of 3 frames is used'):
        found = read_image(io.BytesIO(3 * file.getvalue()))
    assert found.shape == (3, 10, 20)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(('kind', 'tag', 'words'), [
    ('PNG', b'cICP\x09\x10\0\1', '9, transfer 16'),
    ('PNG', b'cICP\x0c\x0d\0\1', '12, transfer 13'),
    ('AVIF', b'colrnclx\0\x09\0\x10', '9, transfer 16'),
    ('AVIF', b'colrnclx\0\1\0\x08', '1, transfer 8')])
def test_tags_of_colours_that_are_not_read(kind, tag, words):
    if kind == 'PNG':
        data = with_png_part(tag[:4], tag[4:])
        usual = with_png_part(tag[:4], b'\1\x0d\0\1')
    else:
        usual = encoded(kind)  # primaries 1, transfer 13
        at = usual.index(tag[:8])
        data = usual[:at] + tag + usual[at + len(tag):]
    read_image(io.BytesIO(usual))
    read_image(io.BytesIO(data), as_stored=True)
    with pytest.warns(UserWarning, match='its colours are taken as sRGB, and '
                      f'have primaries {words} of ITU-T H'):
        read_image(io.BytesIO(data))


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('kind', [1, 4])
def test_no_small_copy_or_mask_is_a_page(kind):
    """Previews of cameras, of scanners, and of maps."""
    file, image = io.BytesIO(), Image.fromarray(PIXELS)
    image.save(file, 'MPO', save_all=True,
               append_images=[image.resize((6, 4))], quality=100)
    assert read_image(io.BytesIO(file.getvalue())).shape == (3, 40, 60)
    file, (small, image) = io.BytesIO(), map(Image.fromarray, (
        PIXELS[:4], PIXELS))
    small.save(file, 'TIFF', save_all=True, append_images=[image],
               tiffinfo={254: kind})  # both
    tag = struct.pack('<2H2I', 254, 4, 1, kind)
    first, second, third = file.getvalue().split(tag)
    data = first + tag + second + tag[:-4] + bytes(4) + third
    found = read_image(io.BytesIO(data))
    np.testing.assert_array_equal(found, PIXELS.transpose(2, 0, 1))


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
        'skipped 2 files, HEIC needs pillow-heif (pip install pillow-heif): '
        f'{tmp_path}/in/b.HEIC, {tmp_path}/in/c',
        "skipped 1 file, a camera's raw format is not supported (save as JPEG "
        f'or PNG): {tmp_path}/in/d.NEF',
        f'skipped 1 file, .psd is not supported: {tmp_path}/in/e.psd'])


def test_heic_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(images, 'formats', lambda: images.FORMATS)
    (tmp_path / 'a.heic').write_bytes(HEIC)
    with pytest.raises(InputError, match='HEIC needs pillow-heif'):
        read_image(tmp_path / 'a.heic')


def test_one_long_name_is_one_failure(tmp_path):
    (tmp_path / 'a.png').touch()
    found, problems, _ = find_inputs(['x' * 5000, str(tmp_path / 'a.png')])
    assert len(found) == 1
    assert 'File name too long' in problems[0]
