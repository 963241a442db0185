"""Read and write videos through PyAV, which contains FFmpeg."""
import contextlib
import fractions
import math
import os
import threading
import typing

import numpy as np

from media.images import MAX_PIXELS, check_size, read_image, to_array
from media.inputs import frames_of, is_numbered
from media.outputs import MARK
from models.utils.errors import InputError, describe
from models.utils.files import atomic_path, part_path

SEQUENCE_RATE = 25  # frames a second, of numbered images
# FFmpeg would follow a playlist, under any name, to other files and addresses.
ONLY_VIDEOS = {
    'protocol_whitelist': 'file',
    'format_whitelist': 'mov,matroska,avi,mpeg,mpegts,mpegvideo,asf,mxf,ogg,'
                        'flv'}
# Numbers of ITU-T H.273 and FFmpeg, and those of what is not said.
COLORS = 'colorspace', 'color_range', 'color_primaries', 'color_trc'
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
PATIENCE = 2  # seconds for a read to end before the video is closed


class Frame(typing.NamedTuple):
    """An image of a video.

    `image` is upright, float32, (3, H, W), RGB in [0, 255]; time and duration
    are in units of the video's `time_base`; a duration of 0 is unknown.
    """

    image: np.ndarray
    time: int
    duration: int = 0


class Video:
    """A video that is being read.

    Attributes:
        name (str): for messages.
        rate (fractions.Fraction or int): frames a second, on average.
        time_base (fractions.Fraction): seconds of a unit of time.
        n_frames (int): 0 if unknown.
        colors (dict): colorspace, color_range, color_primaries and color_trc,
            numbers of ITU-T H.273, where they are said.
        aspect (fractions.Fraction or None): width of a pixel / its height.
        sounds (list of av.audio.AudioStream): to be copied.
        losses (list of str): what a result will not have, a line each.
        n_damaged (int): frames that could not be read so far.
    """

    def __init__(self, name):
        self.name, self.rate, self.n_frames = name, SEQUENCE_RATE, 0
        self.time_base = fractions.Fraction(1, SEQUENCE_RATE)
        self.colors, self.aspect, self.sounds = {}, None, []
        self.losses, self.n_damaged = [], 0

    def parts(self):
        """Yield each `Frame`, and packets of sound (av.Packet), in order."""
        raise NotImplementedError


class _Numbered(Video):
    """Numbered images, such as frame_%04d.png."""

    def __init__(self, path, max_pixels):
        super().__init__(str(path))
        self._paths, self._max_pixels = frames_of(path), max_pixels
        if not self._paths:
            raise InputError(f'{path}: no file matches')
        self.n_frames = len(self._paths)

    def parts(self):
        shape = None
        for i, path in enumerate(self._paths):
            try:
                image = read_image(path, self._max_pixels)
            except (InputError, OSError) as error:
                self.n_damaged += 1
                if not self.losses:  # one stands for all
                    self.losses.append(describe(error))
                continue
            shape = shape or image.shape
            if image.shape == shape:
                yield Frame(image, i, 1)
            else:
                self.n_damaged += 1


class _File(Video):
    """A video in a file, opened by PyAV as `container`.

    A thread may still read when it is closed: FFmpeg would crash.
    """

    def __init__(self, path, container, max_pixels):
        super().__init__(str(path))
        if not container.streams.video:
            raise InputError(f'{path} has no video track')
        self._container, self._lock = container, threading.Lock()
        self._is_open = True
        self._stream = stream = container.streams.video[0]
        stream.thread_type = 'AUTO'
        context = stream.codec_context
        check_size(context.width, context.height, max_pixels)
        self.rate = stream.average_rate or SEQUENCE_RATE
        self.time_base = stream.time_base
        self.n_frames = stream.frames
        self.aspect = stream.sample_aspect_ratio or None
        self.colors = {name: value for name in COLORS if (
            value := int(getattr(context, name) or 0)) not in UNSAID[name]}
        self.sounds = list(container.streams.audio)
        self._tell_losses(context)

    def close(self):
        """Close the file, unless a read hangs, which then keeps it."""
        self._is_open = False
        if self._lock.acquire(timeout=PATIENCE):
            self._container.close()
            self._lock.release()

    def _tell_losses(self, context):
        bits = max(part.bits for part in context.format.components)
        transfer = HDR.get(self.colors.get('color_trc'))
        if bits > 8:
            self.losses.append(f'{bits} bits become 8' + (
                f', and HDR ({transfer}) is kept as a tag' if transfer else ''))
        for stream in self._container.streams:
            if stream is not self._stream and stream not in self.sounds:
                self.losses.append(f'track {stream.index} ({stream.type}) is '
                                   'left out')

    def parts(self):
        size = None
        for packet in self._packets():
            if packet.stream is not self._stream:
                if packet.dts is not None:  # not the last, empty one
                    yield packet
                continue
            for frame in self._decoded(packet):
                pixels, quarters = _upright(frame)
                if size is None:
                    size = pixels.shape
                    if quarters % 2 and self.aspect:
                        self.aspect = 1 / self.aspect
                if frame.is_corrupt or frame.pts is None or (
                        pixels.shape != size):
                    self.n_damaged += 1
                else:
                    yield Frame(to_array(pixels), frame.pts,
                                frame.duration or 0)

    def _packets(self):
        import av
        packets = self._container.demux([self._stream, *self.sounds])
        try:
            while (packet := self._while_open(next, packets, None)) is not None:
                yield packet  # the last, empty ones as well
        except av.error.FFmpegError as error:
            self.losses.append(f'it cannot be read to its end: '
                               f'{error.strerror}')

    def _decoded(self, packet):
        import av
        try:
            return self._while_open(packet.decode) or []
        except av.error.FFmpegError:
            self.n_damaged += 1
            return []

    def _while_open(self, read, *arguments):
        with self._lock:
            return read(*arguments) if self._is_open else None


