"""A few frames of a few episodes, spread evenly: for people who look at a dataset."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode, EpisodeSource, StreamsFrames, checked_frames, frame_pieces


def spread(number: int, most: int) -> list[int]:
    """At most so many of the positions 0 to number - 1, the first and the last among them."""
    return sorted(set(np.linspace(0, number - 1, min(number, most)).round().astype(int).tolist()))


def chosen_episodes(episodes: Iterable[Episode], positions: Sequence[int]) -> Iterator[Episode]:
    """The episodes at these ascending positions; none is read after the last."""
    left = list(positions)
    for position, episode in enumerate(episodes):
        if not left:
            return
        if position == left[0]:
            left.pop(0)
            yield episode


def frames_at(source: EpisodeSource, episode: Episode, camera: str, steps: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The frames of these steps, [height, width, 3] each.

    Raises:
        DataError: they cannot be read.
    """
    if isinstance(source, StreamsFrames):
        return [np.concatenate(list(frame_pieces(source, episode, camera, step, step + 1)))[0] for step in steps]
    frames = checked_frames(source, episode, camera)
    return [frames[step] for step in steps]
