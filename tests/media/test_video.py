"""Films: their times, colours, sound and damage; what is written of them."""
import io
import json
import os
import re
import resource
import signal
import struct
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from conftest import start_script
from fixture_images import (
    add_sound,
    copy_film,
    patches,
    write_film,
    write_sound,
)
from PIL import Image, ImageOps

from media.batch import prefetch
from media.inputs import find_inputs
from media.outputs import DEFAULT, plan_outputs
from media.video import open_video, writing
from models.classes import label_colors
from models.utils.errors import InputError
from models.utils.files import part_path

BT709 = {'colorspace': 1, 'color_primaries': 1, 'color_trc': 1,
         'color_range': 1}


def pictures(n, size=(72, 96)):
    colors = label_colors('cityscapes')
    return list(colors[patches('cityscapes', n, size=size)])


def planes(path):
    """Return FFmpeg's own values, (N, planes) of arrays."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


@pytest.mark.parametrize('colors', [
    {}, BT709, {**BT709, 'color_range': 2},
    {'colorspace': 5, 'color_primaries': 5, 'color_trc': 6, 'color_range': 1},
    {'colorspace': 9, 'color_primaries': 9, 'color_trc': 14, 'color_range': 1}])
def test_colours_come_back(tmp_path, colors):
    write_film(tmp_path / 'a.mp4', pictures(3), **colors)
    copy_film(tmp_path / 'a.mp4', tmp_path / 'b.mp4')
    before, after = (planes(tmp_path / name) for name in ('a.mp4', 'b.mp4'))
    for a, b in zip(before, after, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 1.5  # what coding leaves
    with av.open(str(tmp_path / 'b.mp4')) as container:
        context = container.streams.video[0].codec_context
        assert {name: int(getattr(context, name)) for name in colors} == colors


def times_of(path):
    """Return FFmpeg's own reading: times of the frames, how long the last is
    shown, and the length of all.
    """
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return ([frame.time for frame in frames],
                frames[-1].duration * frames[-1].time_base,
                container.duration / av.time_base)


TIMES = {  # in milliseconds
    'a phone or a recorded screen': [0, 40, 80, 1000, 1040, 5000, 15_000],
    'last frames a second apart': [*range(0, 1280, 40), 2250, 3250, 4030],
    'late': [5000, 5040, 5080], 'one': [0], 'ticks': [*range(30)],
    'a gap of minutes': [0, 40, 300_000, 300_040],
    'before zero': [-80, -40, 0, 40]}


@pytest.mark.parametrize(('ending', 'unit'), [
    ('.mkv', 1000), ('.nut', 12_800), ('.mov', 90_000), ('.mp4', 1_000_000)])
@pytest.mark.parametrize('kind', TIMES)
def test_times_come_back(tmp_path, kind, ending, unit):
    path, times = tmp_path / f'a{ending}', TIMES[kind]
    write_film(path, pictures(len(times)),
               times=[time * unit // 1000 for time in times],
               time_base=Fraction(1, unit))
    assert copy_film(path, tmp_path / 'b.mp4').losses == []
    before, last, _ = times_of(path)
    after, _, length = times_of(tmp_path / 'b.mp4')
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert length == pytest.approx(after[-1] - after[0] + float(last), abs=2e-3)


def joined(path, n, times=None):
    """Write a recording, and the same one once more behind it."""
    write_film(path, pictures(n), times=times, sound='aac', rate=25,
               time_base=Fraction(1, 90_000))
    path.write_bytes(path.read_bytes() * 2)


def test_times_of_joined_recordings(tmp_path):
    joined(tmp_path / 'a.ts', 20)
    video = copy_film(tmp_path / 'a.ts', tmp_path / 'b.mp4')
    assert (video.losses, video.n_damaged) == ([], 0)
    times, *_ = times_of(tmp_path / 'b.mp4')
    np.testing.assert_allclose(np.diff(times), [0.04] * 39, atol=1e-4)
    sounds = [float(at) for at, _ in sound_of(tmp_path / 'b.mp4')]
    assert np.diff(sounds) == pytest.approx(np.full(len(sounds) - 1, 1024
                                                    / 48_000), abs=1e-3)


def test_times_of_a_clock(tmp_path):
    """A recording of TV begins hours after zero."""
    day = 20 * 3600 * 90_000
    write_film(tmp_path / 'a.ts', pictures(10), times=[
        day + 3600 * i for i in range(10)], time_base=Fraction(1, 90_000))
    copy_film(tmp_path / 'a.ts', tmp_path / 'b.mp4')
    np.testing.assert_allclose(times_of(tmp_path / 'b.mp4')[0],
                               np.arange(10) / 25, atol=1e-4)


@pytest.mark.parametrize('ending', ['.h264', '.hevc', '.avi'])
def test_frames_without_times(tmp_path, ending):
    write_film(tmp_path / f'a{ending}', pictures(12),
               codec='libx265' if ending == '.hevc' else 'libx264')
    copy_film(tmp_path / f'a{ending}', tmp_path / 'b.mp4')
    times, *_ = times_of(tmp_path / 'b.mp4')
    np.testing.assert_allclose(np.diff(times), [1 / 12] * 11, atol=1e-4)


def test_equal_times_are_told_apart(tmp_path):
    stamps = [0, 40, 40, 40, 80, 120]
    with av.open(str(tmp_path / 'a.mkv'), 'w') as container:
        stream = container.add_stream('mjpeg', rate=25, pix_fmt='yuvj420p')
        stream.height, stream.width = 72, 96
        for pixels, at in zip(pictures(6), stamps, strict=True):
            for packet in stream.encode(av.VideoFrame.from_ndarray(
                    pixels, format='rgb24')):
                packet.pts = packet.dts = at
                packet.time_base = Fraction(1, 1000)
                container.mux(packet)
    copy_film(tmp_path / 'a.mkv', tmp_path / 'b.mp4')
    np.testing.assert_allclose(times_of(tmp_path / 'b.mp4')[0], [
        0, .04, .041, .042, .08, .12], atol=1e-4)


def sound_of(path):
    with av.open(str(path)) as container:
        return [(packet.pts * packet.time_base, bytes(packet))
                for packet in container.demux(audio=0)
                if packet.dts is not None]


@pytest.mark.parametrize('ending', ['.mp4', '.mkv', '.flv', '.ts'])
def test_sound_is_copy_film(tmp_path, ending):
    """AAC in MPEG-TS has headers, which MP4 does not take."""
    source = tmp_path / f'a{ending}'
    write_film(source, pictures(6), sound='aac')
    assert copy_film(source, tmp_path / 'b.mp4').losses == []
    before, after = sound_of(source), sound_of(tmp_path / 'b.mp4')
    header = 7 if ending == '.ts' else 0
    assert len(before) > 20
    assert [data[header:] for _, data in before] == [data for _, data in after]
    np.testing.assert_allclose(*([float(at) for at, _ in each]
                                 for each in (before, after)), atol=1e-3)


def samples_of(path):
    """Return the samples that FFmpeg hears, and the time of the first."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([frame.to_ndarray() for frame in frames],
                          axis=1), frames[0].time


