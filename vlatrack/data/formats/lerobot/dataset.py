"""Reads LeRobot datasets, v3.0 and v2.1: images in video files or embedded in the parquet tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.data.checks.told_statistics import Kind, ToldStatistics
from vlatrack.data.digests import KnownFiles, content_fingerprint, digests_of
from vlatrack.data.episodes import Episode
from vlatrack.data.formats.lerobot.entries import Clip, Entry, Layout
from vlatrack.data.formats.lerobot.images import embedded_image
from vlatrack.data.formats.lerobot.layout import expand, read_info, vector_size
from vlatrack.data.formats.lerobot.own_statistics import own_statistics
from vlatrack.data.formats.lerobot.rows import Stretch, TableFile, matrix
from vlatrack.data.formats.lerobot.task_indices import TASK_INDEX, check_task_index, known_tasks
from vlatrack.data.formats.lerobot.times import FRAME_INDEX, TIMESTAMP, StepTimes
from vlatrack.data.formats.lerobot.timestamps import step_times
from vlatrack.data.formats.lerobot.v21 import V21
from vlatrack.data.formats.lerobot.v30 import V30
from vlatrack.data.pieces import in_pieces
from vlatrack.data.video import OpenVideos, problem_of_video, stream_video
from vlatrack.errors import DataError

_CONTENT_FOLDERS = ("meta", "data", "videos")
_BATCH_ROWS = 4096
_BATCH_IMAGES = 8
_OPEN_VIDEOS = 4


class LeRobotDataset:
    """A dataset folder in a LeRobot layout (v2.0, v2.1, v3.0), as an EpisodeSource.

    Of each episode it keeps a few numbers in memory; actions, states and frames are read anew each time.

    Args:
        path: the folder that holds meta/info.json.
        action: feature with the action, one vector a step.
        state: feature with the proprioceptive state; None: the dataset is used without.
        name: for messages; None: the path.

    Raises:
        DataError: missing folder or info.json, another layout version, a missing feature. Reading
            raises it too: damaged files, paths that leave the folder, frames that are missing,
            episodes with several instructions.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        action: str = "action",
        state: str | None = "observation.state",
        name: str | None = None,
    ) -> None:
        self.root = Path(path)
        self._info = read_info(self.root)
        self._layout: Layout = V30 if self._info.codebase_version.startswith("v3.") else V21
        self._action, self._state = action, state
        self.action_dim = vector_size(self.root, self._info, action)
        self.state_dim = 0 if state is None else vector_size(self.root, self._info, state)
        self.cameras = tuple(key for key, feature in self._info.features.items() if feature.is_camera)
        self._video_cameras = [key for key in self.cameras if self._info.features[key].dtype == "video"]
        self.fps = float(self._info.fps)
        self.name = str(path) if name is None else name
        self.action_names = self._info.features[action].number_names
        self.state_names = () if state is None else self._info.features[state].number_names
        self.episode_count = self._info.total_episodes
        self._videos = OpenVideos(_OPEN_VIDEOS)
        self._regular: set[int] = set()  # episodes whose steps are known to be 1/fps seconds apart
        # Of the table that was opened last: its path and time, and where in it each of its episodes is.
        self._found: tuple[tuple[Path, int], dict[int, list[Stretch]]] | None = None

    def reopened(self) -> Self:
        """The same files as they are now, whatever the hub or a remote folder has meanwhile."""
        return type(self)(self.root, action=self._action, state=self._state, name=self.name)

    def episodes(self) -> Sequence[Episode]:
        """All episodes, by their index; read anew each time."""

        def stop(_: int, problem: DataError) -> None:
            raise problem

        return tuple(self.readable_episodes(stop))

    def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
        """The episodes by their index, one after another; `on_bad` is told of those that cannot be read."""
        for _, group in groupby(self._entries.values(), key=lambda entry: entry.place):
            entries = list(group)
            try:
                file = self._open_table(entries[0])
            except DataError as problem:
                for entry in entries:
                    on_bad(entry.index, problem)
                continue
            with file:
                yield from self._episodes_of(file, entries, on_bad)

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """The frames of one episode, [T, height, width, 3], RGB."""
        pieces = self.stream_frames(episode, camera, 0, episode.length)
        frames = next(pieces)
        if len(frames) == episode.length:
            return frames
        whole = np.empty((episode.length, *frames.shape[1:]), np.uint8)
        whole[: len(frames)] = frames
        done = len(frames)
        for piece in pieces:
            whole[done : done + len(piece)] = piece
            done += len(piece)
        return whole

    def stream_frames(self, episode: Episode, camera: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """The frames of the steps from `start` to before `stop`, in pieces."""
        if camera not in self.cameras:
            raise DataError(f"{self.name}: no camera {camera!r}; its cameras: {', '.join(self.cameras) or 'none'}")
        if start >= stop:
            return
        entry = self._entries[episode.index]
        if camera not in self._video_cameras:
            place = f"{self.name}: episode {entry.index}: {camera}"
            yield from in_pieces(place, self._embedded_images(entry, camera, start, stop), stop - start)
            return
        times = StepTimes.regular(entry.length, self.fps) if entry.index in self._regular else self._times(entry)
        path, start_s = self._clip(entry, camera)
        own = start_s + times.seconds[start:stop]
        try:
            yield from stream_video(path, own, fps=self.fps, regular=times.are_regular, videos=self._videos)
        except DataError as problem:
            raise DataError(f"{problem} (episode {entry.index}, {camera})") from None

    def frame_files(self, episode: Episode, camera: str, start: int, stop: int) -> Sequence[Path]:
        """The video of an episode, or the table with its images."""
        entry = self._entries[episode.index]
        if camera in self._video_cameras:
            return [self._clip(entry, camera)[0]]
        return [self.root / self._data_path(entry)]

    def problem_of(self, episode: Episode, cameras: Sequence[str]) -> str | None:
        """What keeps an episode's frames from being read, as far as that shows without decoding them."""
        try:
            entry = self._entries[episode.index]
            times = self._times(entry, embedded=[camera for camera in cameras if camera not in self._video_cameras])
            for camera in self._video_cameras:
                if camera in cameras:
                    path, start_s = self._clip(entry, camera)
                    problem = problem_of_video(path, start_s + times.seconds, fps=self.fps)
                    if problem is not None:
                        return f"{problem} (episode {entry.index}, {camera})"
        except DataError as error:
            return str(error)
        return None

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width in pixels, from meta/info.json, where the channels are the last number, or the first."""
        shape = self._info.features[camera].shape
        if len(shape) != 3 or 3 not in (shape[0], shape[-1]):
            raise DataError(f"{self.name}: meta/info.json has {list(shape)} as shape of {camera}; restore the dataset")
        height, width = shape[:2] if shape[-1] == 3 else shape[1:]
        return height, width

    def step_times(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """The number of each episode, and the seconds of its steps, [T]; nothing without timestamps."""
        if self._regular.issuperset(self._entries):  # they have been read and found to be so
            return ((index, StepTimes.regular(each.length, self.fps).seconds) for index, each in self._entries.items())
        return step_times(self.root)

    def told_statistics(self) -> Mapping[Kind, ToldStatistics]:
        """What the dataset says of its actions and states."""
        kinds: dict[Kind, str | None] = {"action": self._action, "state": self._state}
        wanted = {kind: feature for kind, feature in kinds.items() if feature is not None}
        told = own_statistics(self.root, list(wanted.values()))
        return {kind: told[feature] for kind, feature in wanted.items() if feature in told}

    def fingerprint(self) -> str:
        """SHA-256 over meta/, data/ and videos/; other files in the folder do not matter."""
        return content_fingerprint(self._file_digests)

    def file_digests(self) -> Mapping[str, str]:
        """SHA-256 of each of these files."""
        return self._file_digests

    def changed_file(self, episode: Episode) -> str | None:
        """See `FindsChangedFiles`."""
        entry = self._entries[episode.index]
        clips = zip(self._video_cameras, entry.clips, strict=True) if self._info.video_path else ()
        videos = (self._video(camera, clip) for camera, clip in clips if clip is not None)
        return self._known_files.changed([self.root / self._data_path(entry), *videos])

    @cached_property
    def _known_files(self) -> KnownFiles:
        return KnownFiles(self.root, self._file_digests)

    @cached_property
    def _file_digests(self) -> dict[str, str]:
        files = (file for folder in _CONTENT_FOLDERS for file in (self.root / folder).rglob("*"))
        return digests_of(self.root, (file for file in files if file.suffix in self._layout.suffixes))

    @cached_property
    def _known_tasks(self) -> set[int] | None:
        return known_tasks(self.root)

    @cached_property
    def _entries(self) -> dict[int, Entry]:
        entries = self._layout.read_entries(self.root, self._info, self._video_cameras)
        if len(entries) != self._info.total_episodes:
            raise DataError(
                f"{self.name}: {len(entries)} episodes in the tables, {self._info.total_episodes} in meta/info.json; "
                "restore the dataset"
            )
        by_index = {entry.index: entry for entry in sorted(entries, key=lambda entry: entry.index)}
        if len(by_index) != len(entries):
            twice = next(entry.index for entry in entries if by_index[entry.index] is not entry)
            raise DataError(f"{self.name}: episode {twice} is in the tables twice; restore the dataset")
        return by_index

    def _data_path(self, entry: Entry) -> str:
        template = self._info.data_path or self._layout.data_path
        return expand(template, **dict(zip(self._layout.placeholders, entry.place, strict=True)))

    def _video(self, camera: str, clip: Clip) -> Path:
        assert self._info.video_path is not None, "there are clips"
        numbers = dict(zip(self._layout.placeholders, clip.place, strict=True))
        return self.root / expand(self._info.video_path, **numbers, video_key=camera)

    def _clip(self, entry: Entry, camera: str) -> tuple[Path, float]:
        """The video of an episode, and when it begins there."""
        clip = entry.clips[self._video_cameras.index(camera)]
        if clip is None or self._info.video_path is None:
            raise DataError(f"{self.name}: episode {entry.index} has no video of {camera!r}; leave the camera out")
        path = self._video(camera, clip)
        if not path.is_file():
            raise DataError(
                f"{path}: no such video of episode {entry.index}; restore it, or leave the episode or the camera out"
            )
        return path, clip.start_s

    def _episodes_of(
        self, file: TableFile, entries: Sequence[Entry], on_bad: Callable[[int, DataError], None]
    ) -> Iterator[Episode]:
        columns = [self._action, *([self._state] if self._state else [])]
        columns += [name for name in (FRAME_INDEX, TIMESTAMP, TASK_INDEX) if name in file.columns]
        reader = None
        for entry in entries:
            try:
                reader = reader or file.reader(columns, batch_rows=_BATCH_ROWS)
                episode = self._episode(entry, reader.take(self._stretch(entry, file)))
            except DataError as problem:
                on_bad(entry.index, problem)
            else:
                yield episode

    def _open_table(self, entry: Entry) -> TableFile:
        """The table that holds an episode, in which it is known where each episode is."""
        file = TableFile(self.root / self._data_path(entry))
        state = (file.path, file.modified_ns)
        if self._found is not None and self._found[0] == state:
            file.stretches = self._found[1]
            return file
        try:
            self._found = (state, file.stretches)
        except DataError:
            file.close()
            raise
        return file

    def _stretch(self, entry: Entry, file: TableFile) -> Stretch:
        """Where the rows of an episode are in its file."""
        place = f"{self.name}: episode {entry.index}"
        if len(entry.tasks) != 1:
            raise DataError(f"{place} has {len(entry.tasks)} instructions; vlatrack needs exactly one an episode")
        stretches = file.stretches.get(entry.index, [])
        rows = sum(stretch.count for stretch in stretches)
        if rows != entry.length or entry.length == 0:
            raise DataError(f"{place} has {rows} rows in {file.path}, not {entry.length}; restore the file")
        if len(stretches) != 1:
            raise DataError(f"{place} is scattered over {file.path}; restore the file")
        return stretches[0]

    def _episode(self, entry: Entry, rows: pa.Table) -> Episode:
        place = f"{self.name}: episode {entry.index}"
        self._checked_times(entry, rows)
        if self._known_tasks is not None:
            check_task_index(place, rows, self._known_tasks)
        actions = matrix(f"{place}: {self._action}", rows[self._action], self.action_dim)
        states = matrix(f"{place}: {self._state}", rows[self._state], self.state_dim) if self._state else None
        return Episode(entry.index, entry.tasks[0], actions, states)

    def _times(self, entry: Entry, embedded: Sequence[str] = ()) -> StepTimes:
        """When the steps of an episode are, in its own time; its table must have the columns `embedded`."""
        with self._open_table(entry) as file:
            file.check_columns(embedded)
            columns = [name for name in (FRAME_INDEX, TIMESTAMP) if name in file.columns]
            rows = file.reader(columns or [self._action], batch_rows=_BATCH_ROWS).take(self._stretch(entry, file))
        return self._checked_times(entry, rows)

    def _checked_times(self, entry: Entry, rows: pa.Table) -> StepTimes:
        """The times that the rows of an episode tell; where they are regular, its frames are read without its table."""
        times = StepTimes.of(f"{self.name}: episode {entry.index}", rows, self.fps)
        if times.are_regular:
            self._regular.add(entry.index)
        return times

    def _embedded_images(self, entry: Entry, camera: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        with self._open_table(entry) as file:
            own = self._stretch(entry, file)
            reader = file.reader([camera], batch_rows=_BATCH_IMAGES)
            number = start
            for batch in reader.batches(Stretch(own.first + start, stop - start)):
                for cell in batch.column(0):
                    yield embedded_image(f"{file.path}: {camera}, episode {entry.index}, frame {number}", cell)
                    number += 1
