"""From any dataset to a LeRobot v3.0 one, episode by episode."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlatrack.data.episodes import Episode, EpisodeSource, NamesStates, SkipsBadEpisodes, action_names, frame_pieces
from vlatrack.data.formats.lerobot.writer import LeRobotWriter
from vlatrack.data.progress import reading_progress
from vlatrack.data.recorded import image_sizes
from vlatrack.errors import DataError

OnBad = Callable[[int, DataError], None]
ConvertProgress = Callable[[int, int, int], None]
"""Told how many steps are done, of how many, in how many episodes."""

_PREFIXES = ("observation.images.", "observation.")


@dataclass
class Converted:
    """What was written, and what was left out."""

    episodes: int = 0
    frames: int = 0
    tasks: set[str] = field(default_factory=set)
    bad: dict[int, DataError] = field(default_factory=dict)  # of the episodes that were left out


@dataclass(frozen=True)
class _Chosen:
    """What a first pass over the numbers has found of the episodes to be written."""

    frames: int
    sizes: Mapping[str, tuple[int, int]]  # height and width of the images of each camera


def convert(
    source: EpisodeSource,
    output: Path | str,
    *,
    storage: Literal["video", "png"] = "video",
    tasks: Collection[str] | None = None,
    robot_type: str = "unknown",
    skip_bad: bool = False,
    overwrite: bool = False,
    on_bad: OnBad = lambda *_: None,
    progress: ConvertProgress = lambda *_: None,
) -> Converted:
    """Write a dataset as a LeRobot v3.0 dataset, which appears at `output` when it is whole.

    The numbers are read twice: first to count them and find what is wrong with them. Images are in memory in pieces.

    Args:
        storage: images in mp4 files (small), or as PNG, which keeps every pixel.
        tasks: only episodes of these; None: all.
        robot_type: the name of the robot, which most formats do not tell.
        skip_bad: leave out the episodes that cannot be read; their images are read twice then.
        on_bad: told of each of these, and why.

    Raises:
        DataError: something cannot be read or written, there is no such task, or nothing is left.
    """
    result = Converted()

    def note(index: int, error: DataError) -> None:
        if not skip_bad:
            raise error
        if index not in result.bad:
            result.bad[index] = error
            on_bad(index, error)

    chosen, cameras = _first_pass(source, tasks, note, skip_bad=skip_bad), short_names(source.cameras)
    with LeRobotWriter(
        output,
        fps=_whole_fps(source),
        robot_type=robot_type,
        cameras={short: chosen.sizes[camera] for camera, short in cameras.items()},
        action_names=action_names(source),
        state_names=_state_names(source),
        storage=storage,
        overwrite=overwrite,
    ) as writer:
        done = 0
        for episode in _episodes(source, tasks, note):
            if not skip_bad or _has_good_images(source, episode, note):
                frames = {short: frame_pieces(source, episode, camera) for camera, short in cameras.items()}
                writer.add_episode(task=episode.task, actions=episode.actions, states=episode.states, frames=frames)
                result.episodes, result.frames = result.episodes + 1, result.frames + episode.length
                result.tasks.add(episode.task)
            done += episode.length
            progress(done, chosen.frames, result.episodes)
    return result


def short_names(cameras: Sequence[str]) -> dict[str, str]:
    """What each camera is called in a LeRobot dataset, after `observation.images.`: the last word of its path, or, if
    two have the same, the whole of it."""
    last = {}
    for camera in cameras:
        name = camera.rpartition("/")[2]
        last[camera] = next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
    is_unique = len(set(last.values())) == len(last)
    return last if is_unique else {camera: camera.replace("/", "_") for camera in cameras}


def _first_pass(source: EpisodeSource, tasks: Collection[str] | None, on_bad: OnBad, *, skip_bad: bool) -> _Chosen:
    known: dict[str, int] = {}
    frames, sizes, progress = 0, None, reading_progress(source)
    for number, episode in enumerate(_episodes(source, None, on_bad), start=1):
        if progress is not None:
            progress(number)
        known[episode.task] = known.get(episode.task, 0) + 1
        if tasks is None or episode.task in tasks:
            frames += episode.length
            sizes = sizes or _image_sizes(source, episode, skip_bad=skip_bad)
    unknown = [task for task in tasks or () if task not in known]
    if unknown:
        listed = ", ".join(f"{task!r} ({count})" for task, count in sorted(known.items()))
        raise DataError(f"{source.name}: no task {unknown[0]!r}; its tasks (episodes): {listed or 'none'}")
    if sizes is None:
        raise DataError(f"{source.name}: no episode can be read, so there is nothing to write")
    return _Chosen(frames, sizes)


def _image_sizes(source: EpisodeSource, episode: Episode, *, skip_bad: bool) -> Mapping[str, tuple[int, int]] | None:
    """None if they cannot be read of this episode, and another one will do: the second pass tells what is wrong."""
    try:
        return image_sizes(source, episode, source.cameras)
    except DataError:
        if not skip_bad:
            raise
        return None


def _episodes(source: EpisodeSource, tasks: Collection[str] | None, on_bad: OnBad) -> Iterator[Episode]:
    streamed = source.readable_episodes(on_bad) if isinstance(source, SkipsBadEpisodes) else source.episodes()
    return (episode for episode in streamed if tasks is None or episode.task in tasks)


def _has_good_images(source: EpisodeSource, episode: Episode, on_bad: OnBad) -> bool:
    """Whether all of them can be read: an episode must not be half-written when one cannot."""
    try:
        for camera in source.cameras:
            for _ in frame_pieces(source, episode, camera):
                pass
    except DataError as error:
        on_bad(episode.index, error)
        return False
    return True


def _state_names(source: EpisodeSource) -> tuple[str, ...]:
    names = tuple(source.state_names) if isinstance(source, NamesStates) else ()
    return names if len(names) == source.state_dim else tuple(f"state {i}" for i in range(source.state_dim))


def _whole_fps(source: EpisodeSource) -> int:
    if source.fps != round(source.fps):
        raise DataError(f"{source.name}: {source.fps:g} steps a second; a LeRobot dataset needs a whole number of them")
    return round(source.fps)