@contextlib.contextmanager
def open_video(path, max_pixels=MAX_PIXELS):
    """Open a video, or numbered images such as frame_%04d.png.

    Yields:
        Video: it.

    Raises:
        InputError: it cannot be read, or has more than `max_pixels`.
    """
    if is_numbered(path):
        yield _Numbered(path, max_pixels)
        return
    import av
    try:
        container = av.open(f'file:{path}', options=ONLY_VIDEOS)
    except av.error.FFmpegError as error:
        raise InputError(f'{path} cannot be read as a video: '
                         f'{error.strerror}') from None
    try:
        video = _File(path, container, max_pixels)
    except BaseException:
        container.close()
        raise
    try:
        yield video
    finally:
        video.close()


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


class VideoWriter:
    """Writes an MP4 (H.264) with the times, colours and sound of a video.

    All images have one size; an odd last row or column is doubled, as the
    format needs even sides. Use `writing`.
    """

    def __init__(self, path, video):
        import av
        self._container = av.open(f'file:{path}', 'w', format='mp4',
                                  options=PLAYABLE_PARTS)
        self._container.metadata['comment'] = MARK
        self._video = video
        self._stream, self._size, self._last = None, None, -1
        self._sounds = {each: self._sound(each) for each in video.sounds}
        self._waiting = []  # packets of sound before the first frame
        self.n_frames = 0

    def _sound(self, stream):
        """Return the copy of a stream of sound, or None where MP4 has none."""
        name = stream.codec_context.name if stream.codec_context else 'unknown'
        try:
            if name in self._container.supported_codecs:
                return self._container.add_stream_from_template(stream)
        except ValueError:
            pass
        self._video.losses.append(f'the sound is dropped: MP4 has no {name}')
        return None

    def write(self, image, frame):
        """Add a PIL.Image.Image at the time of a frame that was read."""
        import av
        pixels = np.asarray(image)
        if self._stream is None:
            self._size = pixels.shape
            self._stream = self._h264_stream()
            for packet in self._waiting:
                self._copy(packet)
        even = np.pad(pixels, [(0, side % 2) for side in pixels.shape[:2]]
                      + [(0, 0)], mode='edge')
        colors = self._video.colors
        picture = av.VideoFrame.from_ndarray(even, format=RGB).reformat(
            format='yuv420p', src_color_range=FULL_RANGE,
            src_colorspace=colors.get('colorspace', SD_MATRIX),
            dst_colorspace=colors.get('colorspace', SD_MATRIX),
            dst_color_range=colors.get('color_range', LIMITED_RANGE))
        picture.pts = max(frame.time, self._last + 1)
        picture.time_base, picture.duration = (self._video.time_base,
                                               frame.duration)
        self._last = picture.pts
        self._container.mux(self._stream.encode(picture))
        self.n_frames += 1

    def copy(self, packet):
        """Add a packet of sound as it is."""
        if self._stream is None:
            self._waiting.append(packet)
        else:
            self._copy(packet)

    def _copy(self, packet):
        stream = self._sounds[packet.stream]
        if stream is not None:
            packet.stream = stream
            self._container.mux(packet)

    def finish(self):
        if self._stream is None:
            raise InputError(f'{self._video.name}: the video has no frame')
        self._container.mux(self._stream.encode())
        self._container.close()

    def close(self):
        """Close the file as it is."""
        with contextlib.suppress(Exception):
            self._container.close()

    def _h264_stream(self):
        stream = self._container.add_stream('libx264', rate=self._video.rate)
        stream.height, stream.width = (side + side % 2
                                       for side in self._size[:2])
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


def duplicate(packet):
    """Return a packet of sound with the same content: writing takes it."""
    import av
    result = av.Packet(bytes(packet))
    for name in 'pts', 'dts', 'duration', 'time_base', 'stream', 'is_keyframe':
        setattr(result, name, getattr(packet, name))
    return result


@contextlib.contextmanager
def writing(path, video, replace=True):
    """Give a `VideoWriter` for a file that appears when it is whole.

    Where the body does not come to its end, because of Ctrl-C or a full disk
    say, what was done appears under the name that `part_path` gives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    with atomic_path(path, replace, part) as temporary:
        with _naming(path, temporary):
            writer = VideoWriter(temporary, video)
        try:
            with _naming(path, temporary):
                yield writer
                writer.finish()
        except BaseException:
            with contextlib.suppress(Exception):  # the first error counts
                writer.finish()
            writer.close()
            if writer.n_frames:
                os.replace(temporary, part)
            raise
    part.unlink(missing_ok=True)  # of an earlier run


@contextlib.contextmanager
def _naming(path, temporary):
    """Name a file in errors of its temporary one, or of FFmpeg."""
    from av.error import FFmpegError
    try:
        yield
    except OSError as error:
        if error.filename not in (None, f'file:{temporary}'):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    except FFmpegError as error:
        raise InputError(f'{path} cannot be written: {error.strerror}'
                         ) from None
