"""Read and write videos through PyAV, which contains FFmpeg."""
import contextlib
import dataclasses
import fractions
import io
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from media import MAX_PIXELS
from media.images import check_size, read_image, to_array
from media.inputs import frames_of, is_numbered
from media.outputs import MARK, check_frames, remove_result, write_image
from models.utils.errors import InputError, describe
from models.utils.files import atomic_folder, atomic_path, part_path

SEQUENCE_RATE = fractions.Fraction(25)  # frames a second, of numbered images
# FFmpeg would follow a playlist, under any name, to other files and addresses.
ONLY_VIDEOS = {
    'protocol_whitelist': 'file',
    'format_whitelist': 'mov,matroska,avi,mpeg,mpegts,mpegvideo,asf,mxf,gxf,'
                        'ogg,flv,dv,h261,h263,h264,hevc,ivf,m4v,mjpeg,nut,obu,'
                        'vc1,vvc,wtv,yuv4mpegpipe'}
# Numbers of ITU-T H.273 and FFmpeg that say nothing.
UNSAID = {'colorspace': (0, 2), 'color_range': (0,), 'color_primaries': (0, 2),
          'color_trc': (0, 2)}
SD_MATRIX, LIMITED_RANGE, FULL_RANGE = 5, 1, 2
RGB = 'rgb24'
# What is written so far can be played even where a full disk takes the end;
# the whole file is an ordinary MP4 (libavformat/movenc.c).
MP4 = {'movflags': 'hybrid_fragmented+delay_moov', 'frag_duration': '1000000',
       'movie_timescale': '90000'}  # of the first frame's time
FINEST = fractions.Fraction(1, 90_000)  # second; an MP4 has 32 bits for times
CLOCK = 10  # seconds: what begins later has the times of a clock, as TV has
SHORT = 0.1  # seconds that may be missing at the end
STEP_BACK = 0.25  # seconds: a longer one is where recordings were joined
FILTERS = {'aac': 'aac_adtstoasc'}  # FFmpeg's, for sound in MP4
AAC_RATE = 48_000  # samples a second
NOWHERE = io.FileIO(os.devnull, 'w')  # one, as PyAV would close none
FRAME_DURATION = 1 << 8  # libavcodec/avcodec.h, AV_CODEC_FLAG_FRAME_DURATION
TS_DISCONT, GENPTS = 0x200, 1  # libavformat/avformat.h, AVFMT_TS_DISCONT, ...


class Frame(NamedTuple):
    """An image of a video, with the sound since the one before.

    `image` is upright, uint8, (3, H, W), RGB; None: only sound
    follows. Time and duration are in units of the video's `time_base`; each
    time is later than the one before.
    """

    image: np.ndarray | None
    time: int = 0
    duration: int = 1
    sounds: Sequence[av.Packet] = ()  # as MP4 takes them


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
def open_video(source, max_pixels=MAX_PIXELS, name=None, with_sound=True):
    """Open a video, or numbered images such as frame_%04d.png; give a `Video`.

    `source` is a path, or a whole file as bytes; `name` is for messages. Raise
    InputError where it cannot be read, or has more than `max_pixels`.
    """
    name = name or str(source)
    if not isinstance(source, bytes) and is_numbered(source):
        yield _numbered(source, max_pixels)
        return
    try:
        container = _opened(source)
    except FFmpegError as error:
        raise InputError(f'{name} cannot be read as a video: {error.strerror}'
                         ) from None
    video = _in_file(name, source, container, max_pixels, with_sound)
    try:
        yield video
    finally:
        # While a thread still reads, FFmpeg would crash: nothing is closed.
        with contextlib.suppress(ValueError):
            video.frames.close()
            container.close()


def _opened(source):
    return av.open(io.BytesIO(source) if isinstance(source, bytes) else
                   f'file:{source}', options=ONLY_VIDEOS,
                   metadata_errors='ignore')


def _numbered(path, max_pixels):
    paths = frames_of(path)
    if not paths:
        raise InputError(f'{path}: no file matches')
    video = Video(str(path), n_frames=len(paths))

    def frames():
        shape = None
        for i, each in enumerate(paths):
            try:
                image = read_image(each, max_pixels, dtype=np.uint8)
                shape = shape or image.shape
                if image.shape != shape:
                    raise InputError(f'{each} has another size than the first')
                yield Frame(image, i, 1)
            except (InputError, OSError) as error:
                video.n_damaged += 1
                if not video.losses:  # one stands for all
                    video.losses.append(describe(error))

    video.frames = frames()
    return video


