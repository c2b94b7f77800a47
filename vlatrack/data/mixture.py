"""Several datasets as one, so that one policy trains on several robots.

Legend: A / N numbers of an action / a state.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, combinations

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import (
    Episode,
    EpisodeSource,
    NamesActions,
    NamesStates,
    frame_pieces,
)
from vlatrack.data.vectors import CONSTANT
from vlatrack.data.wrapped import episode_count, file_digests, image_size, own_episode, readable_episodes
from vlatrack.errors import DataError


@dataclass(frozen=True)
class MixturePart:
    """One dataset of a mixture, and how often its episodes are shown.

    Dimensions, conventions and cameras are the mixture's: see `vlatrack.data.mapping.MappedSource`.
    """

    source: EpisodeSource
    weight: float | None = None  # its share of an epoch is this in the sum of all; None, for all parts: as it is large

    def __post_init__(self) -> None:
        assert self.weight is None or self.weight > 0, self.weight


class MixtureSource:
    """Several datasets as one EpisodeSource: the episodes of the first one, then those of the next.

    Its cameras are those that all of them have. An episode keeps its index within its dataset, behind those of the
    datasets before: `part_of` tells which one it is.

    Args:
        use_states: false leaves the states out, so that they need not fit.

    Raises:
        DataError: actions or states differ in their dimensions or in their order, or no camera is in all of them.
    """

    def __init__(self, parts: Sequence[MixturePart], *, use_states: bool = True) -> None:
        assert parts, "a mixture of something"
        assert len({part.weight is None for part in parts}) == 1, "all parts have a weight, or none has"
        self.parts, self._use_states = tuple(parts), use_states
        sources = [part.source for part in parts]
        first = sources[0]
        self.name = f"mixture of {', '.join(source.name for source in sources)}"
        self.action_dim, self.state_dim, self.fps = first.action_dim, first.state_dim if use_states else 0, first.fps
        self.action_names = _common_names("actions", sources, [source.action_dim for source in sources])
        self.state_names: tuple[str, ...] = ()
        if use_states:
            self.state_names = _common_names("states", sources, [source.state_dim for source in sources])
        self.cameras = tuple(camera for camera in first.cameras if all(camera in other.cameras for other in sources))
        if not self.cameras:
            known = "; ".join(f"{source.name}: {', '.join(source.cameras) or 'none'}" for source in sources)
            raise DataError(
                f"{self.name}: no camera that all have ({known}); give them one name with cameras: {{old: new}}"
            )

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Of each part, for `vlatrack.data.order.mixture_order`; None: an epoch has every sample once."""
        return tuple(part.weight for part in self.parts if part.weight is not None) or None

    @property
    def rate_warning(self) -> str | None:
        """That the robots have other rates, in one line; None: all have the same. `fps` is that of the first one."""
        if len({part.source.fps for part in self.parts}) == 1:
            return None
        rates = ", ".join(f"{part.source.name} has {part.source.fps:g}" for part in self.parts)
        return f"{rates} steps a second, so a chunk lasts longer on one robot than on another; bring them to one rate"

    def episodes(self) -> Sequence[Episode]:
        """All episodes of all parts."""
        return tuple(
            self._placed(episode, start)
            for start, part in zip(self.first_indices, self.parts, strict=True)
            for episode in part.source.episodes()
        )

    def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
        """See `SkipsBadEpisodes`."""
        for start, part in zip(self.first_indices, self.parts, strict=True):

            def on_bad_here(position: int, error: DataError, start: int = start) -> None:
                on_bad(start + position, error)

            for episode in readable_episodes(part.source, on_bad_here):
                yield self._placed(episode, start)

    @property
    def episode_count(self) -> int:
        """See `CountsEpisodes`."""
        return self.first_indices[-1] + episode_count(self.parts[-1].source)

    def part_of(self, index: int) -> int:
        """Which part the episode of an index is of, from 0."""
        return bisect_right(self.first_indices, index) - 1

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """The frames of one episode, [T, height, width, 3]; parts may have images of different sizes."""
        source, own = self._own(episode, camera)
        return source.frames(own, camera)

    def stream_frames(self, episode: Episode, camera: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """See `StreamsFrames`; those of a part that cannot come in one piece."""
        source, own = self._own(episode, camera)
        return frame_pieces(source, own, camera, start, stop)

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width in pixels, in the first part."""
        return image_size(self.parts[0].source, camera)

    def file_digests(self) -> Mapping[str, str]:
        """See `KnowsFiles`; a file's name begins with the number of its part."""
        return {
            f"{number}/{name}": digest
            for number, part in enumerate(self.parts)
            for name, digest in file_digests(part.source).items()
        }

    def fingerprint(self) -> str:
        """SHA-256 over those of the parts in their order; which episodes are used, and how often, is not in it."""
        return hashlib.sha256(json.dumps([part.source.fingerprint() for part in self.parts]).encode()).hexdigest()

    @cached_property
    def first_indices(self) -> tuple[int, ...]:
        """The index of the first episode of each part."""
        return tuple(accumulate((episode_count(part.source) for part in self.parts[:-1]), initial=0))

    def _placed(self, episode: Episode, start: int) -> Episode:
        """An episode of a part, as the mixture has it."""
        return replace(episode, index=start + episode.index, states=episode.states if self._use_states else None)

    def _own(self, episode: Episode, camera: str) -> tuple[EpisodeSource, Episode]:
        """The dataset that an episode is of, and the episode as it has it."""
        if camera not in self.cameras:
            raise DataError(f"{self.name}: no camera {camera!r} in all of them; there: {', '.join(self.cameras)}")
        number = self.part_of(episode.index)
        source = self.parts[number].source
        return source, own_episode(source, replace(episode, index=episode.index - self.first_indices[number]))


def _common_names(what: str, sources: Sequence[EpisodeSource], sizes: Sequence[int]) -> tuple[str, ...]:
    """The names of the numbers of actions or states, as the first dataset has them that knows them.

    Raises:
        DataError: two datasets have not the same numbers in the same order.
    """
    names = [_names(what, source) for source in sources]
    for one, other in combinations(range(len(sources)), 2):
        first, second = sources[one].name, sources[other].name
        if sizes[one] != sizes[other]:
            raise DataError(
                f"{what} of {first} have {sizes[one]} numbers, those of {second} {sizes[other]}; choose dimensions, or "
                f"add constants, with {what}: {{dimensions: […]}}"
            )
        # Other words for the same are common; the same word at another place is a mistake.
        for name in names[one]:
            here, there = names[one].index(name), names[other].index(name) if name in names[other] else None
            if there not in (None, here) and name != CONSTANT:
                raise DataError(
                    f"{what}: {name} is number {here} in {first} and number {there} in {second}; put them into one "
                    f"order with {what}: {{dimensions: […]}}"
                )
    return next(filter(None, names), ())


def _names(what: str, source: EpisodeSource) -> tuple[str, ...]:
    if what == "actions":
        return tuple(source.action_names) if isinstance(source, NamesActions) else ()
    return tuple(source.state_names) if isinstance(source, NamesStates) else ()