@pytest.mark.parametrize('layout', ['mono', 'stereo', '5.1'])
def test_sound_that_mp4_has_not_becomes_aac(tmp_path, layout):
    write_film(tmp_path / 'a.mkv', pictures(12), sound=('wavpack', layout))
    video = copy_film(tmp_path / 'a.mkv', tmp_path / 'b.mp4')
    assert video.losses == ['track 1 (audio) becomes AAC: MP4 has no wavpack']
    (before, start), (after, begun) = map(samples_of, [
        tmp_path / 'a.mkv', tmp_path / 'b.mp4'])
    assert start == begun == 0
    assert after.shape[0] == before.shape[0]
    same = [np.corrcoef(a, b)[0, 1] > 0.98 for a, b in zip(
        before, after[:, :before.shape[1]], strict=True)]
    assert sum(same) == len(same) - (layout == '5.1')  # the .1 has only basses


@pytest.mark.parametrize('codec', ['aac', 'wavpack'])
@pytest.mark.parametrize('start', [0, 2])
def test_sound_comes_when_it_came(tmp_path, codec, start):
    write_film(tmp_path / 'a.mkv', pictures(40), sound=codec,
               sound_settings={'start': start})
    copy_film(tmp_path / 'a.mkv', tmp_path / 'b.mp4')
    _, begun = samples_of(tmp_path / 'b.mp4')
    assert begun == pytest.approx(start, abs=0.022)  # of one packet


