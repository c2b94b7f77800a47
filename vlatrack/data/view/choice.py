"""Which episode, and which of its cameras, somebody wants to see."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode, EpisodeSource, SkipsBadEpisodes, frame_pieces
from vlatrack.data.progress import wanted_progress
from vlatrack.errors import DataError


def find_episode(source: EpisodeSource, number: int) -> Episode:
    """The episode of this index; raises DataError if there is none, or if it cannot be read."""
    known = -1

    def note(index: int, error: DataError) -> None:
        nonlocal known
        known = max(known, index)
        if index == number:
            raise error

    for episode in source.readable_episodes(note) if isinstance(source, SkipsBadEpisodes) else source.episodes():
        if episode.index == number:
            return episode
        known = max(known, episode.index)
    raise DataError(f"{source.name}: no episode {number}; its episodes: 0 to {known}")


def chosen_cameras(source: EpisodeSource, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Those that are wanted, else all; raises DataError for an unknown one, or if there is none."""
    for camera in wanted or ():
        if camera not in source.cameras:
            raise DataError(f"{source.name}: no camera {camera!r}; its cameras: {', '.join(source.cameras) or 'none'}")
    if not source.cameras:
        raise DataError(f"{source.name}: no camera in it, so there is nothing to see")
    return tuple(wanted or source.cameras)


def frames_side_by_side(
    source: EpisodeSource, episode: Episode, cameras: Sequence[str]
) -> Iterator[Mapping[str, NDArray[np.uint8]]]:
    """The images of each step, [height, width, 3] by camera; of each camera a piece is in memory at a time."""
    streams = [(frame for piece in frame_pieces(source, episode, camera) for frame in piece) for camera in cameras]
    progress = wanted_progress()
    for step, images in enumerate(zip(*streams, strict=True), start=1):
        progress(f"episode {episode.index}", step, episode.length, unit="step", is_brief=True)
        yield dict(zip(cameras, images, strict=True))
