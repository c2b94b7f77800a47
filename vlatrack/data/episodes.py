"""Demonstrations (episodes), the protocol of a dataset of them, and the selection of episodes.

Legend: T = time steps of an episode, A = numbers in an action, N = numbers in a state.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import DataError

PIECE_BYTES = 16 << 20
"""Of the pixels of one piece of an episode's frames."""


@dataclass(frozen=True)
class Episode:
    """One demonstration without its images: instruction, actions and states.

    The state and the images of step t are those *before* action t is executed.
    """

    index: int  # position in its dataset
    task: str  # instruction text, e.g. "open the window"
    actions: NDArray[np.float32]  # [T, A], raw units
    states: NDArray[np.float32] | None  # [T, N], raw units; None when the dataset has no state

    def __post_init__(self) -> None:
        assert self.actions.ndim == 2, self.actions.shape
        assert self.actions.dtype == np.float32, self.actions.dtype
        assert self.states is None or self.states.dtype == np.float32, self.states
        assert self.states is None or (self.states.ndim == 2 and len(self.states) == len(self.actions)), self.states

    @property
    def length(self) -> int:
        """Number of time steps, T."""
        return len(self.actions)


class EpisodeSource(Protocol):
    """A dataset of demonstrations, in any format."""

    @property
    def name(self) -> str:
        """The dataset's path or name, for messages."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the image features."""

    @property
    def action_dim(self) -> int:
        """Numbers in one action, A."""

    @property
    def state_dim(self) -> int:
        """Numbers in one state, N; 0 when there is no state."""

    @property
    def fps(self) -> float:
        """Time steps in a second."""

    def episodes(self) -> Sequence[Episode]:
        """All episodes in the order of the dataset; raises DataError if they cannot be read."""

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """The frames of one episode, [T, height, width, 3], RGB, upright; raises DataError."""

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the content of the files: the same on every machine and in every folder."""


@runtime_checkable
class SkipsBadEpisodes(Protocol):
    """A dataset of which the other episodes can be read if one cannot, one after another."""

    def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
        """The episodes in the order of the dataset, read while they are iterated over.

        Args:
            on_bad: told the position of each episode that cannot be read, and why; if it raises, nothing more is read.
        """


@runtime_checkable
class StreamsFrames(Protocol):
    """A dataset that can read a part of an episode's frames, so that memory does not grow with an episode.

    It finds them, in `frames` too, by the episode's index and length alone.
    """

    def stream_frames(self, episode: Episode, camera: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """The frames of the steps from `start` to before `stop`, as `frames` gives them, in pieces of at most about
        `PIECE_BYTES`, [n, height, width, 3]; raises DataError."""


@runtime_checkable
class NamesFrameFiles(Protocol):
    """A dataset that can tell in which files an episode's frames are, so that one that changes meanwhile is noticed."""

    def frame_files(self, episode: Episode, camera: str, start: int, stop: int) -> Sequence[Path]:
        """Those with the frames of the steps from `start` to before `stop`; raises DataError if there are none."""


@runtime_checkable
class FindsMissingFrames(Protocol):
    """A dataset that can tell that frames are missing before somebody needs them."""

    def problem_of(self, episode: Episode, cameras: Sequence[str]) -> str | None:
        """What keeps an episode's frames of some cameras from being read, in one line, as far as that shows without
        decoding them: no such file, one that is cut off. None: nothing shows."""


@runtime_checkable
class Reopens(Protocol):
    """A dataset that was brought here from elsewhere, and need not be brought again to be looked at anew."""

    def reopened(self) -> "EpisodeSource":
        """The same files as they are now."""


