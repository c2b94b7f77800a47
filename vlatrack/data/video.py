"""Video files with many episodes end to end: written with x264, read by time."""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vlatrack.data.pieces import in_pieces
from vlatrack.errors import DataError

KEYFRAME_EVERY = 2  # random access decodes at most one frame more than it asks for
QUALITY = 25  # x264's constant rate factor

_NEAR_REGULAR, _NEAR = 0.4, 0.25
"""Of the time between two frames: so far may a frame be from the time at which it is wanted. One in the middle between
two times, as those of a video with twice the frames, belongs to neither."""
_MOST_PIXELS = 8192 * 4320
"""Of a frame: damage must not ask for all memory."""


# A decoder that nobody needs any more is freed by the garbage collector, and waits for its threads then, which a fork
# does not bring along. So a forked process leaves alone what its parent has left.
os.register_at_fork(after_in_child=gc.freeze)


class VideoWriter:
    """One growing mp4 file (x264, yuv420p); each call of `add` begins with a key frame.

    The same frames give the same bytes: the encoder runs in one thread, without x264's macroblock tree, with which 10
    of 1,000 videos of the same frames differed (16 pixels; 2 of 1,000 of 48 pixels).
    """

    def __init__(self, path: Path, *, fps: int, height: int, width: int) -> None:
        self.frames = 0
        self.bytes = 0
        self._container = av.open(str(path), mode="w", options={"movflags": "faststart"})
        self._stream = self._container.add_stream("libx264", rate=fps)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.options = {"crf": str(QUALITY), "g": str(KEYFRAME_EVERY), "preset": "slow", "mbtree": "0"}
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
    return np.concatenate(list(stream_video(path, start_s + np.arange(count) / fps, fps=fps)))


def stream_video(
    path: Path,
    times_s: NDArray[np.float64],
    *,
    fps: float,
    regular: bool = True,
    videos: "OpenVideos | None" = None,
) -> Iterator[NDArray[np.uint8]]:
    """The frames at some times, in pieces [n, height, width, 3], RGB, of a few megabytes.

    Args:
        times_s: rising, in the time of the video.
        fps: how many of them there are in a second, or about so many.
        regular: they are 1/fps seconds apart, and the video has a frame for each of them and no other in between. If
            not, the frames that are near none of the times are passed over.
        videos: keeps the file open for the next time.

    Raises:
        DataError: the file is missing or damaged, or has no frame at one of the times.
    """
    found = 0
    with _reading(path), _Decoder(path) if videos is None else videos.lent(path) as decoder:
        for piece in in_pieces(str(path), _images_at(decoder, path, times_s, fps, regular), len(times_s)):
            found += len(piece)
            yield piece
    if found != len(times_s):
        raise DataError(
            f"{path}: {found} of {len(times_s)} frames from {times_s[0]:.3f} s on; the video is cut off, restore it"
        )


def _images_at(
    decoder: "_Decoder", path: Path, times_s: NDArray[np.float64], fps: float, regular: bool
) -> Iterator[NDArray[np.uint8]]:
    near_s = (_NEAR_REGULAR if regular else _NEAR) / fps
    expected = 0
    for frame in decoder.from_time(times_s[0]):
        late_s = frame.time - times_s[expected]
        if late_s < -near_s and (expected == 0 or not regular):
            continue
        if abs(late_s) > near_s or frame.is_corrupt:
            raise DataError(
                f"{path}: frame {expected} after {times_s[0]:.3f} s, which belongs at {times_s[expected]:.3f} s, is "
                "damaged or missing; restore the file"
            )
        yield decoder.rgb(frame)
        expected += 1
        if expected == len(times_s):
            return


def problem_of_video(path: Path, times_s: NDArray[np.float64], *, fps: float) -> str | None:
    """What keeps frames at some times from being read, as far as that shows without decoding: the file is missing, or
    its header damaged, or it is cut off, or the video is shorter. None: nothing shows."""
    try:
        with _reading(path), _Decoder(path) as decoder:
            return decoder.problem(times_s[-1] - _NEAR_REGULAR / fps)
    except DataError as error:
        return str(error)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What PyAV raises for a missing or damaged file, wherever the damage is, becomes a DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such video; restore the file") from None
    except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        reason = error.strerror if isinstance(error, av.FFmpegError) else str(error)
        raise DataError(f"{path}: damaged video ({reason}); restore the file") from None