@pytest.mark.parametrize(('codec', 'spoiled', 'losses'), [
    ('wmav2', range(12), ['track 1 (audio) is left out']),
    ('wmav2', [5, 6], ['track 1 (audio) becomes AAC: MP4 has no wmav2',
                        '2 packets of track 1 (audio) could not be read']),
    ('wmav2', [0], ['track 1 (audio) becomes AAC: MP4 has no wmav2',
                     '1 packets of track 1 (audio) could not be read']),
    ('aac', [5, 6], ['2 packets of track 1 (audio) could not be read'])])
def test_damaged_sound_does_not_cost_the_film(tmp_path, codec, spoiled, losses):
    path = tmp_path / ('a.asf' if codec == 'wmav2' else 'a.mkv')
    write_film(path, pictures(6), sound=codec, codec='mpeg4',
               sound_settings={'spoiled': spoiled})
    assert copy_film(path, tmp_path / 'b.mp4').losses == losses
    assert len(planes(tmp_path / 'b.mp4')) == 6


def test_sound_of_no_codec_is_named(tmp_path):
    write_film(tmp_path / 'a.mkv', pictures(6), sound='wavpack')
    path = tmp_path / 'a.mkv'
    path.write_bytes(path.read_bytes().replace(b'A_WAVPACK4', b'A_WAVPACKX'))
    assert copy_film(path, tmp_path / 'b.mp4').losses == [
        'track 1 (audio) is left out']
    assert len(planes(tmp_path / 'b.mp4')) == 6


def test_tracks_of_sound(tmp_path):
    """One without a packet, one encoded, one as it is."""
    with av.open(str(tmp_path / 'a.mkv'), 'w') as container:
        sounds = [add_sound(container, codec)
                  for codec in ('aac', 'wavpack', 'ac3')]
        stream = container.add_stream('libx264', rate=25)
        stream.height, stream.width = 72, 96
        container.start_encoding()
        for each in sounds[1:]:
            write_sound(each)
        container.mux([*stream.encode(av.VideoFrame(96, 72, 'yuv420p')),
                       *stream.encode()])
    assert copy_film(tmp_path / 'a.mkv', tmp_path / 'b.mp4').losses == [
        'track 0 (audio) is left out',
        'track 1 (audio) becomes AAC: MP4 has no wavpack']
    with av.open(str(tmp_path / 'b.mp4')) as container:
        assert [each.codec_context.name for each in container.streams] == [
            'aac', 'ac3', 'h264']
    for i in range(2):
        with av.open(str(tmp_path / 'b.mp4')) as container:
            assert len(list(container.decode(audio=i))) > 10


def test_sound_is_no_matter_for_label_maps(tmp_path):
    write_film(tmp_path / 'a.mkv', pictures(2), sound='wavpack')
    with open_video(tmp_path / 'a.mkv', with_sound=False) as video:
        assert [len(frame.sounds) for frame in video.frames] == [0, 0]
    assert video.losses == ['track 1 (audio) is left out']


def test_says_what_ten_bits_lose(tmp_path):
    write_film(tmp_path / 'a.mp4', pictures(2), pix_fmt='yuv420p10le',
               colorspace=9, color_primaries=9, color_trc=16, color_range=1)
    with open_video(tmp_path / 'a.mp4') as video:
        assert len(list(video.frames)) == 2
        assert video.losses == ['10 bits become 8']


def test_pixels_keep_their_aspect(tmp_path):
    write_film(tmp_path / 'a.mp4', pictures(2),
               sample_aspect_ratio=Fraction(4, 3))
    copy_film(tmp_path / 'a.mp4', tmp_path / 'b.mp4')
    with av.open(str(tmp_path / 'b.mp4')) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize('ending', ['.mts', '.3gp', '.ts', '.m2ts', '.mov',
                                    '.avi', '.mkv', '.flv', '.MP4', '.h264',
                                    '.nut', '.dv', '.wtv', '.gxf'])