def _in_file(name, source, container, max_pixels, with_sound):
    stream = next((
        each for each in container.streams.video if each.codec_context and not
        each.disposition & Disposition.attached_pic), None)
    if stream is None or stream.codec_context.format is None:
        raise InputError(f'{name} has no video track that can be read')
    context = stream.codec_context
    check_size(context.width, context.height, max_pixels)
    stream.thread_type = 'AUTO'
    container.flags &= ~GENPTS  # those of B-frames would be wrong
    start = (container.start_time or 0) / av.time_base
    if start < CLOCK or not container.format.flags & TS_DISCONT:
        start = 0
    sounds = {each: sound for each in container.streams.audio
              if with_sound and (sound := _sound(source, each, start))}
    colors = {name: value for name, unsaid in UNSAID.items() if (
        value := int(getattr(context, name) or 0)) not in unsaid}
    losses = [f'track {each.index} ({each.type}) is left out'
              for each in container.streams if each not in [stream, *sounds]]
    losses += [f'track {each.index} (audio) becomes AAC: MP4 has no '
               f'{each.codec_context.name}'
               for each, sound in sounds.items() if sound.layout]
    bits = max(part.bits for part in context.format.components)
    if bits > 8:
        losses.append(f'{bits} bits become 8')
    n_frames = stream.frames
    if container.format.name.startswith('mov'):  # it may show some of them
        n_frames = min(n_frames, len(stream.index_entries))
    video = Video(name, stream.guessed_rate or SEQUENCE_RATE,
                  max(stream.time_base, FINEST), n_frames,
                  stream.sample_aspect_ratio or None, colors,
                  [sound.stream for sound in sounds.values()], losses)
    video.frames = _frames(video, container, stream, sounds, start)
    return video


def _frames(video, container, stream, sounds, start):
    """Yield each `Frame` of a file."""
    shape, ready, n_read, n_corrupt, end = None, [], 0, 0, 0
    times, unit = Times(video.time_base, start), stream.time_base
    for packet in _packets(container, video.losses):
        end = max(end, _end(packet))
        if packet.stream in sounds:
            ready += sounds[packet.stream].packets(packet)
        if packet.stream is not stream:
            continue
        if packet.is_corrupt:
            if n_read < video.n_frames:
                continue  # the file ends within it
            n_corrupt += 1
        if packet.size:
            n_read += 1
            if unit * video.rate == 1:  # some may be skipped, as in AVI
                n_read = max(n_read, packet.dts + packet.duration)
        for frame, pixels, quarters in _decoded(packet, video):
            if shape is None and quarters % 2 and video.aspect:
                video.aspect = 1 / video.aspect
            shape = shape or pixels.shape
            duration = (frame.duration or 0) * unit or 1 / video.rate
            time = times.next(frame.dts if frame.pts is None else frame.pts,
                              unit, duration)
            if frame.is_corrupt or pixels.shape != shape:
                video.n_damaged += 1
            else:
                yield Frame(to_array(pixels), time,
                            round(duration / video.time_base), ready)
                ready = []
    # A length that FFmpeg has guessed is the stream's as well.
    length = 0 if stream.duration else (container.duration or 0) / av.time_base
    # Where recordings are joined, FFmpeg takes a packet for corrupt.
    video.n_damaged = max(video.n_damaged, n_corrupt - times.n_joints)
    video.losses += _missing(  # other formats have pauses that are meant
        video, times, n_read, container.format.flags & TS_DISCONT
        and video.n_damaged, length - end)
    video.losses += [f'{sound.n_damaged} packets of track {each.index} (audio) '
                     'could not be read'
                     for each, sound in sounds.items() if sound.n_damaged]
    if ready:
        yield Frame(None, sounds=ready)


def _packets(container, losses):
    """Yield the packets, the last of each stream an empty one."""
    try:
        yield from container.demux()
    except FFmpegError as error:
        losses.append(f'it cannot be read to its end: {error.strerror}')
        for stream in container.streams:
            packet = av.Packet()
            packet.stream = stream
            yield packet


def _end(packet):
    """Return the time at which a packet ends, in seconds."""
    time = packet.dts if packet.pts is None else packet.pts
    return 0 if time is None else packet.time_base * (
        time + (packet.duration or 0))


def _missing(video, times, n_read, is_damaged, seconds):
    """Return a line, or none, on frames that should have come: by a header's
    count; by its length, to which `seconds` are missing; or a pause by damage.
    """
    n_missing, about = video.n_frames - n_read, ''
    pause = times.longest * video.time_base
    if pause and seconds > max(SHORT, 2 * pause):
        share = seconds / (max(1, times.end) * video.time_base)
        n_missing, about = round(n_read * share), 'about '
    elif is_damaged and pause * video.rate > 2:
        n_missing, about = round(pause * video.rate) - 1, 'about '
    return [f'{about}{n_missing} of {n_read + n_missing} frames are missing'
            ] if n_missing > 0 else []