@runtime_checkable
class KnowsImageSizes(Protocol):
    """A dataset that can tell the size of its images without reading them; a part of it."""

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width in pixels of a camera of the dataset."""


@runtime_checkable
class CountsEpisodes(Protocol):
    """A dataset that knows how many episodes it has before it reads them."""

    @property
    def episode_count(self) -> int:
        """One more than the index of the last episode; those that cannot be read count too."""


@runtime_checkable
class KnowsFiles(Protocol):
    """A dataset of files, which can tell them apart."""

    def file_digests(self) -> Mapping[str, str]:
        """SHA-256 (hex) of the content of each file by its name in the dataset."""


@runtime_checkable
class FindsChangedFiles(Protocol):
    """A dataset of many files, of which an episode has few."""

    def changed_file(self, episode: Episode) -> str | None:
        """The name of a file of an episode that is not what it was when `fingerprint` was asked first; None: none."""


@runtime_checkable
class NamesActions(Protocol):
    """What a dataset offers besides `EpisodeSource` if it knows what the numbers of its actions are, for figures."""

    @property
    def action_names(self) -> Sequence[str]:
        """One for each number of an action, with its unit where that is known; empty: not known."""


@runtime_checkable
class NamesStates(Protocol):
    """The same for the numbers of its states."""

    @property
    def state_names(self) -> Sequence[str]:
        """One for each number of a state; empty: not known."""


def action_names(source: EpisodeSource) -> tuple[str, ...]:
    """A name for each number of an action: the dataset's, or `action 0`, `action 1` and so on."""
    names = tuple(source.action_names) if isinstance(source, NamesActions) else ()
    return names if len(names) == source.action_dim else tuple(f"action {i}" for i in range(source.action_dim))


def checked_frames(source: EpisodeSource, episode: Episode, camera: str) -> NDArray[np.uint8]:
    """The frames uint8 [T, height, width, 3] of one camera.

    Raises:
        DataError: they are something else, or another number than the episode has actions.
    """
    frames = source.frames(episode, camera)
    _check_number(source, episode, camera, episode.length, len(frames))
    _check_pixels(source, episode, camera, frames)
    return frames


def frame_pieces(
    source: EpisodeSource, episode: Episode, camera: str, start: int = 0, stop: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """The frames of the steps from `start` to before `stop` (None: all), in pieces uint8 [n, height, width, 3].

    A dataset that cannot read a part of an episode gives it in one piece.

    Raises:
        DataError: they are something else, or another number.
    """
    stop = episode.length if stop is None else stop
    if not isinstance(source, StreamsFrames):
        yield checked_frames(source, episode, camera)[start:stop]
        return
    found = 0
    for piece in source.stream_frames(episode, camera, start, stop):
        _check_pixels(source, episode, camera, piece)
        found += len(piece)
        yield piece
    _check_number(source, episode, camera, stop - start, found)


def _check_number(source: EpisodeSource, episode: Episode, camera: str, expected: int, found: int) -> None:
    if found != expected:
        raise DataError(
            f"{source.name}: episode {episode.index} has {expected} actions but {found} frames of {camera}; "
            "leave this episode out"
        )


def _check_pixels(source: EpisodeSource, episode: Episode, camera: str, frames: NDArray[np.uint8]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        found = f"{frames.dtype} {list(frames.shape)}"
        raise DataError(
            f"{source.name}: episode {episode.index}: frames of {camera} are {found}, "
            "expected uint8 [steps, height, width, 3]"
        )


def frame_digests(frames: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """A short digest of each frame [T, height, width, 3]: two frames have the same by chance once in four billion."""
    digests = b"".join(hashlib.blake2b(frame.tobytes(), digest_size=4).digest() for frame in frames)
    return np.frombuffer(digests, dtype=np.uint32)


def episodes_digest(episodes: Iterable[Episode]) -> str:
    """SHA-256 (hex) over index, task, actions and states of each episode, in their order.

    Any change of a value, an instruction, the selection or the order changes it. Images are not included: the
    fingerprint of their `EpisodeSource` covers them.
    """
    total = hashlib.sha256()
    for episode in episodes:
        states = episode.states
        shapes = (episode.actions.shape, None if states is None else states.shape)
        # The shapes say where the arrays end, so different episodes never come to the same bytes.
        total.update(repr((int(episode.index), episode.task, shapes)).encode())
        total.update(np.ascontiguousarray(episode.actions).tobytes())
        if states is not None:
            total.update(np.ascontiguousarray(states).tobytes())
    return total.hexdigest()