def test_endings_of_films(tmp_path, ending):
    path = tmp_path / f'a{ending}'
    if ending in {'.dv', '.gxf'}:
        write_film(path, pictures(3, (576, 720)), 25, codec={
            '.dv': 'dvvideo', '.gxf': 'mpeg2video'}[ending])
    else:
        write_film(path, pictures(3))
    with open_video(path) as video:
        assert len(list(video.frames)) == 3
    with open_video(path.read_bytes()) as video:  # of an address, say
        assert len(list(video.frames)) == 3


@pytest.mark.parametrize(('ending', 'codec', 'pix_fmt'), [
    ('.y4m', 'rawvideo', 'yuv420p'), ('.ivf', 'libvpx', 'yuv420p'),
    ('.mjpeg', 'mjpeg', 'yuvj420p'), ('.m1v', 'mpeg1video', 'yuv420p'),
    ('.h265', 'libx265', 'yuv420p')])
def test_raw_films(tmp_path, ending, codec, pix_fmt):
    path = tmp_path / f'a{ending}'
    write_film(path, pictures(3), 25, codec=codec, pix_fmt=pix_fmt)
    with open_video(path) as video:
        assert len(list(video.frames)) == 3


def test_endings_are_found(tmp_path):
    for ending in '.mts', '.3gp', '.ts', '.m2ts', '.mov', '.flv', '.MP4':
        (tmp_path / f'a{ending}').touch()
        (each,), problems, _ = find_inputs([str(tmp_path / f'a{ending}')])
        assert each.is_video
        assert problems == []


@pytest.mark.parametrize('ending', ['.mp4', '.mov', '.avi', '.ivf'])
def test_a_film_cut_off(tmp_path, ending):
    """These formats have the number of frames at their beginning."""
    path = tmp_path / f'a{ending}'
    write_film(path, pictures(40), codec={
        '.avi': 'mpeg4', '.ivf': 'libvpx'}.get(ending, 'libx264'),
        options={'movflags': 'faststart'} if ending[1] == 'm' else None)
    whole = path.read_bytes()
    assert copy_film(path, tmp_path / 'b.mp4').losses == []
    path.write_bytes(whole[:len(whole) * 3 // 4])
    video = copy_film(path, tmp_path / 'b.mp4')
    n_frames = len(planes(tmp_path / 'b.mp4'))
    assert 10 < n_frames < 40
    assert video.losses == [f'{40 - n_frames} of 40 frames are missing']
    assert video.n_damaged == 0


@pytest.mark.parametrize('ending', ['.mkv', '.webm', '.flv'])
@pytest.mark.parametrize('part', [0.3, 0.75, 0.9])
def test_a_film_cut_off_without_a_count(tmp_path, ending, part):
    """These have their length at the beginning."""
    path, codec = tmp_path / f'a{ending}', {'.webm': 'libvpx'}
    write_film(path, pictures(40), 25, codec=codec.get(ending, 'libx264'))
    whole = path.read_bytes()
    assert copy_film(path, tmp_path / 'b.mp4').losses == []
    path.write_bytes(whole[:int(len(whole) * part)])
    line, = copy_film(path, tmp_path / 'b.mp4').losses
    n_missing, total = map(int, re.fullmatch(
        r'about (\d+) of (\d+) frames are missing', line).groups())
    n_frames = len(planes(tmp_path / 'b.mp4'))
    assert abs(total - 40) <= 3
    assert abs(n_frames + n_missing - 40) <= 3  # which wait for others


def test_a_film_of_fragments_cut_off(tmp_path):
    path = tmp_path / 'a.mp4'
    write_film(path, pictures(40), 25, gop_size=10, options={
        'movflags': 'frag_keyframe+empty_moov'})
    assert copy_film(path, tmp_path / 'b.mp4').losses == []
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 3 // 4])
    assert copy_film(path, tmp_path / 'b.mp4').n_damaged == 1


def test_a_film_of_unequal_sounds_and_pauses_is_whole(tmp_path):
    """Its length is that of the sound, which is not read for label maps, or of
    subtitles.
    """
    write_film(tmp_path / 'a.mkv', pictures(6), sound='aac', times=[
        0, 40, 80, 120, 1200, 1240], sound_settings={'start': 3})
    with open_video(tmp_path / 'a.mkv', with_sound=False) as video:
        assert len(list(video.frames)) == 6
    assert video.losses == ['track 1 (audio) is left out']
    with av.open(str(tmp_path / 'a.mkv'), 'w') as container:
        stream = container.add_stream('libx264', rate=25)
        stream.height, stream.width = 72, 96
        words = av.Packet(b'words')
        words.stream = container.add_mux_stream('subrip')
        words.pts = words.dts = 0
        words.duration, words.time_base = 9000, Fraction(1, 1000)
        container.mux(words)
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame(96, 72, 'yuv420p')))
        container.mux(stream.encode())
    assert copy_film(tmp_path / 'a.mkv', tmp_path / 'b.mp4').losses == [
        'track 1 (subtitle) is left out']


