"""The files of a LeRobot dataset as they grow: a new one is begun once the last one is large enough."""

import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlatrack.data.formats.lerobot import layout
from vlatrack.data.video import VideoWriter
from vlatrack.errors import DataError

MEGABYTE = 1_000_000
_NAME_BYTES = 4


@dataclass(frozen=True)
class Location:
    """A file's place in the layout."""

    chunk_index: int
    file_index: int

    @classmethod
    def of(cls, number: int) -> "Location":
        """The place of the number-th file, counted from 0."""
        return cls(*divmod(number, layout.CHUNK_SIZE))


class FrameFiles:
    """data/chunk-…/file-….parquet, one row group an episode."""

    def __init__(self, root: Path, schema: pa.Schema, megabytes: float) -> None:
        self._root, self._schema, self._limit = root, schema, megabytes * MEGABYTE
        self._started = 0
        self._path = root
        self._writer: pq.ParquetWriter | None = None

    def add(self, episode: pa.Table) -> Location:
        """Append the rows of one episode; returns where they are."""
        if self._writer is not None and self._path.stat().st_size >= self._limit:
            self.close()
        if self._writer is None:
            place = Location.of(self._started)
            self._path = self._root / layout.expand(
                layout.DATA, chunk_index=place.chunk_index, file_index=place.file_index
            )
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, self._schema, write_page_checksum=True)
            self._started += 1
        self._writer.write_table(episode)
        return Location.of(self._started - 1)

    def close(self) -> None:
        """Complete the file that is being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class EpisodeRows:
    """meta/episodes/…: a table with one row an episode, of which few are in memory."""

    _AT_ONCE = 256

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._path = path
        self._rows: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: pa.Table) -> None:
        """Append the row of one episode."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == self._AT_ONCE:
            self._write()

    def close(self) -> None:
        """Complete the file."""
        if self._rows:
            self._write()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self) -> None:
        rows = pa.concat_tables(self._rows)
        self._rows.clear()
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, rows.schema)
        self._writer.write_table(rows)


class VideoFiles:
    """videos/{camera}/chunk-…/file-….mp4 of one camera, episodes end to end."""

    def __init__(self, root: Path, key: str, *, fps: int, size: tuple[int, int], megabytes: float) -> None:
        self._root, self._key, self._fps, self._size = root, key, fps, size
        self._limit = megabytes * MEGABYTE
        self._started = 0
        self._writer: VideoWriter | None = None

    def add(self, frames: Iterable[NDArray[np.uint8]]) -> tuple[Location, int]:
        """Append an episode's frames, each [height, width, 3]; returns the file and the number of the first in it."""
        if self._writer is not None and self._writer.bytes >= self._limit:
            self.close()
        if self._writer is None:
            self._writer = VideoWriter(self._new_path(), fps=self._fps, height=self._size[0], width=self._size[1])
        first = self._writer.frames
        self._writer.add(frames)
        return Location.of(self._started - 1), first

    def close(self) -> None:
        """Complete the file that is being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _new_path(self) -> Path:
        place = Location.of(self._started)
        self._started += 1
        path = self._root / layout.expand(
            layout.VIDEO, chunk_index=place.chunk_index, file_index=place.file_index, video_key=self._key
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the operating system has against writing into one line: a full disk, a quota, permissions."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
        raise DataError(f"{target}: cannot be written ({reason}); free space, or choose another folder") from None


def write_table(path: Path, table: pa.Table) -> None:
    """A parquet file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, write_page_checksum=True)


def write_json(path: Path, content: object) -> None:
    """A JSON file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise DataError if no dataset may be written at `target`; only a dataset is ever replaced."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / layout.INFO).is_file():
        raise DataError(f"{target}: exists and is not a LeRobot dataset; choose another folder")
    if not overwrite:
        raise DataError(f"{target}: is a dataset already; choose another folder, or replace it with --overwrite")


def unfinished_folder(target: Path) -> tuple[Path, int]:
    """A new folder beside `target`, in which a dataset grows until it is whole.

    Its descriptor, which is to be closed in the end, holds a lock that tells it from those of processes that are gone.
    """
    folder = target.with_name(f".{target.name}.{secrets.token_hex(_NAME_BYTES)}")
    unlocked = folder.with_name(folder.name + ".new")  # which nobody takes for left behind
    unlocked.mkdir(parents=True)
    descriptor = os.open(unlocked, os.O_RDONLY | os.O_CLOEXEC)
    _lock(descriptor)
    unlocked.rename(folder)
    return folder, descriptor


def remove_unfinished(target: Path) -> None:
    """Remove what processes left behind that were killed while they wrote `target`."""
    digits = "[0-9a-f]" * (2 * _NAME_BYTES)
    for folder in target.parent.glob(f".{glob.escape(target.name)}.{digits}"):
        with writing(target), suppress(FileNotFoundError):  # another process removes it, too
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _lock(descriptor):
                    shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def _lock(folder: int) -> bool:
    """Whether it is this process's now; it is not where somebody else's is, or where there are no locks."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def put_in_place(finished: Path, target: Path) -> None:
    """Rename `finished` to `target`; a dataset that is there is removed once the new one is in its place."""
    if not target.exists():
        finished.rename(target)
        return
    old = finished.with_name(finished.name + ".old")
    target.rename(old)
    finished.rename(target)
    shutil.rmtree(old)
