"""The layout of LeRobot v3.0: tables and videos of many episodes each, and a table of the episodes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlatrack.data.formats.lerobot.entries import Clip, Entry, Layout, instructions
from vlatrack.data.formats.lerobot.layout import DATA, EPISODES_FOLDER, DatasetInfo
from vlatrack.data.formats.lerobot.rows import TableFile, floats, integers
from vlatrack.errors import DataError

_NUMBERS = ("episode_index", "length", "data/chunk_index", "data/file_index")
_CLIP = ("chunk_index", "file_index", "from_timestamp")


def _read_entries(root: Path, info: DatasetInfo, cameras: Sequence[str]) -> list[Entry]:
    files = sorted((root / EPISODES_FOLDER).rglob("*.parquet"))
    if not files:
        raise DataError(f"{root / EPISODES_FOLDER}: no episode table; restore the dataset")
    return [entry for file in files for entry in _entries_of(file, cameras)]


def _entries_of(path: Path, cameras: Sequence[str]) -> list[Entry]:
    clip_columns = [f"videos/{camera}/{name}" for camera in cameras for name in _CLIP]
    with TableFile(path) as file:
        table = file.read([*_NUMBERS, "tasks", *clip_columns])
    lacking = next((name for name in _NUMBERS if table[name].null_count), None)
    if lacking:
        raise DataError(f"{path}: an episode lacks its {lacking}; restore the file")
    index, length, chunk, number = (integers(f"{path}: {name}", table[name]).tolist() for name in _NUMBERS)
    if min([*index, *length, *chunk, *number], default=0) < 0:
        raise DataError(f"{path}: an episode has a negative index, length or place; restore the file")
    clips = [_clips(path, table, camera) for camera in cameras]
    return [
        Entry(index[row], instructions(tasks), length[row], (chunk[row], number[row]), tuple(of[row] for of in clips))
        for row, tasks in enumerate(table["tasks"].to_pylist())
    ]


def _clips(path: Path, table: pa.Table, camera: str) -> list[Clip | None]:
    """Where each episode is in the videos of a camera; None where a part of that is not told."""
    chunk, number, start = (table[f"videos/{camera}/{name}"] for name in _CLIP)
    told = ~np.any([column.is_null().to_numpy() for column in (chunk, number, start)], axis=0)
    places = [integers(f"{path}: {camera}", column.fill_null(0)) for column in (chunk, number)]
    starts = floats(f"{path}: {camera}", start.fill_null(0))
    if not np.isfinite(starts).all() or min([*places[0], *places[1], *starts], default=0) < 0:
        raise DataError(f"{path}: an episode has no time or place in the videos of {camera}; restore the file")
    rows = zip(told, places[0].tolist(), places[1].tolist(), starts.tolist(), strict=True)
    return [Clip((chunk, number), start) if is_told else None for is_told, chunk, number, start in rows]


V30 = Layout(("chunk_index", "file_index"), DATA, (".json", ".parquet", ".mp4"), _read_entries)
