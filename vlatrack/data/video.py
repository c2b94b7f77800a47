"""Video files with many episodes end to end: written with x264, read by time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vlatrack.errors import DataError

KEYFRAME_EVERY = 2  # random access decodes at most one frame more than it asks for
QUALITY = 25  # x264's constant rate factor


class VideoWriter:
    """One growing mp4 file (x264, yuv420p); each call of `add` begins with a key frame.

    The same frames give the same bytes: the encoder runs in one thread.
    """

    def __init__(self, path: Path, *, fps: int, height: int, width: int) -> None:
        self.frames = 0
        self.bytes = 0
        self._container = av.open(str(path), mode="w", options={"movflags": "faststart"})
        self._stream = self._container.add_stream("libx264", rate=fps)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.options = {"crf": str(QUALITY), "g": str(KEYFRAME_EVERY), "preset": "slow"}
        self._stream.thread_count = 1

    def add(self, frames: Iterable[NDArray[np.uint8]]) -> None:
        """Append frames, each [height, width, 3], RGB."""
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = self.frames
            frame.time_base = 1 / self._stream.average_rate
            if number == 0:
                frame.pict_type = PictureType.I
            self._mux(frame)
            self.frames += 1

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        self._mux(None)
        self._container.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self.bytes += packet.size
            self._container.mux(packet)


def read_video(path: Path, *, start_s: float, count: int, fps: float) -> NDArray[np.uint8]:
    """`count` frames from `start_s` on, one every 1/fps seconds: [count, height, width, 3], RGB.

    Raises:
        DataError: the file is missing or damaged, or a frame of the stretch is not there.
    """
    try:
        with _Decoder(path) as decoder:
            frames = list(_consecutive(decoder, path, start_s, count, fps))
    except av.FFmpegError as error:
        raise DataError(f"{path}: damaged or missing video ({error}); restore the file") from None
    if len(frames) != count:
        raise DataError(
            f"{path}: {len(frames)} of {count} frames from {start_s:.3f} s on; the video is cut off, restore it"
        )
    return np.stack(frames)


def _consecutive(
    decoder: "_Decoder", path: Path, start_s: float, count: int, fps: float
) -> Iterator[NDArray[np.uint8]]:
    expected = 0
    for frame in decoder.from_time(start_s):
        number = round((frame.time - start_s) * fps)
        if number < 0:
            continue
        if number != expected or frame.is_corrupt:
            raise DataError(f"{path}: frame {expected} after {start_s:.3f} s is damaged or missing; restore the file")
        yield decoder.rgb(frame)
        expected += 1
        if expected == count:
            return


class _Decoder:
    """An open video whose decoder reports damage instead of concealing it."""

    def __init__(self, path: Path) -> None:
        self._container = av.open(str(path))
        if not self._container.streams.video:
            self._container.close()
            raise DataError(f"{path}: no video in this file; restore it")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.options = {"err_detect": "explode"}
        self._reformatter = VideoReformatter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def from_time(self, start_s: float) -> Iterator[av.VideoFrame]:
        """Frames in order of time, beginning at the last key frame at or before `start_s`."""
        self._container.seek(int(start_s / self._stream.time_base), stream=self._stream, backward=True)
        for frame in self._container.decode(self._stream):
            if frame.time is not None:
                yield frame

    def rgb(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """The frame's pixels, [height, width, 3]."""
        # A frame's own to_ndarray prepares the conversion anew, with a thread for each core, which takes longer than
        # to decode it.
        pixels = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return np.asarray(pixels, np.uint8)
