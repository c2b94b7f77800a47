"""Parquet files of frames, read by stretches of rows and by columns, so that none is ever wholly in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlatrack.errors import DataError

EPISODE_INDEX = "episode_index"
_BUFFER_BYTES = 1 << 18
"""Of a column that is read at once; a whole row group of embedded images may have hundreds of megabytes."""
_INDEX_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a file that follow one another."""

    first: int
    count: int


class TableFile:
    """One open parquet file; a context manager.

    Raises:
        DataError: it is missing or damaged, or a column that is asked for is not in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self.modified_ns = path.stat().st_mtime_ns
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
            self.columns = frozenset(self._file.schema_arrow.names)
            groups = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._group_starts = np.cumsum([0, *groups])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; its readers cannot be used any more."""
        self._file.close()

    def read(self, columns: Sequence[str]) -> pa.Table:
        """All rows of some columns."""
        self.check_columns(columns)
        with reading(self.path):
            table = self._file.read(columns=list(columns), use_threads=False)
            table.validate(full=True)
        return table

    def reader(self, columns: Sequence[str], *, batch_rows: int) -> "RowReader":
        """A reader of some columns, which decodes so many rows at once."""
        self.check_columns(columns)
        return RowReader(self.path, self._file, self._group_starts, columns, batch_rows)

    @cached_property
    def stretches(self) -> dict[int, list[Stretch]]:
        """Where the rows of each episode are; one that is scattered has several stretches."""
        found: dict[int, list[Stretch]] = {}
        rows = int(self._group_starts[-1])
        first, current = 0, None
        for start, numbers in self._episode_numbers():
            changes = np.flatnonzero(np.diff(numbers, prepend=numbers[0] if current is None else current))
            current = int(numbers[0]) if current is None else current
            for change in changes.tolist():
                found.setdefault(current, []).append(Stretch(first, start + change - first))
                first, current = start + change, int(numbers[change])
        if current is not None:
            found.setdefault(current, []).append(Stretch(first, rows - first))
        return found

    def _episode_numbers(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """The episodes of the rows, and the number of the first of these rows, piece by piece."""
        reader, rows = self.reader([EPISODE_INDEX], batch_rows=_INDEX_ROWS), int(self._group_starts[-1])
        for start in range(0, rows, _INDEX_ROWS):
            column = reader.take(Stretch(start, min(_INDEX_ROWS, rows - start)))[EPISODE_INDEX]
            yield start, integers(f"{self.path}: {EPISODE_INDEX}", column)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise DataError if one of these columns is not in the file."""
        missing = sorted(set(columns) - self.columns)
        if missing:
            raise DataError(f"{self.path}: no column {', '.join(missing)}; restore the file")


class RowReader:
    """Reads stretches of rows; those that follow one another are decoded once.

    It never decodes beyond the row group of what it is asked for, so damage elsewhere does not matter.
    """

    def __init__(
        self, path: Path, file: pq.ParquetFile, group_starts: NDArray[np.int64], columns: Sequence[str], batch_rows: int
    ) -> None:
        self._path, self._file, self._starts = path, file, group_starts
        self._columns, self._batch_rows = list(columns), batch_rows
        self._group = -1
        self._row = 0  # the first one that has not been given
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None

    def take(self, stretch: Stretch) -> pa.Table:
        """The rows of a stretch."""
        return pa.Table.from_batches(list(self.batches(stretch)))

    def batches(self, stretch: Stretch) -> Iterator[pa.RecordBatch]:
        """The rows of a stretch, which is not empty, in batches."""
        row, stop = stretch.first, stretch.first + stretch.count
        while row < stop:
            self._go_to(row)
            batch = self._next_batch()
            own = batch[: stop - row]
            self._rest = batch[len(own) :] if len(own) < len(batch) else None
            row += len(own)
            self._row = row
            yield own

    def _go_to(self, row: int) -> None:
        """Make `row` the first of the next batch."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group or row < self._row:
            self._group, self._row, self._rest = group, int(self._starts[group]), None
            with reading(self._path):
                self._batches = self._file.iter_batches(
                    batch_size=self._batch_rows, row_groups=[group], columns=self._columns, use_threads=False
                )
        while self._row < row:
            batch = self._next_batch()
            passed = min(len(batch), row - self._row)
            self._rest = batch[passed:] if passed < len(batch) else None
            self._row += passed

    def _next_batch(self) -> pa.RecordBatch:
        if self._rest is not None:
            return self._rest
        try:
            with reading(self._path):
                batch = next(self._batches, None)
                if batch is not None:
                    batch.validate(full=True)
        except DataError:
            self._group = -1  # what is left of this row group cannot be read: the next one begins anew
            raise
        if batch is None or len(batch) == 0:
            self._group = -1
            raise DataError(f"{self._path}: fewer rows than its header tells; restore the file")
        return batch


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What pyarrow raises for a missing or damaged file, wherever the damage is, becomes a DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; restore it") from None
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: damaged ({first_line(error)}); restore the file") from None


def integers(place: str, column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A column of whole numbers, in whatever type; raises DataError."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or column.null_count:
        what = "nulls" if column.null_count else str(column.type)
        raise DataError(f"{place} holds {what}, not whole numbers; restore the file")
    try:
        return np.asarray(column.cast(pa.int64()).to_numpy(), np.int64)
    except pa.ArrowException:
        raise DataError(f"{place} holds numbers that are not whole; restore the file") from None


def floats(place: str, column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers, one a row; raises DataError."""
    if not _is_number(column.type) or column.null_count:
        what = "nulls" if column.null_count else str(column.type)
        raise DataError(f"{place} holds {what}, not numbers; restore the file")
    return column.to_numpy().astype(np.float64)


def matrix(place: str, column: pa.ChunkedArray, size: int) -> NDArray[np.float32]:
    """[T, size] of a column of lists, or of single numbers; raises DataError."""
    flat = column.combine_chunks()
    if isinstance(flat, pa.ChunkedArray):
        flat = pa.concat_arrays(flat.chunks)
    if _is_list(flat.type):
        ragged = np.flatnonzero(pc.list_value_length(flat).fill_null(-1).to_numpy(zero_copy_only=False) != size)
        if len(ragged):
            raise DataError(f"{place}: not {size} numbers in step {ragged[0]}; restore the file")
        flat = flat.flatten()
    if not _is_number(flat.type):
        raise DataError(f"{place}: holds {flat.type}, not numbers; restore the file")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused below
        numbers = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    if numbers.size != len(column) * size:
        raise DataError(f"{place}: {numbers.size} numbers in {len(column)} steps, not {size} each; restore the file")
    if not np.isfinite(numbers).all():
        raise DataError(f"{place}: numbers that are not finite; leave this episode out")
    return np.ascontiguousarray(numbers.reshape(len(column), size))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def first_line(error: BaseException) -> str:
    """Of what a library says, which may be nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