class OpenVideos:
    """Videos that stay open between reads: to open one takes longer than to find and decode a few frames.

    Args:
        most: how many; that which was read least recently is closed.
    """

    def __init__(self, most: int) -> None:
        self._most, self._process = most, os.getpid()
        self._free: dict[tuple[Path, tuple[int, ...]], _Decoder] = {}  # in the order in which they were read
        self._inherited: list[object] = []

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        return type(self), (self._most,)  # another process opens its own

    @contextmanager
    def lent(self, path: Path) -> Iterator["_Decoder"]:
        """An open video for one reader alone; it is closed if reading it fails.

        Raises:
            DataError, OSError, av.FFmpegError: it cannot be opened.
        """
        if self._process != os.getpid():
            # They are left as they are: what closes a decoder waits for its threads, which a fork does not bring along.
            self._inherited.append(self._free)
            self._free, self._process = {}, os.getpid()
        found = path.stat()
        key = (path, (found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev))  # not a file that was replaced
        decoder = self._free.pop(key, None) or _Decoder(path)
        try:
            yield decoder
        except BaseException:
            decoder.close()
            raise
        self._free[key] = decoder
        while len(self._free) > self._most:
            self._free.pop(next(iter(self._free))).close()


class _Decoder:
    """An open video whose decoder reports damage instead of concealing it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Texts in the header do not matter, so what is no UTF-8 there is no error.
        self._container = av.open(str(path), metadata_errors="replace")
        streams = self._container.streams.video
        if not streams or streams[0].codec_context is None or not streams[0].time_base:
            self._container.close()
            raise DataError(f"{path}: no video in this file; restore it")
        self._stream = streams[0]
        self._stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(_MOST_PIXELS)}
        self._reformatter = VideoReformatter()
        self._packets: Iterator[av.Packet] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def problem(self, last_s: float) -> str | None:
        """Why the file cannot have a frame at or after a time; None: by its header, it is all there."""
        size = self._path.stat().st_size
        if any(entry.pos + entry.size > size for entry in self._stream.index_entries):
            return f"{self._path}: the video is cut off; restore the file"
        stream = self._stream
        if stream.duration and ((stream.start_time or 0) + stream.duration) * stream.time_base <= last_s:
            return f"{self._path}: no frame after {last_s:.3f} s; restore the file"
        return None

    def from_time(self, start_s: float) -> Iterator[av.VideoFrame]:
        """Frames in order of time, beginning at the last key frame at or before `start_s`."""
        for packet in self._packets_from(int(start_s / self._stream.time_base)):
            for frame in packet.decode():
                if frame.time is not None:
                    yield frame

    def _packets_from(self, start: int) -> Iterator[av.Packet]:
        """Packets from the last key frame that is shown at or before `start`, in the stream's unit of time.

        Packets are in the order in which they are decoded. Those behind a key frame that are shown before it (an open
        group of pictures) need frames from before it, and nobody needs them here.
        """
        first = self._key_packet(start)
        while first is not None and first.pts is not None and first.dts is not None and first.pts > start:
            earlier = self._key_packet(first.dts - 1)
            if earlier is None or earlier.dts is None or earlier.dts >= first.dts:
                first = self._key_packet(start)
                break
            first = earlier
        if first is None:
            return
        yield first
        for packet in self._packets:
            if packet.pts is None or first.pts is None or packet.pts >= first.pts:
                yield packet

    def _key_packet(self, before: int) -> av.Packet | None:
        """The first packet after seeking a time in the stream, whose successors are the next ones of `_packets`."""
        self._container.seek(before, stream=self._stream, backward=True)
        self._packets = self._container.demux(self._stream)
        return next(self._packets, None)

    def rgb(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """The frame's pixels, [height, width, 3], where the decoder has them: to be copied by whoever keeps them."""
        # A frame's own to_ndarray prepares the conversion anew, with a thread for each core, which takes longer than
        # to decode it; and copies the pixels once more.
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1)
        plane = picture.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(picture.height, plane.line_size)
        return rows[:, : 3 * picture.width].reshape(picture.height, picture.width, 3)