class Times:
    """Makes the times of a track rise, in units of `time_base`.

    What has no time comes right after the one before, as does all behind a long
    step back. `start`, in seconds, becomes 0.
    """

    def __init__(self, time_base, start=0):
        self._time_base, self._offset = time_base, -round(start / time_base)
        self._last, self.end = -math.inf, 0
        self.longest = self.n_joints = 0  # longest step; long ones back

    def next(self, time, unit, duration):
        """Return a time, of any unit or None; the duration is in seconds."""
        time = self.end if time is None else self._offset + round(
            time * unit / self._time_base)
        if time < self._last - STEP_BACK / self._time_base:
            self.n_joints += 1
            self._offset += self.end - time
            time = self.end
        time = max(time, self._last + 1)
        if self._last > -math.inf:
            self.longest = max(self.longest, time - self._last)
        self._last, self.end = time, time + round(duration / self._time_base)
        return time


class Sound:
    """A track of sound for MP4: copied, or as AAC of a layout of channels.

    Each packet is tried in an MP4 that nobody keeps: none can cost the video.
    Raise FFmpegError or ValueError where MP4 has no such sound.
    """

    def __init__(self, source, start=0, layout=None):
        self.trial = av.open(NOWHERE, 'w', format='mp4', options=MP4)
        self.layout, self.n_damaged, self._resamplers = layout, 0, {}
        if layout:
            self.stream = self.trial.add_stream('aac', AAC_RATE, layout=layout)
        else:
            self.stream = self.trial.add_stream_from_template(source)
            self._filter = av.BitStreamFilterContext(
                FILTERS.get(source.codec_context.name, 'null'), source)
        self.trial.start_encoding()
        self._times = Times(self.stream.time_base, start)

    def packets(self, packet):
        """Return what becomes of a packet; the last one is empty."""
        packets, unit = [], self.stream.time_base
        try:
            for each in (self._encoded(packet) if self.layout else
                         self._filter.filter(packet)):
                each.rescale_ts(av.AVRational(unit))
                each.pts = each.dts = self._times.next(each.dts, unit,
                                                       each.duration * unit)
                each.stream = self.stream
                self.trial.mux(each)
                packets.append(each)
        except (FFmpegError, ValueError):
            self.n_damaged += 1
        return packets

    def _encoded(self, packet):
        packets = []
        for frame in packet.decode():
            kind = frame.format.name, frame.layout.name, frame.rate
            resampler = self._resamplers.setdefault(kind, av.AudioResampler(
                'fltp', self.layout, AAC_RATE))
            for each in resampler.resample(frame):
                packets += self.stream.encode(each)
        return packets if packet.size else packets + self.stream.encode()


def _sound(source, stream, start):
    """Return the `Sound` of a track if MP4 takes a packet of it, else None."""
    for layout in ((None, stream.layout.name, 'stereo')
                   if stream.codec_context else ()):
        with contextlib.suppress(FFmpegError, ValueError), _opened(
                source) as container:
            tried = container.streams[stream.index]
            sound = Sound(tried, layout=layout)
            if any(map(sound.packets, container.demux(tried))):
                sound.trial.close()  # some sound is refused only here
                return Sound(stream, start, layout)
    return None


def _decoded(packet, video):
    """Return the frames of a packet, each with what `_upright` returns."""
    try:
        return [(frame, *_upright(frame)) for frame in packet.decode()]
    except FFmpegError:
        video.n_damaged += 1
        return []


def _upright(frame):
    """Turn the pixels as the display matrix says, which phones write (FFmpeg,
    libavutil/display.h); return them and the quarter turns, clockwise.
    """
    pixels, quarters = frame.to_ndarray(format=RGB), 0
    try:
        matrix = frame.side_data.get('DISPLAYMATRIX')
    except ValueError:  # PyAV does not know all kinds, as EXIF
        matrix, quarters = None, -round(frame.rotation / 90)
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        if a * d < b * c:
            pixels, a, b = pixels[:, ::-1], -a, -b
        quarters = round(math.atan2(b, a) / (math.pi / 2))
    return np.rot90(pixels, -quarters), quarters


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
    remove_result(part)  # of an earlier run


def _move(source, target):
    if source.is_dir():
        check_frames(target)
        remove_result(target)
    os.replace(source, target)


class ImagesWriter:
    """Writes numbered images into a folder, without sound."""

    def __init__(self, folder, video):
        self._folder, self.n_frames = folder, 0

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
                                  options=MP4)
        self._container.metadata['comment'] = MARK
        self._video, self._stream, self.n_frames = video, None, 0
        self._sounds = {each: self._container.add_stream_from_template(each)
                        for each in video.sounds}

    def write(self, image, frame):
        """Add a PIL.Image.Image, or None, in the place of a frame that was
        read, and the frame's sound.
        """
        if image is not None:
            self._write_image(np.asarray(image), frame)
        for packet in frame.sounds if self.n_frames else ():
            source = packet.stream
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
        converted.pts = frame.time
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
        # With B-frames, an MP4 would end too early.
        stream.options = {'crf': '20', 'preset': 'fast', 'bf': '0'}
        context = stream.codec_context
        context.time_base = self._video.time_base
        context.flags |= FRAME_DURATION
        if self._video.aspect:
            context.sample_aspect_ratio = self._video.aspect
        for name, value in self._video.colors.items():
            setattr(context, name, value)
        return stream
