"""The times of the steps of a LeRobot dataset, from the column `timestamp` of its tables."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlatrack.data.formats.lerobot.rows import reading

_COLUMNS = ("episode_index", "timestamp")
_BATCH_ROWS = 1 << 16


def step_times(root: Path) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The number of each episode and the seconds of its steps [T]; none without such a column.

    Raises:
        DataError: a table is damaged.
    """
    episode, collected = -1, list[NDArray[np.float64]]()
    for path in sorted((root / "data").rglob("*.parquet")):
        for indexes, seconds in _columns(path):
            starts = np.flatnonzero(np.diff(indexes, prepend=indexes[:1] - 1))
            for start, stop in zip(starts, [*starts[1:], len(indexes)], strict=True):
                if collected and indexes[start] != episode:
                    yield episode, np.concatenate(collected)
                    collected = []
                episode = int(indexes[start])
                collected.append(seconds[start:stop])
    if collected:
        yield episode, np.concatenate(collected)


def _columns(path: Path) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    with reading(path), pq.ParquetFile(path) as file:
        if not set(_COLUMNS) <= set(file.schema_arrow.names):
            return
        # Of many row groups at a time: LeRobot's writer makes one of each episode.
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS), use_threads=False):
            if len(batch):
                indexes, seconds = (_numbers(batch[name]) for name in _COLUMNS)
                yield indexes.astype(np.int64), seconds


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers
