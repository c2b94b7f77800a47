"""What LIBERO's and robomimic's HDF5 files have in common: data/demo_0, data/demo_1 …, each an episode."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from vlatrack.data.digests import digests_of
from vlatrack.data.episodes import Episode
from vlatrack.data.formats.hdf5.reading import find, find_images, image_pieces, open_file, path_of, telling
from vlatrack.data.formats.opening import HDF5_SUFFIXES
from vlatrack.errors import DataError

Order = Literal["number", "name"]

_DEMONSTRATION = re.compile(r"demo_([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an episode is. A file that cannot be looked into has one, which says why."""

    file: Path
    group: str = ""
    problem: str | None = None


class Hdf5Demonstrations(ABC):
    """Demonstrations in HDF5 files, as an EpisodeSource: files by their names, in each the demonstrations.

    It streams. What it keeps is where each episode is, and nothing of what is in it.

    Args:
        path: a folder with such files, or one of them.
        order: of a file's demonstrations: ``number``, demo_2 before demo_10; or ``name``, demo_10 before demo_2.

    Raises:
        DataError: no such file or folder, or a folder without any.
    """

    cameras: tuple[str, ...]
    action_dim: int
    state_dim: int

    def __init__(self, path: Path | str, *, order: Order) -> None:
        self.name = str(path)
        self._order = order
        self._files = demonstration_files(Path(path))
        self.root = self._files[0].parent

    @abstractmethod
    def _task(self, file: h5py.File, group: str) -> str:
        """The instruction of a demonstration; like the methods below it raises DataError."""

    @abstractmethod
    def _actions(self, file: h5py.File, group: str) -> NDArray[np.float64]:
        """Of all steps that are stored, [T, A]."""

    @abstractmethod
    def _states(self, file: h5py.File, group: str) -> NDArray[np.float64] | None:
        """Of all steps that are stored, [T, N]."""

    def _kept(self, actions: NDArray[np.float64]) -> NDArray[np.int64]:
        """The steps that the episode has, rising."""
        return np.arange(len(actions))

    def _turned(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images as the episode shows them, [n, height, width, 3]."""
        return stored

    def episodes(self) -> Sequence[Episode]:
        """All episodes, read anew each time."""

        def stop(_: int, error: DataError) -> None:
            raise error

        return tuple(self.readable_episodes(stop))

    def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
        """The episodes one after another; a file that cannot be looked into counts as one bad episode."""
        for path, numbered in groupby(enumerate(self._entries), key=lambda item: item[1].file):
            entries = list(numbered)
            with ExitStack() as stack:
                try:
                    file = stack.enter_context(open_file(path))
                except DataError as error:
                    for index, _ in entries:
                        on_bad(index, error)
                    continue
                yield from self._of_file(file, entries, on_bad)

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """The frames of one episode, [T, height, width, 3], RGB."""
        return np.concatenate(list(self.stream_frames(episode, camera, 0, episode.length)))

    def stream_frames(self, episode: Episode, camera: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """The frames of a part of an episode in pieces."""
        entry = self._entries[episode.index]
        with open_file(entry.file) as file:
            images = self._images(file, entry.group, camera)
            steps = self._steps(file, entry.group, self._actions(file, entry.group))
            if len(steps) != episode.length:
                raise DataError(
                    f"{entry.file}: {entry.group} has {len(steps)} steps, and had {episode.length} when it was read "
                    "first; leave the files as they are meanwhile"
                )
            if len(images) <= steps[-1]:
                raise DataError(
                    f"{entry.file}: {entry.group}: {len(images)} images of {camera}, too few; restore the file"
                )
            for piece in image_pieces(images, f"{entry.group}/obs/{camera}", steps[start:stop]):
                yield np.ascontiguousarray(self._turned(piece))

    def problem_of(self, episode: Episode, cameras: Sequence[str]) -> str | None:
        """What keeps an episode's frames from being read, as far as that shows without decoding them."""
        entry = self._entries[episode.index]
        try:
            with open_file(entry.file) as file:
                for camera in cameras:
                    if len(images := self._images(file, entry.group, camera)) < episode.length:
                        return f"{entry.file}: {entry.group}: {len(images)} images of {camera}, too few"
        except DataError as error:
            return str(error)
        return None

    def frame_files(self, episode: Episode, camera: str, start: int, stop: int) -> Sequence[Path]:
        """The file of an episode."""
        return [self._entries[episode.index].file]

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width in pixels, of the first demonstration."""
        entry = self._first
        with open_file(entry.file) as file:
            _, height, width, _ = self._images(file, entry.group, camera).shape
        return int(height), int(width)

    def file_digests(self) -> Mapping[str, str]:
        """SHA-256 of each file."""
        return self._file_digests

    @property
    def _first(self) -> Entry:
        """Of the first file that can be looked into."""
        for entry in self._entries:
            if entry.problem is None:
                return entry
        raise DataError(str(self._entries[0].problem))

    def _of_file(
        self, file: h5py.File, entries: Sequence[tuple[int, Entry]], on_bad: Callable[[int, DataError], None]
    ) -> Iterator[Episode]:
        for index, entry in entries:
            try:
                if entry.problem is not None:
                    raise DataError(entry.problem)
                episode = self._episode(file, index, entry.group)
            except DataError as error:
                on_bad(index, error)
                continue
            yield episode

    def _episode(self, file: h5py.File, index: int, group: str) -> Episode:
        actions, states = self._actions(file, group), self._states(file, group)
        if states is not None and len(states) != len(actions):
            raise DataError(f"{path_of(file)}: {group}: states and actions differ in number; restore the file")
        steps = self._steps(file, group, actions)
        chosen = None if states is None else states[steps].astype(np.float32)
        return Episode(index, self._task(file, group), actions[steps].astype(np.float32), chosen)

    def _steps(self, file: h5py.File, group: str, actions: NDArray[np.float64]) -> NDArray[np.int64]:
        if len(actions) == 0:
            raise DataError(f"{path_of(file)}: {group} has no steps; remove the demonstration")
        steps = self._kept(actions)
        if len(steps) == 0:
            raise DataError(f"{path_of(file)}: {group}: the robot never moves; remove it, or set skip_no_ops: false")
        return steps

    def _images(self, file: h5py.File, group: str, camera: str) -> h5py.Dataset:
        if camera not in self.cameras:
            raise DataError(f"{self.name}: no camera {camera!r}; its cameras: {', '.join(self.cameras) or 'none'}")
        return find_images(file, f"{group}/obs/{camera}")

    def has(self, *names: str) -> bool:
        """Whether the first demonstration has all of this, such as ``obs/agentview_rgb``."""
        entry = self._first
        with open_file(entry.file) as file:
            return all(find(file, f"{entry.group}/{name}") is not None for name in names)

    @cached_property
    def _entries(self) -> list[Entry]:
        entries: list[Entry] = []
        for path in self._files:
            try:
                with open_file(path) as file:
                    entries += [Entry(path, group) for group in demonstration_groups(file, self._order)]
            except DataError as error:
                entries.append(Entry(path, problem=str(error)))
        return entries

    @cached_property
    def _file_digests(self) -> dict[str, str]:
        return digests_of(self.root, self._files)


def demonstration_groups(file: h5py.File, order: Order) -> list[str]:
    """`data/demo_0` and so on, of a file.

    Raises:
        DataError: there are none, or the file is damaged.
    """
    data = find(file, "data")
    with telling(path_of(file)):
        found = [_DEMONSTRATION.fullmatch(name) for name in data] if isinstance(data, h5py.Group) else []
    names = [name[0] for name in found if name is not None]
    if not names:
        raise DataError(f"{path_of(file)}: no data/demo_0 in it; this is not a file of demonstrations")
    names.sort(key=None if order == "name" else lambda name: (int(name.removeprefix("demo_")), name))
    return [f"data/{name}" for name in names]


def demonstration_files(path: Path) -> list[Path]:
    """The HDF5 files in a folder in the order of their names; or the one that is at the path.

    Raises:
        DataError: there are none.
    """
    if path.suffix in HDF5_SUFFIXES and not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such file; give an HDF5 file with demonstrations, or the folder of them")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give that of the *.hdf5 files, or one of them")
    files = sorted(file for file in path.iterdir() if file.suffix in HDF5_SUFFIXES)
    if not files:
        raise DataError(f"{path}: no *.hdf5 in it; give the folder of demonstrations")
    return files
