"""Read and write videos through PyAV, which contains FFmpeg."""
import contextlib
import dataclasses
import fractions
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError

from media import MAX_PIXELS
from media.images import check_size, read_image, to_array
from media.inputs import frames_of, is_numbered
from media.outputs import MARK, remove_frames, write_image
from models.utils.errors import InputError, describe
from models.utils.files import atomic_folder, atomic_path, part_path

SEQUENCE_RATE = fractions.Fraction(25)  # frames a second, of numbered images
# FFmpeg would follow a playlist, under any name, to other files and addresses.
ONLY_VIDEOS = {
    'protocol_whitelist': 'file',
    'format_whitelist': 'mov,matroska,avi,mpeg,mpegts,mpegvideo,asf,mxf,ogg,'
                        'flv'}
# Numbers of ITU-T H.273 and FFmpeg that say nothing.
UNSAID = {'colorspace': (0, 2), 'color_range': (0,), 'color_primaries': (0, 2),
          'color_trc': (0, 2)}
SD_MATRIX, LIMITED_RANGE, FULL_RANGE = 5, 1, 2
RGB = 'rgb24'
# What is written so far can be played even where a full disk takes the end;
# the whole file is an ordinary MP4 (libavformat/movenc.c).
PLAYABLE_PARTS = {'movflags': 'hybrid_fragmented+delay_moov',
                  'frag_duration': '1000000'}
HDR = {16: 'PQ', 18: 'HLG'}  # transfer functions of H.273
FRAME_DURATION = 1 << 8  # libavcodec/avcodec.h, AV_CODEC_FLAG_FRAME_DURATION


class Frame(NamedTuple):
    """An image of a video, with the sound since the one before.

    `image` is upright, float32, (3, H, W), RGB in [0, 255]; None: only sound
    follows. Time and duration are in units of the video's `time_base`; a
    duration of 0 is unknown.
    """

    image: np.ndarray | None
    time: int = 0
    duration: int = 0
    sounds: Sequence[av.Packet] = ()


@dataclasses.dataclass
class Video:
    """A video that is being read."""

    name: str  # for messages
    rate: fractions.Fraction = SEQUENCE_RATE  # frames a second, on average
    time_base: fractions.Fraction = 1 / SEQUENCE_RATE  # seconds of a unit
    n_frames: int = 0  # 0: unknown
    aspect: fractions.Fraction | None = None  # width of a pixel / its height
    # Names as in UNSAID -> numbers of ITU-T H.273, where they are said.
    colors: dict[str, int] = dataclasses.field(default_factory=dict)
    sounds: list[av.audio.AudioStream] = dataclasses.field(default_factory=list)
    # What a result will not have, a line each; frames that cannot be read.
    losses: list[str] = dataclasses.field(default_factory=list)
    n_damaged: int = 0
    frames: Iterator[Frame] | None = None


@contextlib.contextmanager
def open_video(path, max_pixels=MAX_PIXELS):
    """Open a video, or numbered images such as frame_%04d.png; give a `Video`.

    Raise InputError where it cannot be read, or has more than `max_pixels`.
    """
    if is_numbered(path):
        yield _numbered(path, max_pixels)
        return
    try:
        container = av.open(f'file:{path}', options=ONLY_VIDEOS)
    except FFmpegError as error:
        raise InputError(f'{path} cannot be read as a video: '
                         f'{error.strerror}') from None
    video = None
    try:
        video = _in_file(path, container, max_pixels)
        yield video
    finally:
        # While a thread still reads, FFmpeg would crash: nothing is closed.
        with contextlib.suppress(ValueError):
            if video is not None:
                video.frames.close()
            container.close()


def _numbered(path, max_pixels):
    paths = frames_of(path)
    if not paths:
        raise InputError(f'{path}: no file matches')
    video = Video(str(path), n_frames=len(paths))

    def frames():
        shape = None
        for i, each in enumerate(paths):
            try:
                image = read_image(each, max_pixels)
                shape = shape or image.shape
                if image.shape != shape:
                    raise InputError(f'{each} has another size than the first')
            except (InputError, OSError) as error:
                video.n_damaged += 1
                if not video.losses:  # one stands for all
                    video.losses.append(describe(error))
                continue
            yield Frame(image, i, 1)

    video.frames = frames()
    return video


def _in_file(path, container, max_pixels):
    if not container.streams.video:
        raise InputError(f'{path} has no video track')
    stream, sounds = container.streams.video[0], list(container.streams.audio)
    stream.thread_type = 'AUTO'
    context = stream.codec_context
    check_size(context.width, context.height, max_pixels)
    colors = {name: value for name, unsaid in UNSAID.items() if (
        value := int(getattr(context, name) or 0)) not in unsaid}
    losses = [f'track {each.index} ({each.type}) is left out'
              for each in container.streams if each not in [stream, *sounds]]
    bits = max(part.bits for part in context.format.components)
    if bits > 8:
        transfer = HDR.get(colors.get('color_trc'))
        losses.append(f'{bits} bits become 8' + (
            f', and HDR ({transfer}) is kept as a tag' if transfer else ''))
    video = Video(str(path), stream.average_rate or SEQUENCE_RATE,
                  stream.time_base, stream.frames,
                  stream.sample_aspect_ratio or None, colors, sounds, losses)
    video.frames = _frames(video, container, stream)
    return video


