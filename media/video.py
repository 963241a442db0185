"""Read and write videos through PyAV, which contains FFmpeg."""
import contextlib
import fractions
import math
import re
import typing

import numpy as np

from media.images import read_image, to_array
from media.inputs import FRAME_NUMBER
from models.utils.errors import InputError
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

    def __init__(self, path):
        super().__init__(str(path))
        pattern = re.compile(FRAME_NUMBER.sub(
            r'(\\d+)', re.escape(path.name).replace(r'\%', '%')))
        found = {int(match[1]): each for each in path.parent.iterdir()
                 if (match := pattern.fullmatch(each.name))}
        if not found:
            raise InputError(f'{path}: no file matches')
        self._paths = [found[number] for number in sorted(found)]
        self.n_frames = len(self._paths)

    def parts(self):
        for i, path in enumerate(self._paths):
            yield Frame(read_image(path), i, 1)


class _File(Video):
    """A video in a file, opened by PyAV as `container`."""

    def __init__(self, path, container):
        super().__init__(str(path))
        if not container.streams.video:
            raise InputError(f'{path} has no video track')
        self._container = container
        self._stream = stream = container.streams.video[0]
        stream.thread_type = 'AUTO'
        context = stream.codec_context
        self.rate = stream.average_rate or SEQUENCE_RATE
        self.time_base = stream.time_base
        self.n_frames = stream.frames
        self.aspect = stream.sample_aspect_ratio or None
        self.colors = {name: value for name in COLORS if (
            value := int(getattr(context, name) or 0)) not in UNSAID[name]}
        self.sounds = list(container.streams.audio)
        self._tell_losses(context)

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
        try:
            yield from self._container.demux([self._stream, *self.sounds])
        except av.error.FFmpegError as error:
            self.losses.append(f'it cannot be read to its end: '
                               f'{error.strerror}')

    def _decoded(self, packet):
        import av
        try:
            return packet.decode()
        except av.error.FFmpegError:
            self.n_damaged += 1
            return []


@contextlib.contextmanager
def open_video(path):
    """Open a video, or numbered images such as frame_%04d.png.

    Yields:
        Video: it.

    Raises:
        InputError: it cannot be read.
    """
    if FRAME_NUMBER.search(path.name):
        yield _Numbered(path)
        return
    import av
    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(
                av.open(f'file:{path}', options=ONLY_VIDEOS))
        except av.error.FFmpegError as error:
            raise InputError(f'{path} cannot be read as a video: '
                             f'{error.strerror}') from None
        yield _File(path, container)


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

    def __init__(self, container, video):
        self._container, self._video = container, video
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
def writing(path, video):
    """Give a `VideoWriter` for a file that appears when it is whole.

    Where Ctrl-C or a full disk ends the body, what was done appears under the
    name that `part_path` gives.
    """
    import av
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        container = av.open(f'file:{temporary}', 'w', format='mp4',
                            options=PLAYABLE_PARTS)
        writer = VideoWriter(container, video)
        try:
            yield writer
            writer.finish()
            container.close()
            part_path(path).unlink(missing_ok=True)  # of an earlier run
        except (KeyboardInterrupt, OSError) as error:
            with contextlib.suppress(av.error.FFmpegError, OSError, InputError):
                writer.finish()
            with contextlib.suppress(av.error.FFmpegError, OSError):
                container.close()
            if writer.n_frames:
                temporary.rename(part_path(path))
            if isinstance(error, OSError):  # it names the temporary file
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise
        finally:
            with contextlib.suppress(av.error.FFmpegError, OSError):
                container.close()
