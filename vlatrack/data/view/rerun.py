"""An episode in Rerun: images, and the numbers of actions and states as series."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlatrack.data.episodes import Episode, EpisodeSource, action_names
from vlatrack.data.view.choice import frames_side_by_side
from vlatrack.data.view.output import appearing
from vlatrack.errors import DataError, MissingPackageError

JPEG_QUALITY = 90


def write_recording(source: EpisodeSource, episode: Episode, cameras: Sequence[str], path: Path) -> None:
    """Write an episode as a recording of Rerun (.rrd), which appears when it is whole.

    Raises:
        DataError: the images cannot be read, or the file cannot be written.
        MissingPackageError: rerun-sdk is missing.
    """
    rerun = _rerun()
    # In memory first, compressed: a writer of Rerun's own that meets a full disk lets everything wait for it for ever.
    recording = rerun.RecordingStream("vlatrack")
    stream = recording.binary_stream()
    _log(rerun, recording, source, episode, cameras)
    with appearing(path) as unfinished:
        unfinished.write_bytes(stream.read() or b"")


def show_recording(source: EpisodeSource, episode: Episode, cameras: Sequence[str]) -> None:
    """Open Rerun's viewer with an episode.

    Raises:
        DataError: there is no display, or the images cannot be read.
        MissingPackageError: rerun-sdk is missing.
    """
    rerun = _rerun()
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise DataError("no display here to open Rerun on; give -o FILE.rrd, and open that where there is one")
    with rerun.RecordingStream("vlatrack") as recording:
        recording.spawn()
        _log(rerun, recording, source, episode, cameras)
        recording.flush()


def _log(rerun: Any, recording: Any, source: EpisodeSource, episode: Episode, cameras: Sequence[str]) -> None:
    recording.log("instruction", rerun.TextDocument(episode.task), static=True)
    names = action_names(source)
    for step, images in enumerate(frames_side_by_side(source, episode, cameras)):
        recording.set_time("step", sequence=step)
        recording.set_time("time", duration=step / source.fps)
        for camera, image in images.items():
            recording.log(["camera", camera], rerun.Image(image).compress(jpeg_quality=JPEG_QUALITY))
        for name, value in zip(names, episode.actions[step].tolist(), strict=True):
            recording.log(["action", name], rerun.Scalars(value))
        if episode.states is not None:
            for number, value in enumerate(episode.states[step].tolist()):
                recording.log(["state", str(number)], rerun.Scalars(value))


def _rerun() -> Any:
    try:
        import rerun
    except ModuleNotFoundError:
        raise MissingPackageError("Rerun is not installed: pip install 'vlatrack[rerun]'") from None
    return rerun
