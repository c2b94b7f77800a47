"""What it costs to decode an episode's video: beside PyAV alone, and in memory."""

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vlatrack.bench.data import private_mb
from vlatrack.bench.recorded_files import CAMERA, FPS, PairedCosts, write_dataset
from vlatrack.data.episodes import frame_pieces
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.video import stream_video

IMAGE_SIZE = 256
_SHORTEST = 100
"""Frames of an episode at least."""


@dataclass(frozen=True)
class VideoCosts:
    """Of the frames of one episode, decoded one after another to RGB."""

    frames: int
    beside_lean: PairedCosts  # PyAV with a converter that is kept, in one thread
    beside_plain: PairedCosts  # PyAV as its documentation has it, each frame by `to_ndarray`

    @property
    def frames_per_s(self) -> float:
        """Through vlatrack's reader."""
        return self.frames / self.beside_lean.own_s


def measure_video(folder: Path, *, frames: int, rounds: int) -> VideoCosts:
    """Decode an episode through the dataset and by PyAV alone, in turns."""
    frames = max(_SHORTEST, frames)
    write_dataset(folder, episodes=1, steps=frames, image_size=IMAGE_SIZE)
    (video,) = folder.rglob("*.mp4")
    lean, plain = (
        PairedCosts.measure(lambda: _decode(folder), partial(decode, video), rounds=rounds)
        for decode in (_decode_lean, _decode_plain)
    )
    return VideoCosts(frames, lean, plain)


def measure_video_memory(folder: Path, *, frames: int) -> float:
    """Private memory in MB that reading a video of so many frames takes at its peak, in a process of its own.

    Args:
        folder: with the dataset of `measure_video`, whose video is repeated as often as needed.
    """
    (video,) = folder.rglob("*.mp4")
    long = folder / f"{frames}.mp4"
    _repeat(video, long, frames)
    command = [sys.executable, "-m", "vlatrack.bench.data_video", str(long), str(frames)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    long.unlink()
    return float(ended.stdout)


def _repeat(video: Path, longer: Path, frames: int) -> None:
    """Write a video of so many frames, or a few more, from the packets of one that begins with a key frame: to encode
    as many would take minutes."""
    with av.open(str(longer), mode="w") as output:
        stream, written = None, 0
        while written < frames:
            with av.open(str(video)) as container:
                source = container.streams.video[0]
                stream = stream or output.add_stream_from_template(source)
                shift = round(written / FPS / source.time_base)
                for packet in container.demux(source):
                    if packet.dts is None or packet.pts is None:  # the last one, which is empty
                        continue
                    packet.dts, packet.pts, packet.stream = packet.dts + shift, packet.pts + shift, stream
                    output.mux(packet)
                    written += 1


def _decode_lean(video: Path) -> None:
    converter = VideoReformatter()
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            converter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def _decode_plain(video: Path) -> None:
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24")


def _decode(folder: Path) -> None:
    """The first episode of a dataset, through vlatrack's reader."""
    source = LeRobotDataset(folder)
    for _ in frame_pieces(source, source.episodes()[0], CAMERA):
        pass


def _peak_mb(video: Path, frames: int) -> float:
    """Read a video; private memory at its peak, in MB, above what it was before."""
    before = peak = private_mb()
    for _ in stream_video(video, np.arange(frames) / FPS, fps=FPS):  # a piece, and what it needs, is in memory now
        peak = max(peak, private_mb())
    return peak - before


if __name__ == "__main__":
    print(_peak_mb(Path(sys.argv[1]), int(sys.argv[2])))