def _frames(video, container, stream):
    """Yield each `Frame` of a file."""
    shape, sounds = None, []
    try:
        for packet in container.demux([stream, *video.sounds]):
            if packet.stream is not stream:
                if packet.dts is not None:  # not the last, empty one
                    sounds.append(packet)
                continue
            for frame in _decoded(packet, video):
                pixels, quarters = _upright(frame)
                if shape is None and quarters % 2 and video.aspect:
                    video.aspect = 1 / video.aspect
                shape = shape or pixels.shape
                if frame.is_corrupt or frame.pts is None or (
                        pixels.shape != shape):
                    video.n_damaged += 1
                else:
                    yield Frame(to_array(pixels), frame.pts,
                                frame.duration or 0, sounds)
                    sounds = []
    except FFmpegError as error:
        video.losses.append('it cannot be read to its end: '
                            f'{error.strerror}')
    if sounds:
        yield Frame(None, sounds=sounds)


def _decoded(packet, video):
    try:
        return packet.decode()
    except FFmpegError:
        video.n_damaged += 1
        return []


def _upright(frame):
    """Turn the pixels as the display matrix says, which phones write (FFmpeg,
    libavutil/display.h); return them and the quarter turns, clockwise.
    """
    pixels, quarters = frame.to_ndarray(format=RGB), 0
    for data in frame.side_data:
        if data.type.name == 'DISPLAYMATRIX':
            a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
            if a * d < b * c:
                pixels, a, b = pixels[:, ::-1], -a, -b
            quarters = round(math.atan2(b, a) / (math.pi / 2))
            pixels = np.rot90(pixels, -quarters)
    return pixels, quarters


@contextlib.contextmanager
def writing(path, video, replace=True, as_images=False):
    """Give a writer, `VideoWriter` or `ImagesWriter`, of a file or folder that
    appears when it is whole.

    Where the body does not come to its end, because of Ctrl-C or a full disk
    say, what was done appears under the name that `part_path` gives.
    """
    part = part_path(path)
    if as_images:
        path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (atomic_folder(path) if as_images else
          atomic_path(path, replace, part)) as temporary:
        writer = (ImagesWriter if as_images else VideoWriter)(temporary, video)
        try:
            yield writer
            if not writer.n_frames:
                raise InputError(f'{video.name}: the video has no frame')
            writer.finish()
            if as_images:
                if not replace and path.exists():
                    raise InputError(f'{path} has appeared meanwhile, and is '
                                     'left as it is')
                _move(temporary, path)
        except BaseException as error:
            with contextlib.suppress(Exception):  # the first error counts
                writer.finish()
            if writer.n_frames:
                _move(temporary, part)
            if isinstance(error, FFmpegError):
                raise InputError(f'{path} cannot be written: {error.strerror}'
                                 ) from None
            raise
    if as_images:  # those of an earlier run
        remove_frames(part)
    else:
        part.unlink(missing_ok=True)


def _move(source, target):
    if source.is_dir():
        remove_frames(target)
    os.replace(source, target)


class ImagesWriter:
    """Writes numbered images into a folder, without sound."""

    def __init__(self, folder, video):
        self._folder, self.n_frames, self.losses = folder, 0, []

    def write(self, image, frame):
        if image is not None:
            write_image(self._folder / f'{self.n_frames + 1:06}.png', image)
            self.n_frames += 1

    def finish(self):
        pass


class VideoWriter:
    """Writes an MP4 (H.264) with the times, colours and sound of a video.

    All images have one size; an odd last row or column is doubled, as the
    format needs even sides. Use `writing`.
    """

    def __init__(self, path, video):
        self._container = av.open(f'file:{path}', 'w', format='mp4',
                                  options=PLAYABLE_PARTS)
        self._container.metadata['comment'] = MARK
        self._video, self._stream, self._last_time = video, None, -1
        self.n_frames, self.losses = 0, []
        self._sounds = {each: self._sound(each) for each in video.sounds}

    def _sound(self, stream):
        """Return the copy of a stream of sound, or None where MP4 has none."""
        name = stream.codec_context.name if stream.codec_context else 'unknown'
        with contextlib.suppress(ValueError):
            if name in self._container.supported_codecs:
                return self._container.add_stream_from_template(stream)
        self.losses.append(f'the sound is dropped: MP4 has no {name}')
        return None

    def write(self, image, frame):
        """Add a PIL.Image.Image, or None, in the place of a frame that was
        read, and the frame's sound.
        """
        if image is not None:
            self._write_image(np.asarray(image), frame)
        for packet in frame.sounds if self.n_frames else ():
            source = packet.stream
            if self._sounds[source] is not None:
                packet.stream = self._sounds[source]
                self._container.mux(packet)
                packet.stream = source  # for other writers

    def _write_image(self, pixels, frame):
        pixels = np.pad(pixels, [(0, side % 2) for side in pixels.shape[:2]]
                        + [(0, 0)], mode='edge')
        if self._stream is None:
            self._stream = self._h264_stream(*pixels.shape[:2])
        colors = self._video.colors
        matrix = colors.get('colorspace', SD_MATRIX)
        converted = av.VideoFrame.from_ndarray(pixels, format=RGB).reformat(
            format='yuv420p', src_color_range=FULL_RANGE, src_colorspace=matrix,
            dst_colorspace=matrix,
            dst_color_range=colors.get('color_range', LIMITED_RANGE))
        converted.pts = self._last_time = max(frame.time, self._last_time + 1)
        converted.time_base = self._video.time_base
        converted.duration = frame.duration
        self._container.mux(self._stream.encode(converted))
        self.n_frames += 1

    def finish(self):
        try:
            if self._stream is not None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()

    def _h264_stream(self, height, width):
        stream = self._container.add_stream('libx264', rate=self._video.rate)
        stream.height, stream.width = height, width
        stream.pix_fmt = 'yuv420p'
        stream.options = {'crf': '20', 'preset': 'fast'}
        context = stream.codec_context
        context.time_base = self._video.time_base
        context.flags |= FRAME_DURATION
        if self._video.aspect:
            context.sample_aspect_ratio = self._video.aspect
        for name, value in self._video.colors.items():
            setattr(context, name, value)
        return stream
