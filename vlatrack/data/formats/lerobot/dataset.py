"""Reads LeRobot v3.0 datasets: images in video files or embedded in the parquet tables."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vlatrack.data.episodes import Episode, content_fingerprint, digests_of
from vlatrack.data.formats.lerobot.layout import EPISODES_FOLDER, DatasetInfo, expand, read_info
from vlatrack.data.formats.lerobot.times import step_times
from vlatrack.data.video import read_video
from vlatrack.errors import DataError

_CONTENT_FOLDERS = ("meta", "data", "videos")
_CONTENT_SUFFIXES = (".json", ".parquet", ".mp4")


@dataclass(frozen=True)
class _Clip:
    """Where one episode is in a camera's videos."""

    chunk_index: int
    file_index: int
    start_s: float


@dataclass(frozen=True)
class _Entry:
    """One row of the episode table."""

    index: int
    tasks: tuple[str, ...]
    length: int
    chunk_index: int
    file_index: int
    clips: dict[str, _Clip]


class LeRobotDataset:
    """A dataset folder in the LeRobot v3.0 layout, as an EpisodeSource.

    Args:
        path: the folder that holds meta/info.json.
        action: feature with the action, one vector a step.
        state: feature with the proprioceptive state; None: the dataset is used without.

    Raises:
        DataError: missing folder or info.json, another layout version, a missing feature. Reading
            raises it too: damaged files, paths that leave the folder, frames that are missing,
            episodes with several instructions.
    """

    def __init__(self, path: Path | str, *, action: str = "action", state: str | None = "observation.state") -> None:
        self.root = Path(path)
        self._info = read_info(self.root)
        self._action, self._state = action, state
        self.action_dim = _vector_size(self.root, self._info, action)
        self.state_dim = 0 if state is None else _vector_size(self.root, self._info, state)
        self.cameras = tuple(key for key, feature in self._info.features.items() if feature.is_camera)
        self.fps = float(self._info.fps)
        self.name = str(path)
        self.action_names = self._info.features[action].number_names

    def episodes(self) -> Sequence[Episode]:
        """All episodes, by their index; read once."""
        return self._episodes

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """The frames of one episode, [T, height, width, 3], RGB."""
        if camera not in self.cameras:
            raise DataError(f"{self.name}: no camera {camera!r}; its cameras: {', '.join(self.cameras) or 'none'}")
        entry = self._entries[episode.index]
        if self._info.features[camera].dtype == "image":
            return self._embedded_frames(entry, camera)
        clip = entry.clips.get(camera)
        if clip is None or self._info.video_path is None:
            raise DataError(f"{self.name}: episode {entry.index} has no video of {camera!r}; leave the camera out")
        path = expand(self._info.video_path, chunk_index=clip.chunk_index, file_index=clip.file_index, video_key=camera)
        return read_video(self.root / path, start_s=clip.start_s, count=entry.length, fps=self.fps)

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width in pixels, from meta/info.json, where the channels are the last number, or the first."""
        shape = self._info.features[camera].shape
        if len(shape) != 3 or 3 not in (shape[0], shape[-1]):
            raise DataError(f"{self.name}: meta/info.json has {list(shape)} as shape of {camera}; restore the dataset")
        height, width = shape[:2] if shape[-1] == 3 else shape[1:]
        return height, width

    def step_times(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """The number of each episode, and the seconds of its steps, [T]; nothing without timestamps."""
        return step_times(self.root)

    def fingerprint(self) -> str:
        """SHA-256 over meta/, data/ and videos/; other files in the folder do not matter."""
        return content_fingerprint(self._file_digests)

    def file_digests(self) -> Mapping[str, str]:
        """SHA-256 of each of these files."""
        return self._file_digests

    @cached_property
    def _file_digests(self) -> dict[str, str]:
        files = (file for folder in _CONTENT_FOLDERS for file in (self.root / folder).rglob("*"))
        return digests_of(self.root, (file for file in files if file.suffix in _CONTENT_SUFFIXES))

    @cached_property
    def _entries(self) -> dict[int, _Entry]:
        files = sorted((self.root / EPISODES_FOLDER).rglob("*.parquet"))
        if not files:
            raise DataError(f"{self.root / EPISODES_FOLDER}: no episode table; restore the dataset")
        cameras = [camera for camera in self.cameras if self._info.features[camera].dtype == "video"]
        entries = [entry for file in files for entry in _read_entries(file, cameras)]
        if len(entries) != self._info.total_episodes:
            raise DataError(
                f"{self.name}: {len(entries)} episodes in the tables, {self._info.total_episodes} in meta/info.json; "
                "restore the dataset"
            )
        return {entry.index: entry for entry in sorted(entries, key=lambda entry: entry.index)}

    @cached_property
    def _episodes(self) -> tuple[Episode, ...]:
        columns = ["episode_index", self._action, *((self._state,) if self._state else ())]
        paths = sorted({self._data_path(index) for index in self._entries})
        tables = {path: _read_table(self.root / path, columns) for path in paths}
        return tuple(self._episode(entry, tables[self._data_path(index)]) for index, entry in self._entries.items())

    def _data_path(self, index: int) -> str:
        entry = self._entries[index]
        return expand(self._info.data_path, chunk_index=entry.chunk_index, file_index=entry.file_index)

    def _episode(self, entry: _Entry, table: pa.Table) -> Episode:
        place = f"{self.name}: episode {entry.index}"
        if len(entry.tasks) != 1:
            raise DataError(f"{place} has {len(entry.tasks)} instructions; vlatrack needs exactly one an episode")
        rows = np.flatnonzero(table["episode_index"].to_numpy() == entry.index)
        if len(rows) != entry.length or entry.length == 0:
            raise DataError(f"{place} has {len(rows)} rows in {self._data_path(entry.index)}, not {entry.length}")
        own = table.slice(rows[0], entry.length)
        if rows[-1] - rows[0] + 1 != entry.length:
            raise DataError(f"{place} is scattered over {self._data_path(entry.index)}; restore the file")
        actions = _matrix(f"{place}: {self._action}", own[self._action], self.action_dim)
        states = _matrix(f"{place}: {self._state}", own[self._state], self.state_dim) if self._state else None
        return Episode(entry.index, entry.tasks[0], actions, states)

    def _embedded_frames(self, entry: _Entry, camera: str) -> NDArray[np.uint8]:
        path = self.root / self._data_path(entry.index)
        column = _read_table(path, [camera], episode=entry.index)[camera]
        if len(column) != entry.length:
            raise DataError(f"{path}: {len(column)} frames of episode {entry.index}, not {entry.length}")
        frames = [_decode(f"{path}: {camera}, episode {entry.index}, frame {i}", cell) for i, cell in enumerate(column)]
        if len({frame.shape for frame in frames}) != 1:
            raise DataError(f"{path}: the frames of {camera} in episode {entry.index} differ in size")
        return np.stack(frames)


def _vector_size(root: Path, info: DatasetInfo, key: str) -> int:
    feature = info.features.get(key)
    if feature is None:
        known = ", ".join(name for name, other in info.features.items() if other.dtype.startswith("float"))
        raise DataError(f"{root}: no feature {key!r} (action or state); its number features: {known or 'none'}")
    if len(feature.shape) != 1 or not feature.dtype.startswith(("float", "int")):
        raise DataError(f"{root}: feature {key!r} is {feature.dtype} {list(feature.shape)}, not a vector of numbers")
    return feature.shape[0]


def _read_table(path: Path, columns: Sequence[str], *, episode: int | None = None) -> pa.Table:
    """Some columns of a parquet file, of one episode or of all."""
    wanted = None if episode is None else [("episode_index", "=", episode)]
    try:
        missing = set(columns) - set(pq.read_schema(path).names)
        if not missing:
            return pq.read_table(path, columns=list(columns), filters=wanted, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged or missing ({_first_line(error)}); restore the file") from None
    raise DataError(f"{path}: no column {', '.join(sorted(missing))}; restore the file")


def _read_entries(path: Path, cameras: Iterable[str]) -> list[_Entry]:
    video_columns = {
        camera: [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        for camera in cameras
    }
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    table = _read_table(path, columns + [column for group in video_columns.values() for column in group])
    rows = table.to_pylist()
    if any(row[column] is None for row in rows for column in columns):
        raise DataError(f"{path}: an episode lacks its index, tasks, length or place; restore the file")
    return [
        _Entry(
            index=row["episode_index"],
            tasks=tuple(row["tasks"]),
            length=row["length"],
            chunk_index=row["data/chunk_index"],
            file_index=row["data/file_index"],
            clips={
                camera: _Clip(*(row[column] for column in group))
                for camera, group in video_columns.items()
                if all(row[column] is not None for column in group)
            },
        )
        for row in rows
    ]


def _matrix(place: str, column: pa.ChunkedArray, size: int) -> NDArray[np.float32]:
    """[T, size] of a column of lists, or of single numbers."""
    flat = column.combine_chunks()
    if isinstance(flat, pa.ChunkedArray):
        flat = pa.concat_arrays(flat.chunks)
    if pa.types.is_nested(flat.type):
        flat = flat.flatten()
    numbers = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    if numbers.size != len(column) * size:
        raise DataError(f"{place}: {numbers.size} numbers in {len(column)} steps, not {size} each; restore the file")
    if not np.isfinite(numbers).all():
        raise DataError(f"{place}: numbers that are not finite; leave this episode out")
    return np.ascontiguousarray(numbers.reshape(len(column), size))


def _decode(place: str, cell: pa.StructScalar) -> NDArray[np.uint8]:
    content = cell.as_py()
    if not (isinstance(content, dict) and content.get("bytes")):
        raise DataError(f"{place}: the image is not embedded in the table; write the dataset with embedded images")
    try:
        with Image.open(io.BytesIO(content["bytes"]), formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}: damaged image ({_first_line(error)}); restore the file") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