def test_a_film_with_pauses_is_whole(tmp_path):
    """AVI counts the frames that it leaves out."""
    write_film(tmp_path / 'a.avi', pictures(6), times=[0, 1, 2, 8, 9, 12],
               time_base=Fraction(1, 12), max_b_frames=0)
    assert copy_film(tmp_path / 'a.avi', tmp_path / 'b.mp4').losses == []
    np.testing.assert_allclose(times_of(tmp_path / 'b.mp4')[0], np.array(
        [0, 1, 2, 8, 9, 12]) / 12, atol=1e-4)


def test_a_film_trimmed_by_its_header_is_whole(tmp_path):
    """Phones leave frames out so."""
    path = tmp_path / 'a.mp4'
    write_film(path, pictures(40), 25, gop_size=5, max_b_frames=0)
    data = bytearray(path.read_bytes())
    at = data.index(b'elst') + 12  # milliseconds, and the first time
    data[at:at + 8] = struct.pack('>Ii', 600, 10 * 512)
    path.write_bytes(data)
    assert copy_film(path, tmp_path / 'b.mp4').losses == []
    assert len(planes(tmp_path / 'b.mp4')) == 15


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_jpeg_frames_of_a_camera(tmp_path, orientation):
    """EXIF is side data that PyAV does not know."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(file, 'JPEG', exif=exif)
    with av.open(str(tmp_path / 'a.avi'), 'w') as container:
        stream = container.add_stream('mjpeg', rate=5, pix_fmt='yuvj420p')
        stream.height, stream.width = 64, 96
        packet = av.Packet(file.getvalue())
        packet.stream, packet.dts, packet.time_base = stream, 0, Fraction(1, 5)
        container.mux(packet)
    with open_video(tmp_path / 'a.avi') as video:
        (image, *_), = video.frames
    wanted = ImageOps.exif_transpose(Image.open(file))
    assert np.abs(image.transpose(1, 2, 0) - wanted).mean() < 5


def test_a_title_in_latin_1(tmp_path):
    with av.open(str(tmp_path / 'a.avi'), 'w') as container:
        container.metadata['title'] = 'TITLE'
        stream = container.add_stream('mpeg4', rate=5)
        container.mux(stream.encode(av.VideoFrame(640, 480, 'yuv420p')))
        container.mux(stream.encode())
    path = tmp_path / 'a.avi'
    path.write_bytes(path.read_bytes().replace(b'TITLE', b'\xe9\xffTLE'))
    with open_video(path) as video:
        assert len(list(video.frames)) == 1


def test_a_cover_is_no_film(tmp_path):
    with av.open(str(tmp_path / 'a.m4a'), 'w', format='mp4') as container:
        stream = container.add_stream('mjpeg', rate=5, pix_fmt='yuvj420p')
        stream.height, stream.width = 72, 96
        stream.disposition = Disposition.attached_pic
        write_sound(add_sound(container, 'aac'))
        container.mux(stream.encode(av.VideoFrame(96, 72, 'yuvj420p')))
    with pytest.raises(InputError, match='has no video track'):
        open_video(tmp_path / 'a.m4a').__enter__()


@pytest.mark.parametrize('n_bytes', [2000, 20_000])
def test_damage_costs_its_frames(tmp_path, n_bytes):
    """Packets that are damaged, and frames of which nothing is left."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (72, 96, 3), np.uint8) for _ in range(40)]
    write_film(tmp_path / 'a.ts', noise)
    data = bytearray((tmp_path / 'a.ts').read_bytes())
    middle = len(data) // 2
    data[middle:middle + n_bytes] = bytes(n_bytes)
    (tmp_path / 'a.ts').write_bytes(data)
    video = copy_film(tmp_path / 'a.ts', tmp_path / 'b.mp4')
    assert video.n_damaged
    if n_bytes == 20_000:
        assert len(planes(tmp_path / 'b.mp4')) < 39
        assert re.fullmatch(r'about \d+ of 4\d frames are missing',
                            video.losses[0])


