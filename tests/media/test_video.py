"""Films: their times, colours, sound and damage; what is written of them."""
import json
import os
import resource
import signal
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import start_script
from fixture_images import patches, write_film
from PIL import Image

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


def copied(source, target):
    """Write a video's frames as they are, as an overlay of opacity 0 does;
    return both ends.
    """
    with open_video(source) as video, writing(target, video) as writer:
        for frame in video.frames:
            writer.write(None if frame.image is None else Image.fromarray(
                frame.image.transpose(1, 2, 0).astype(np.uint8)), frame)
    return video, writer


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
    copied(tmp_path / 'a.mp4', tmp_path / 'b.mp4')
    before, after = (planes(tmp_path / name) for name in ('a.mp4', 'b.mp4'))
    for a, b in zip(before, after, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 1.5  # what coding leaves
    with av.open(str(tmp_path / 'b.mp4')) as container:
        context = container.streams.video[0].codec_context
        assert {name: int(getattr(context, name)) for name in colors} == colors


def test_times_come_back(tmp_path):
    """As a phone's or a recorded screen's, with pauses."""
    times = [0, 40, 80, 1000, 1040, 5000, 15_000]
    write_film(tmp_path / 'a.mkv', pictures(7), times=times)
    copied(tmp_path / 'a.mkv', tmp_path / 'b.mp4')
    with av.open(str(tmp_path / 'b.mp4')) as container:
        found = [1000 * frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(found, times, atol=1)


def sound_of(path):
    with av.open(str(path)) as container:
        return [(packet.pts * packet.time_base, bytes(packet))
                for packet in container.demux(audio=0)
                if packet.dts is not None]


def test_sound_is_copied(tmp_path):
    write_film(tmp_path / 'a.mp4', pictures(6), sound='aac')
    video, writer = copied(tmp_path / 'a.mp4', tmp_path / 'b.mp4')
    assert video.losses == writer.losses == []
    before, after = (sound_of(tmp_path / name) for name in ('a.mp4', 'b.mp4'))
    assert len(before) > 20
    assert [data for _, data in before] == [data for _, data in after]
    np.testing.assert_allclose(*([float(at) for at, _ in each]
                                 for each in (before, after)), atol=1e-3)


def test_sound_that_mp4_has_not(tmp_path):
    write_film(tmp_path / 'a.mkv', pictures(2), sound='wavpack')
    _, writer = copied(tmp_path / 'a.mkv', tmp_path / 'b.mp4')
    assert writer.losses == ['the sound is dropped: MP4 has no wavpack']
    with av.open(str(tmp_path / 'b.mp4')) as container:
        assert [each.type for each in container.streams] == ['video']


def test_says_what_ten_bits_lose(tmp_path):
    write_film(tmp_path / 'a.mp4', pictures(2), pix_fmt='yuv420p10le',
               colorspace=9, color_primaries=9, color_trc=16, color_range=1)
    with open_video(tmp_path / 'a.mp4') as video:
        assert len(list(video.frames)) == 2
        assert video.losses == [
            '10 bits become 8, and HDR (PQ) is kept as a tag']


def test_pixels_keep_their_aspect(tmp_path):
    write_film(tmp_path / 'a.mp4', pictures(2),
               sample_aspect_ratio=Fraction(4, 3))
    copied(tmp_path / 'a.mp4', tmp_path / 'b.mp4')
    with av.open(str(tmp_path / 'b.mp4')) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize('ending', ['.mts', '.3gp', '.ts', '.m2ts', '.mov',
                                    '.avi', '.mkv', '.flv', '.MP4'])
def test_endings_of_films(tmp_path, ending):
    write_film(tmp_path / f'a{ending}', pictures(3))
    (each,), problems, _ = find_inputs([str(tmp_path / f'a{ending}')])
    assert each.is_video
    assert problems == []
    with open_video(each.path) as video:
        assert len(list(video.frames)) == 3


def test_damage_costs_its_frames(tmp_path):
    write_film(tmp_path / 'a.ts', pictures(40))
    data = bytearray((tmp_path / 'a.ts').read_bytes())
    middle = len(data) // 2
    data[middle:middle + 2000] = bytes(2000)
    (tmp_path / 'a.ts').write_bytes(data)
    video, _ = copied(tmp_path / 'a.ts', tmp_path / 'b.mp4')
    n_frames = len(planes(tmp_path / 'b.mp4'))
    assert 20 <= n_frames <= 40
    assert n_frames < 40 or video.n_damaged


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
    with pytest.raises(InputError, match='numbered images: name a folder'):
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
            len(list(out.glob('.deeplab*.tmp/*.png'))) < 10):
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
            copied(tmp_path / 'a.mp4', tmp_path / 'b.mp4')
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
