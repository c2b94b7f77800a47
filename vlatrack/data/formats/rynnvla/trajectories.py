"""Reads what lies behind conversations of RynnVLA-002 and WorldVLA as whole episodes.

The paths of a conversation name a trajectory's folder, and in it the folders of cameras, actions and states:

    TASK/trj_7/{imgs_third_view,imgs_wrist}/image_12.png
    TASK/trj_7/action/action_12.npy
    TASK/trj_7/eef_gripper_state/eef_gripper_state_12.npy

The list says which trajectories there are and in which order; the folders hold all steps of them, of which
conversations show only those with a complete chunk.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.digests import KnownFiles, content_fingerprint, digests_of
from vlatrack.data.episodes import PIECE_BYTES, Episode
from vlatrack.data.formats.rynnvla.conversations import (
    Conversation,
    read_conversations,
    read_image,
    read_image_size,
    read_numbers,
)
from vlatrack.data.formats.rynnvla.lists import DataRoot
from vlatrack.errors import DataError

_STEP = re.compile(r"(.*_)(\d+)\.(npy|png)")
_Content = TypeVar("_Content")
_TASK = re.compile(r"What action should the robot take to (.+)\?")


@dataclass(frozen=True)
class _Series:
    """The files of one kind in every trajectory: `folder/prefix` + step + `.suffix`."""

    folder: str
    prefix: str
    suffix: str

    @classmethod
    def of(cls, file: Path, place: str) -> "_Series":
        found = _STEP.fullmatch(file.name)
        if found is None:
            raise DataError(f"{place}: {file.name} has no step in its name; these are no files of one step each")
        return cls(file.parent.name, found[1], found[3])

    def file(self, trajectory: str, step: int) -> Path:
        return Path(trajectory, self.folder, f"{self.prefix}{step}.{self.suffix}")

    def steps(self, trajectory: str) -> set[int]:
        """Those that have a file."""
        try:
            names = os.listdir(f"{trajectory}/{self.folder}")  # noqa: PTH208  # hundreds of names, no more than names
        except OSError as error:
            raise DataError(f"{trajectory}/{self.folder}: cannot be read ({error.strerror}); restore it") from None
        found = (_STEP.fullmatch(name) for name in names)
        return {int(match[2]) for match in found if match and (match[1], match[3]) == (self.prefix, self.suffix)}


@dataclass(frozen=True)
class _Contents:
    """What the conversations of a list name."""

    trajectories: tuple[
        tuple[str, str], ...
    ]  # folder and task, in the order of the list; as texts, since they are many
    cameras: Mapping[str, _Series]
    actions: _Series
    states: _Series | None


class RynnVlaTrajectories:
    """The trajectories that a list of conversations names, as an EpisodeSource, in the order of the list.

    The reference orders trajectories by their names as texts (`trj_10` before `trj_2`), so that the last tenth of a
    task here is what it holds out. The cameras have the names of their folders. The images are those of the files:
    LIBERO's turned by 180 degrees, if they come from the reference's data preparation. The instruction is that of the
    prompts, or for world-model conversations, which have none, the name of the task's folder.

    Args:
        path: the list, a .json or .jsonl file.
        root: the folder below which all its files lie; None: the one above the list's folder.
        fps: time steps in a second, which the format does not tell.

    Raises:
        DataError: the list cannot be read, or names no trajectories; reading raises it for damaged files.
    """

    def __init__(self, path: Path | str, root: Path | str | None = None, *, fps: float = 20.0) -> None:
        self.name, self.fps = str(path), fps
        self._where = DataRoot(Path(path), None if root is None else Path(root))
        self._found = _survey(read_conversations(Path(path), None if root is None else Path(root)), self.name)
        self.cameras = tuple(self._found.cameras)
        self.action_dim, states = len(self._first(self._found.actions, read_numbers)), self._found.states
        self.state_dim = 0 if states is None else len(self._first(states, read_numbers))

    def episodes(self) -> Sequence[Episode]:
        """All episodes; read once."""
        return self._episodes

    def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
        """The episodes in the order of the list, read while they are iterated over; see `SkipsBadEpisodes`."""
        for index in range(len(self._found.trajectories)):
            try:
                episode = self._read(index)
            except DataError as error:
                on_bad(index, error)
            else:
                yield episode

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """The frames of one episode, [T, height, width, 3], RGB."""
        return np.concatenate([*self.stream_frames(episode, camera, 0, episode.length)])

    def stream_frames(self, episode: Episode, camera: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """The frames of the steps from `start` to before `stop`, in pieces; see `StreamsFrames`."""
        series, trajectory = self._series(camera), self._found.trajectories[episode.index][0]
        size = self.image_size(camera)
        at_once = max(1, PIECE_BYTES // (size[0] * size[1] * 3))
        for first in range(start, stop, at_once):
            files = [series.file(trajectory, step) for step in range(first, min(first + at_once, stop))]
            frames = [read_image(file) for file in files]
            for file, frame in zip(files, frames, strict=True):
                if frame.shape[:2] != size:
                    raise DataError(f"{file}: {frame.shape[:2]} pixels, others of {camera} have {size}; restore it")
            yield np.stack(frames)

    def frame_files(self, episode: Episode, camera: str, start: int, stop: int) -> Sequence[Path]:
        """An image each."""
        series, trajectory = self._series(camera), self._found.trajectories[episode.index][0]
        return [series.file(trajectory, step) for step in range(start, stop)]

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width in pixels, of the first trajectory."""
        return self._first(self._series(camera), read_image_size)

    def fingerprint(self) -> str:
        """SHA-256 over the files of the trajectories, wherever they lie, and over the tasks in their order."""
        tasks = {f"{number}": task for number, (_, task) in enumerate(self._found.trajectories)}
        return content_fingerprint({**self._file_digests, **tasks})

    def file_digests(self) -> Mapping[str, str]:
        """SHA-256 of each file of the trajectories, by its name below the root."""
        return self._file_digests

    def changed_file(self, episode: Episode) -> str | None:
        """See `FindsChangedFiles`."""
        trajectory = self._found.trajectories[episode.index][0]
        return self._known_files.changed(
            series.file(trajectory, step) for series in self._all_series() for step in range(episode.length)
        )

    @cached_property
    def _known_files(self) -> KnownFiles:
        return KnownFiles(self._where.folder, self._file_digests)

    @cached_property
    def _file_digests(self) -> dict[str, str]:
        files = (
            series.file(trajectory, step)
            for trajectory, _ in self._found.trajectories
            for series in self._all_series()
            for step in series.steps(trajectory)
        )
        return digests_of(self._where.folder, files)

    @cached_property
    def _episodes(self) -> tuple[Episode, ...]:
        return tuple(self._read(index) for index in range(len(self._found.trajectories)))

    def _read(self, index: int) -> Episode:
        trajectory, task = self._found.trajectories[index]
        length = self._length(trajectory, index)
        actions = self._matrix(self._found.actions, trajectory, length, self.action_dim)
        states = self._found.states
        return Episode(
            index, task, actions, None if states is None else self._matrix(states, trajectory, length, self.state_dim)
        )

    def _length(self, trajectory: str, index: int) -> int:
        """The number of steps; DataError unless every series has a file for each."""
        steps = self._found.actions.steps(trajectory)
        for series in self._all_series():
            found = series.steps(trajectory)
            if found != steps or found != set(range(len(found))) or not found:
                missing = min((set(range(max(steps | found, default=0) + 1)) - (steps & found)), default=0)
                places = " or ".join(dict.fromkeys((series.folder, self._found.actions.folder)))
                raise DataError(
                    f"{trajectory}: episode {index}: step {missing} is missing in {places}; restore its files, or "
                    "leave it out"
                )
        return len(steps)

    def _matrix(self, series: _Series, trajectory: str, length: int, size: int) -> NDArray[np.float32]:
        vectors = [read_numbers(series.file(trajectory, step)) for step in range(length)]
        for step, vector in enumerate(vectors):
            if len(vector) != size:
                file = series.file(trajectory, step)
                raise DataError(f"{file}: {len(vector)} numbers, others have {size}; restore the file")
        return np.asarray(vectors, np.float32)

    def _first(self, series: _Series, read: Callable[[Path], _Content]) -> _Content:
        """What the first step of a series holds: of the first trajectory that can be read."""
        *others, last = self._found.trajectories
        for trajectory, _ in others:
            with suppress(DataError):
                return read(series.file(trajectory, 0))
        return read(series.file(last[0], 0))

    def _series(self, camera: str) -> _Series:
        if camera not in self._found.cameras:
            raise DataError(f"{self.name}: no camera {camera!r}; its cameras: {', '.join(self.cameras)}")
        return self._found.cameras[camera]

    def _all_series(self) -> list[_Series]:
        states = [] if self._found.states is None else [self._found.states]
        return [self._found.actions, *self._found.cameras.values(), *states]