def test_a_plan_for_films(tmp_path):
    for name in 'a.mp4', 'b.png':
        (tmp_path / name).touch()
    inputs, _, _ = find_inputs([str(tmp_path)])
    film, _ = inputs

    def plan(kinds, output, inputs, **documents):
        found = plan_outputs(kinds, output, inputs, documents=documents)
        assert found.problems == []
        return [{kind: str(path) for kind, path in paths.items()}
                for paths in found.results.values()]

    out = str(tmp_path / 'out')
    assert plan(DEFAULT, out, inputs) == [
        {'overlay': f'{out}/a.mp4'}, {'figure': f'{out}/b.png'}]
    assert plan(DEFAULT, f'{out}.mp4', [film]) == [{'overlay': f'{out}.mp4'}]
    assert plan(['indexed'], out, [film]) == [{'indexed': f'{out}/a'}]
    assert plan(['color_map', 'indexed', 'figure'], out, [film]) == [{
        'color_map': f'{out}/a_color_map.mp4', 'indexed': f'{out}/a_indexed',
        'figure': f'{out}/a_segmentation.mp4'}]
    assert plan([], None, [film]) == [{'overlay': 'a_segmentation.mp4'}]
    assert plan([], None, [film], html=f'{out}.html') == [{}]
    with pytest.raises(InputError, match='several results: name a folder'):
        plan_outputs(['indexed'], f'{out}.mp4', [film])


@pytest.mark.slow
def test_every_kind(demo, tmp_path):
    truth = patches('cityscapes', 4)
    write_film(tmp_path / 'film.mp4', list(label_colors('cityscapes')[truth]),
               times=[0, 100, 200, 900], sound='aac')
    result = demo(tmp_path / 'film.mp4', '--output', 'out', '--overlay',
                  '--opacity', 0, '--figure', '--color-map', '--indexed',
                  '--json', 'all.json', '--html', 'all.html')
    assert result.returncode == 0, result.stderr
    out = demo.folder / 'out'
    assert sorted(os.listdir(out)) == [
        'film_color_map.mp4', 'film_indexed', 'film_overlay.mp4',
        'film_segmentation.mp4']
    records = json.loads((demo.folder / 'all.json').read_text())
    assert [record['time'] for record in records] == pytest.approx(
        [0, 0.1, 0.2, 0.9], abs=1e-3)
    for name in 'film_overlay.mp4', 'film_color_map.mp4':
        assert len(sound_of(out / name)) > 20
    for i, expected in enumerate(truth, start=1):
        found = np.asarray(Image.open(out / f'film_indexed/{i:06}.png'))
        assert (found == expected).mean() > 0.6
        share = records[i - 1]['shares'].get('road', 0)
        assert share == (found == 0).mean()
    difference = [np.abs(a.astype(int) - b).mean() for a, b in zip(
        planes(tmp_path / 'film.mp4'), planes(out / 'film_overlay.mp4'),
        strict=True)]
    assert max(difference) < 2
    page = (demo.folder / 'all.html').read_text()
    assert 'film.mp4 is a video, of which this page shows nothing.' in page


