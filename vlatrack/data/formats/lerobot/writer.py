"""Writes demonstrations as a LeRobot v3.0 dataset, one that LeRobot itself can read."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.data.formats.lerobot import layout
from vlatrack.data.formats.lerobot.files import (
    EpisodeRows,
    FrameFiles,
    Location,
    VideoFiles,
    check_target,
    put_in_place,
    remove_unfinished,
    unfinished_folder,
    write_json,
    write_table,
    writing,
)
from vlatrack.data.formats.lerobot.layout import DatasetFormat
from vlatrack.data.formats.lerobot.running import RunningStatistics
from vlatrack.data.formats.lerobot.tables import (
    FeatureStatistics,
    PixelHistogram,
    Values,
    data_schema,
    describe_values,
    image_column,
    statistics_columns,
    tasks_table,
    vector_column,
)
from vlatrack.errors import DataError


class LeRobotWriter:
    """A dataset that appears at `path` only when it is complete.

    Everything is written into a hidden folder beside `path`, which `finish` renames. As a context
    manager it finishes at the end of the block, or removes what it wrote if the block raised.

    Args:
        path: the folder to create; its parent folders are created too.
        fps: time steps in a second.
        robot_type: the name of the robot, for info.json.
        cameras: name → (height, width) in pixels; `corner4` becomes the feature
            `observation.images.corner4`. Both sizes are even for videos.
        action_names: one name for each number of an action.
        state_names: one name for each number of a state; empty: no state.
        storage: images in mp4 files (x264, small), or embedded as PNG (exact).
        overwrite: replace the dataset that is there, with everything in its folder.
        data_file_megabytes: a new parquet file is begun once the last one is as large.
        video_file_megabytes: the same for the videos.

    Raises:
        DataError: something else is at `path`, or a dataset without `overwrite`, or the folder cannot be made.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        fps: int,
        robot_type: str,
        cameras: Mapping[str, tuple[int, int]],
        action_names: Sequence[str],
        state_names: Sequence[str] = (),
        storage: Literal["video", "png"] = "video",
        overwrite: bool = False,
        data_file_megabytes: float = 100,
        video_file_megabytes: float = 200,
    ) -> None:
        vectors = {"observation.state": tuple(state_names)} if state_names else {}
        self._format = DatasetFormat(
            fps=fps,
            robot_type=robot_type,
            cameras={_camera_key(name): size for name, size in cameras.items()},
            vectors=vectors | {"action": tuple(action_names)},
            storage=storage,
        )
        self._target = Path(path).absolute()
        self._megabytes = (data_file_megabytes, video_file_megabytes)
        with writing(self._target):
            check_target(self._target, overwrite=overwrite)
            remove_unfinished(self._target)
            self._folder, self._lock = unfinished_folder(self._target)
        self._schema = data_schema(
            image_keys=list(self._format.cameras) if storage == "png" else [],
            vectors={key: len(names) for key, names in self._format.vectors.items()},
        )
        self._frame_files = FrameFiles(self._folder, self._schema, data_file_megabytes)
        self._video_files = {
            key: VideoFiles(self._folder, key, fps=fps, size=size, megabytes=video_file_megabytes)
            for key, size in self._format.cameras.items()
            if storage == "video"
        }
        self._tasks: dict[str, int] = {}
        self._rows = EpisodeRows(self._folder / layout.EPISODES.format(chunk_index=0, file_index=0))
        self._frames = 0
        self._statistics: dict[str, RunningStatistics] = {}
        self._histograms: dict[str, PixelHistogram] = {}
        self._open = True

    def add_episode(
        self,
        *,
        task: str,
        actions: NDArray[np.float32],
        frames: Mapping[str, NDArray[np.uint8] | Iterable[NDArray[np.uint8]]],
        states: NDArray[np.float32] | None = None,
    ) -> None:
        """Append one demonstration.

        Args:
            task: the instruction.
            actions: [T, A], raw units.
            frames: for each camera (by its short name) [T, height, width, 3], RGB, upright; or the same in pieces,
                of which one at a time is in memory. If one of these cannot be used, `discard` all that is written.
            states: [T, N], raw units; None exactly when the dataset has no state.

        Raises:
            DataError: a shape does not fit the dataset, a number is not finite, or the files cannot be written.
        """
        vectors = {"action": actions} if states is None else {"observation.state": states, "action": actions}
        given = {_camera_key(name): value for name, value in frames.items()}
        place = f"{self._target}: episode {self._rows.count}"
        arrays = {key: value for key, value in given.items() if isinstance(value, np.ndarray)}
        self._format.check_episode(place, vectors, arrays, in_pieces=given.keys() - arrays.keys())
        numbers = {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in vectors.items()}
        columns: dict[str, Values] = {**numbers, **self._index_columns(task, len(actions))}
        images = {
            key: _CheckedFrames(f"{place}: {key}", value, size=self._format.cameras[key], length=len(actions))
            for key, value in given.items()
        }
        with writing(self._target):
            where = self._frame_files.add(self._frame_table(columns, images))
            videos = {key: files.add(images[key]) for key, files in self._video_files.items()}
        histograms = {key: image.histogram for key, image in images.items()}
        statistics = {key: histogram.statistics() for key, histogram in histograms.items()}
        statistics |= {key: describe_values(values) for key, values in columns.items()}
        with writing(self._target):
            self._rows.add(self._episode_row(task, len(actions), where, videos, statistics))
        self._remember(columns, histograms)
        self._frames += len(actions)

    def finish(self) -> None:
        """Write the tables and make the dataset appear under its name.

        Raises:
            DataError: the dataset is empty, or cannot be written; nothing is left of it then.
        """
        assert self._open, "the dataset is already finished or discarded"
        if self._rows.count == 0:
            self.discard()
            raise DataError(f"{self._target}: no episode was added, so there is nothing to write")
        try:
            with writing(self._target):
                self._close_files()
                self._write_tables()
                put_in_place(self._folder, self._target)
        except BaseException:
            self.discard()
            raise
        self._open = False
        os.close(self._lock)

    def discard(self) -> None:
        """Remove everything that was written; the dataset does not appear."""
        if self._open:
            self._open = False
            try:
                with writing(self._target):  # closing a file writes its end
                    self._close_files()
            finally:
                shutil.rmtree(self._folder)
                os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.discard()
        elif self._open:
            self.finish()

    def _close_files(self) -> None:
        self._frame_files.close()
        self._rows.close()
        for files in self._video_files.values():
            files.close()

    def _write_tables(self) -> None:
        write_table(self._folder / layout.TASKS, tasks_table(list(self._tasks)))
        statistics = {key: of_feature.as_lists() for key, of_feature in self._total_statistics().items()}
        write_json(self._folder / layout.STATS, statistics)
        totals = {"episodes": self._rows.count, "frames": self._frames, "tasks": len(self._tasks)}
        write_json(self._folder / layout.INFO, self._format.info(**totals, megabytes=self._megabytes))

    def _index_columns(self, task: str, length: int) -> dict[str, Values]:
        steps = np.arange(length)
        same = np.ones(length, dtype=np.int64)
        columns: dict[str, Values] = {
            "timestamp": (steps / self._format.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": same * self._rows.count,
            "index": steps + self._frames,
            "task_index": same * self._tasks.setdefault(task, len(self._tasks)),
        }
        return {key: column.reshape(-1, 1) for key, column in columns.items()}

    def _frame_table(self, columns: Mapping[str, Values], images: Mapping[str, "_CheckedFrames"]) -> pa.Table:
        arrays = []
        for key in self._schema.names:
            if key in images:
                arrays.append(image_column(images[key]))
            elif key in self._format.vectors:
                arrays.append(vector_column(columns[key]))
            else:
                arrays.append(pa.array(columns[key].ravel()))
        return pa.table(arrays, schema=self._schema)

    def _episode_row(
        self,
        task: str,
        length: int,
        place: Location,
        videos: Mapping[str, tuple[Location, int]],
        statistics: Mapping[str, FeatureStatistics],
    ) -> pa.Table:
        row: dict[str, int | float | list[str]] = {
            "episode_index": self._rows.count,
            "tasks": [task],
            "length": length,
            "data/chunk_index": place.chunk_index,
            "data/file_index": place.file_index,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
        }
        for key, (video, first) in videos.items():
            row[f"videos/{key}/chunk_index"] = video.chunk_index
            row[f"videos/{key}/file_index"] = video.file_index
            row[f"videos/{key}/from_timestamp"] = first / self._format.fps
            row[f"videos/{key}/to_timestamp"] = (first + length) / self._format.fps
        columns = {key: pa.array([value]) for key, value in row.items()} | statistics_columns(statistics)
        return pa.table(columns | {f"meta/episodes/{index}_index": pa.array([0]) for index in ("chunk", "file")})

    def _remember(self, columns: Mapping[str, Values], histograms: Mapping[str, PixelHistogram]) -> None:
        for key, values in columns.items():
            self._statistics.setdefault(key, RunningStatistics()).add(values)
        for key, histogram in histograms.items():
            self._histograms[key] = self._histograms[key] + histogram if key in self._histograms else histogram

    def _total_statistics(self) -> dict[str, FeatureStatistics]:
        total = {key: histogram.statistics() for key, histogram in self._histograms.items()}
        return total | {key: running.statistics() for key, running in self._statistics.items()}


class _CheckedFrames:
    """The frames of an episode, one after another; what they are is known once they were iterated over."""

    def __init__(
        self, place: str, frames: NDArray[np.uint8] | Iterable[NDArray[np.uint8]], *, size: tuple[int, int], length: int
    ) -> None:
        self._place, self._shape, self._length = place, (*size, 3), length
        self._pieces = (frames,) if isinstance(frames, np.ndarray) else frames
        self.histogram = PixelHistogram(np.zeros((3, 256), np.int64), 0)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for piece in self._pieces:
            if piece.dtype != np.uint8 or piece.shape[1:] != self._shape:
                raise DataError(
                    f"{self._place} has frames of {piece.dtype} {piece.shape[1:]}, "
                    f"the dataset expects uint8 {self._shape}"
                )
            self.histogram += PixelHistogram.of(piece)
            yield from piece
        if self.histogram.frames != self._length:
            raise DataError(f"{self._place} has {self.histogram.frames} frames, not {self._length}; leave it out")


def _camera_key(name: str) -> str:
    return f"observation.images.{name}"
