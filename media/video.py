"""Read and write videos through PyAV, which contains FFmpeg."""
import contextlib
import math
import re

import numpy as np

from media.images import read_image, to_array
from media.inputs import FRAME_NUMBER
from models.utils.errors import InputError
from models.utils.files import atomic_path

SEQUENCE_RATE = 25  # frames a second, of numbered images
# FFmpeg would follow a playlist, under any name, to other files and addresses.
ONLY_VIDEOS = {'protocol_whitelist': 'file',
               'format_whitelist': 'mov,matroska,avi,mpeg,mpegts,mpegvideo'}


@contextlib.contextmanager
def open_video(path):
    """Open a video, or numbered images such as frame_%04d.png.

    Yields:
        (fractions.Fraction or int, int, iterator): frames a second; number of
        frames, 0 if unknown; and the frames, upright, float32, (3, H, W), RGB
        in [0, 255].

    Raises:
        InputError: it cannot be read, or not to its end.
    """
    if FRAME_NUMBER.search(path.name):
        paths = _numbered(path)
        yield SEQUENCE_RATE, len(paths), map(read_image, paths)
        return
    import av
    try:
        with av.open(f'file:{path}', options=ONLY_VIDEOS) as container:
            if not container.streams.video:
                raise InputError(f'{path} has no video track')
            stream = container.streams.video[0]
            stream.thread_type = 'AUTO'
            yield (stream.average_rate or SEQUENCE_RATE, stream.frames,
                   _frames(path, container))
    except av.error.FFmpegError as error:
        raise InputError(f'{path} cannot be read as a video: '
                         f'{error.strerror}') from None


def _numbered(path):
    pattern = re.compile(FRAME_NUMBER.sub(
        r'(\\d+)', re.escape(path.name).replace(r'\%', '%')))
    found = {int(match[1]): each for each in path.parent.iterdir()
             if (match := pattern.fullmatch(each.name))}
    if not found:
        raise InputError(f'{path}: no file matches')
    return [found[number] for number in sorted(found)]


def _frames(path, container):
    import av
    try:
        for frame in container.decode(video=0):
            yield to_array(_upright(frame))
    except av.error.FFmpegError as error:
        raise InputError(f'{path} cannot be read to its end: '
                         f'{error.strerror}') from None


def _upright(frame):
    """Turn the pixels as the display matrix says, which phones write (FFmpeg,
    libavutil/display.h).
    """
    pixels = frame.to_ndarray(format='rgb24')
    for data in frame.side_data:
        if data.type.name == 'DISPLAYMATRIX':
            a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
            if a * d < b * c:
                pixels, a, b = pixels[:, ::-1], -a, -b
            quarters = round(math.atan2(b, a) / (math.pi / 2))  # clockwise
            pixels = np.rot90(pixels, -quarters)
    return pixels


def write_video(path, rate, frames):
    """Write an MP4 (H.264) that appears when it is whole.

    `frames` yields (H, W, 3), uint8, RGB, all of one size; an odd last row or
    column is doubled, as the format needs even sides. Raise InputError where
    there is no frame or their sizes differ.
    """
    import av
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = None
    with (atomic_path(path) as temporary,
          av.open(f'file:{temporary}', 'w', format='mp4') as container):
        for frame in frames:
            if stream is None:
                size = frame.shape
                stream = _h264_stream(container, rate, size)
            if frame.shape != size:
                raise InputError(f'{path.name}: the frames differ in size')
            even = np.pad(frame, [(0, side % 2) for side in size[:2]]
                          + [(0, 0)], mode='edge')
            container.mux(stream.encode(av.VideoFrame.from_ndarray(
                even, format='rgb24')))
        if stream is None:
            raise InputError(f'{path.name}: the video has no frame')
        container.mux(stream.encode())


def _h264_stream(container, rate, size):
    stream = container.add_stream('libx264', rate=rate)
    stream.height, stream.width = (side + side % 2 for side in size[:2])
    stream.pix_fmt = 'yuv420p'
    stream.options = {'crf': '20', 'preset': 'fast'}
    return stream
