"""A robot's dataset with the actions, states and camera names of another's.

Legend: T steps of an episode.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.checks.times import Times
from vlatrack.data.episodes import (
    Episode,
    EpisodeSource,
    NamesActions,
    NamesFrameFiles,
    NamesStates,
    frame_pieces,
)
from vlatrack.data.vectors import LinearMap, VectorMapping
from vlatrack.data.wrapped import (
    episode_count,
    file_digests,
    image_size,
    own_episode,
    problem_of,
    readable_episodes,
    step_times,
)
from vlatrack.errors import DataError


class MappedSource:
    """A dataset with other actions, states and camera names, as an EpisodeSource.

    Every number of the new vectors is one of the old ones times a factor plus an offset, or a constant.

    Args:
        source: where the episodes come from.
        actions, states: what they become; None: they stay.
        cameras: new names of cameras by their old ones; the others keep theirs.

    Raises:
        DataError: the dataset has no such dimension or camera, or two cameras would have one name.
    """

    def __init__(
        self,
        source: EpisodeSource,
        *,
        actions: VectorMapping | None = None,
        states: VectorMapping | None = None,
        cameras: Mapping[str, str] | None = None,
    ) -> None:
        self.source, self.name, self.fps = source, source.name, source.fps
        names = tuple(source.action_names) if isinstance(source, NamesActions) else ()
        self._actions = LinearMap.of(f"{source.name}: actions", actions or VectorMapping(), source.action_dim, names)
        names = tuple(source.state_names) if isinstance(source, NamesStates) else ()
        self._states = LinearMap.of(f"{source.name}: states", states or VectorMapping(), source.state_dim, names)
        self.action_dim, self.state_dim = len(self._actions.taken), len(self._states.taken)
        self.action_names, self.state_names = self._actions.names, self._states.names
        self._old_names = _old_names(source, cameras or {})
        self.cameras = tuple(self._old_names)

    def episodes(self) -> Sequence[Episode]:
        """All episodes of the dataset, mapped anew each time."""
        return tuple(map(self._mapped, self.source.episodes()))

    def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
        """See `SkipsBadEpisodes`."""
        return map(self._mapped, readable_episodes(self.source, on_bad))

    @property
    def episode_count(self) -> int:
        """See `CountsEpisodes`; a dataset that does not tell it is read once for that."""
        return episode_count(self.source)

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """The frames of one episode, [T, height, width, 3], of a camera by its new name."""
        return self.source.frames(own_episode(self.source, episode), self.old_name(camera))

    def stream_frames(self, episode: Episode, camera: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """See `StreamsFrames`; those of a dataset that cannot come in one piece."""
        return frame_pieces(self.source, own_episode(self.source, episode), self.old_name(camera), start, stop)

    def frame_files(self, episode: Episode, camera: str, start: int, stop: int) -> Sequence[Path]:
        """See `NamesFrameFiles`; none of a dataset that does not tell."""
        if not isinstance(self.source, NamesFrameFiles):
            return ()
        return self.source.frame_files(own_episode(self.source, episode), self.old_name(camera), start, stop)

    def problem_of(self, episode: Episode, cameras: Sequence[str]) -> str | None:
        """See `FindsMissingFrames`; none of a dataset that cannot tell."""
        return problem_of(self.source, own_episode(self.source, episode), [self.old_name(camera) for camera in cameras])

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width in pixels; of a dataset that does not tell them, in its first episode."""
        return image_size(self.source, self.old_name(camera))

    def step_times(self) -> Times:
        """See `KnowsTimes`."""
        return step_times(self.source)

    def file_digests(self) -> Mapping[str, str]:
        """See `KnowsFiles`."""
        return file_digests(self.source)

    def fingerprint(self) -> str:
        """SHA-256 over the dataset's and what is made of it; the dataset's own if nothing is."""
        own = self.source.fingerprint()
        renamed = {old: new for new, old in self._old_names.items() if old != new}
        made = [self._actions.changes, self._states.changes, renamed]
        return hashlib.sha256(json.dumps([own, *made], sort_keys=True).encode()).hexdigest() if any(made) else own

    def _mapped(self, episode: Episode) -> Episode:
        actions = self._actions.apply(episode.actions, episode.length)
        states = self._states.apply(episode.states, episode.length) if self.state_dim else None
        return Episode(episode.index, episode.task, actions, states)

    def old_name(self, camera: str) -> str:
        """What a camera is called in the dataset; raises DataError if there is none."""
        if camera not in self._old_names:
            raise DataError(f"{self.name}: no camera {camera!r}; its cameras: {', '.join(self.cameras) or 'none'}")
        return self._old_names[camera]


def _old_names(source: EpisodeSource, cameras: Mapping[str, str]) -> dict[str, str]:
    """The old names of the cameras by their new ones."""
    for camera in cameras:
        if camera not in source.cameras:
            close = get_close_matches(camera, source.cameras, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            known = ", ".join(source.cameras) or "none"
            raise DataError(f"{source.name}: no camera {camera!r} to rename{meant}; its cameras: {known}")
    old_names: dict[str, str] = {}
    for camera in source.cameras:
        name = cameras.get(camera, camera)
        if name in old_names:
            both = f"{old_names[name]!r} and {camera!r}"
            raise DataError(
                f"{source.name}: the cameras {both} would both be called {name!r}; rename the other as well"
            )
        old_names[name] = camera
    return old_names