@pytest.mark.slow
def test_an_interrupted_film_is_a_part(demo, tmp_path):
    write_film(tmp_path / 'film.mp4', pictures(4) * 60, 25)
    process = start_script(
        'demo.py', tmp_path / 'film.mp4', '--output', 'out', '--overlay',
        '--indexed', '--pretrained-model', demo.npz, '--input-size', 65,
        cwd=demo.folder)
    out, deadline = demo.folder / 'out', time.monotonic() + 60
    part = out / 'film_indexed.part'
    while time.monotonic() < deadline and (
            len(list(out.glob('.deeplab*.tmp/*/*.png'))) < 10):
        time.sleep(0.01)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)  # as `docker stop` does
    _, text = process.communicate(timeout=60)
    assert time.monotonic() - begun < 4
    assert process.returncode == 143
    assert 'what was done is in out/film_overlay.part.mp4' in text
    names = sorted(os.listdir(out))
    assert names == ['film_indexed.part', 'film_overlay.part.mp4']
    n_frames = len(planes(out / 'film_overlay.part.mp4'))
    assert 9 < n_frames < 240
    assert abs(len(os.listdir(part)) - n_frames) <= 1
    assert part_path(out / 'a.mp4') == out / 'a.part.mp4'


def test_a_film_on_a_full_disk_is_a_part(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (72, 96, 3), np.uint8) for _ in range(60)]
    write_film(tmp_path / 'a.mp4', noise)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r'b\.mp4 cannot be written: File'):
            copy_film(tmp_path / 'a.mp4', tmp_path / 'b.mp4')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir(tmp_path)) == ['a.mp4', 'b.part.mp4']
    with open_video(tmp_path / 'b.part.mp4') as video:
        assert 10 < len(list(video.frames)) < 60


def test_what_is_read_ahead_is_not_closed_beneath_it(tmp_path):
    """FFmpeg would crash, sooner or later."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (720, 1280, 3), np.uint8)] * 4
    write_film(tmp_path / 'a.mp4', noise * 6, sound='aac')
    n_threads = threading.active_count()
    for _ in range(8):
        with open_video(tmp_path / 'a.mp4') as video:
            frames = prefetch(lambda frame: None, video.frames)
            next(frames)
        frames.close()  # only now
    assert threading.active_count() == n_threads


def test_an_error_of_ffmpeg_is_one_line(tmp_path):
    """Sound whose times stand still, which MP4 does not take."""
    write_film(tmp_path / 'a.mp4', pictures(6), sound='aac')

    def write():
        with (open_video(tmp_path / 'a.mp4') as video,
              writing(tmp_path / 'b.mp4', video) as writer):
            for frame in video.frames:
                writer.write(Image.new('RGB', (96, 72)), frame._replace(
                    sounds=[*frame.sounds, *frame.sounds]))

    with pytest.raises(InputError, match=r'b\.mp4 cannot be written: Invalid'):
        write()
    assert sorted(os.listdir(tmp_path)) == ['a.mp4', 'b.part.mp4']


def test_numbered_frames_are_a_film(tmp_path):
    """A damaged one, a large one, one of another size and a gap."""
    for i in 1, 2, 4, 5, 6, 8:
        Image.new('RGB', (40, 30), (i, 0, 0)).save(tmp_path / f'{i:03}.png')
    (tmp_path / '002.png').write_bytes(b'no image')
    Image.new('RGB', (50, 30)).save(tmp_path / '004.png')
    Image.new('RGB', (400, 300)).save(tmp_path / '005.png')
    (tmp_path / '06.png').write_bytes((tmp_path / '006.png').read_bytes())
    (tmp_path / '007.jpg').touch()
    with open_video(tmp_path / '%03d.png', max_pixels=10_000) as video:
        frames = list(video.frames)
    assert [frame.image[0, 0, 0] for frame in frames] == [1, 6, 6, 8]
    assert video.n_frames == 7
    assert video.n_damaged == 3
    assert video.losses == [f'{tmp_path}/002.png cannot be read as an image: '
                            'unknown format']


def test_a_film_of_too_many_pixels(tmp_path):
    write_film(tmp_path / 'a.mp4', pictures(2))
    with pytest.raises(InputError, match='it has 96 x 72 pixels, and at most'):
        open_video(tmp_path / 'a.mp4', 1000).__enter__()