def _survey(conversations: Iterator[Conversation], name: str) -> _Contents:
    """What is named, from one pass over the conversations; DataError if they do not agree."""
    tasks: dict[str, str] = {}
    contents: _Contents | None = None
    last: object = None
    for conversation in conversations:
        key = {media.folder for media in conversation.media}, conversation.prompt
        if key == last:  # of the same trajectory as the one before, as nearly all are
            continue
        last = key
        found = _contents_of(conversation)
        (trajectory, task), place = found.trajectories[0], conversation.place
        contents = contents or found
        if found.cameras != contents.cameras or found.actions != contents.actions:
            raise DataError(
                f"{place} has other cameras or actions than {', '.join(contents.cameras)}; correct the list"
            )
        contents = replace(contents, states=contents.states or found.states)
        if tasks.setdefault(trajectory, sys.intern(task)) != task:
            raise DataError(f"{place} has another task than its trajectory had before: {task!r:.80}; correct the list")
    if contents is None:
        raise DataError(f"{name}: no conversation in it; nothing could be trained")
    return replace(contents, trajectories=tuple(tasks.items()))


def _contents_of(conversation: Conversation) -> _Contents:
    """What a conversation names: one trajectory."""
    place, images, actions = conversation.place, conversation.images + conversation.next_images, conversation.actions
    if not images or not actions:
        raise DataError(f"{place} has no image or no action; it is no step of a trajectory")
    if _is_chunk_of_a_step(actions[0]):
        raise DataError(
            f"{place}: {actions[0].parent.name} is a chunk of its own for one step, as the reference has them relative "
            "to the robot's state, so there is no sequence of actions; tokenise it with the reference and use "
            "kind: rynnvla_records"
        )
    trajectory = images[0].parent.parent
    if {media.folder.parent for media in conversation.media} != {trajectory}:
        raise DataError(f"{place} mixes trajectories; correct the list")
    told = _TASK.fullmatch(conversation.prompt)
    return _Contents(
        trajectories=((str(trajectory), told[1] if told else trajectory.parent.name.replace("_", " ")),),
        cameras={image.parent.name: _Series.of(image, place) for image in images},
        actions=_Series.of(actions[0], place),
        states=_Series.of(conversation.states[0], place) if conversation.states else None,
    )


def _is_chunk_of_a_step(action: Path) -> bool:
    """Whether it lies in a folder `action_12` that has the numbers of its own steps: `action_12/0.npy`."""
    return action.stem.isdigit() and _STEP.fullmatch(f"{action.parent.name}.npy") is not None
