"""What a dataset made of others passes on of them, also where one lacks the method that it may have."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence

from vlatrack.data.checks.times import KnowsTimes, Times
from vlatrack.data.episodes import (
    CountsEpisodes,
    Episode,
    EpisodeSource,
    FindsMissingFrames,
    KnowsFiles,
    KnowsImageSizes,
    SkipsBadEpisodes,
    StreamsFrames,
)
from vlatrack.data.recorded import image_sizes
from vlatrack.errors import DataError


def readable_episodes(source: EpisodeSource, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
    """As `SkipsBadEpisodes.readable_episodes`; of a dataset that has no such method, all episodes.

    Raises:
        DataError: an episode of such a dataset cannot be read.
    """
    return source.readable_episodes(on_bad) if isinstance(source, SkipsBadEpisodes) else iter(source.episodes())


def episode_count(source: EpisodeSource) -> int:
    """One more than the index of the last episode; a dataset that does not tell it is read once.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(source, CountsEpisodes):
        return source.episode_count
    bad: list[int] = []
    readable = readable_episodes(source, lambda position, _: bad.append(position))
    return max([*(episode.index for episode in readable), *bad], default=-1) + 1


def own_episode(source: EpisodeSource, episode: Episode) -> Episode:
    """The episode of that index as the dataset has it, as far as the dataset needs that to find its frames."""
    if isinstance(source, StreamsFrames):
        return episode
    episodes = source.episodes()
    return episodes[bisect_left(episodes, episode.index, key=lambda own: own.index)]


def image_size(source: EpisodeSource, camera: str) -> tuple[int, int]:
    """Height and width in pixels of a camera; of a dataset that does not tell them, in its first episode.

    Raises:
        DataError: that has to be read, and cannot be.
    """
    if isinstance(source, KnowsImageSizes):
        return source.image_size(camera)
    return image_sizes(source, source.episodes()[0], (camera,))[camera]


def step_times(source: EpisodeSource) -> Times:
    """The number of each episode and the seconds of its steps, [T]; none of a dataset that does not tell them."""
    return source.step_times() if isinstance(source, KnowsTimes) else ()


def problem_of(source: EpisodeSource, episode: Episode, cameras: Sequence[str]) -> str | None:
    """What keeps an episode's frames from being read, as far as that shows without decoding them; None: nothing, or the
    dataset cannot tell."""
    return source.problem_of(episode, cameras) if isinstance(source, FindsMissingFrames) else None


def file_digests(source: EpisodeSource) -> Mapping[str, str]:
    """SHA-256 (hex) of each file by its name; none of a dataset that has no files, or does not tell them apart."""
    return source.file_digests() if isinstance(source, KnowsFiles) else {}
