"""A journal of any length as series of few points, read on from where it was read to, and as its other records.

Long stretches of metrics are parsed by Arrow, many times faster than line by line; what is not plain there, such as a
damaged line, is read line by line. Which steps stand where is noted, so that some of them can be read again in full.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlatrack.tracking.journal.decimation import STEP, TIME, DecimatedSeries, Points
from vlatrack.tracking.journal.history import Rewind, is_of_training, rewinds_in, rewound_to
from vlatrack.tracking.journal.records import (
    JournalDamage,
    Kind,
    Record,
    decode_or_note,
    decode_record,
    newline_before,
)

BLOCK_BYTES = 1 << 23
MOST_KEPT = 10_000
"""So many records that are not of metrics are kept: the last ones."""
_ARROW_FROM_BYTES = 1 << 18
_PART_BYTES = 1 << 22
"""Of the journal that is noted with its steps; a longer one if it was read at once."""
_METRICS = b'"kind":"metrics"'
_OTHER_KIND = re.compile(rb'"kind":"(?!metrics")')
_NON_FINITE = {b':"NaN"': np.nan, b':"Infinity"': np.inf, b':"-Infinity"': -np.inf}
_STANDS_FOR = {name: -1.7e308 - number * 1e300 for number, name in enumerate(_NON_FINITE)}
"""Numbers in place of the names of what is not finite, which Arrow does not read; nobody measures them."""


@dataclass
class _Part:
    """A part of a journal, by its bytes, and the steps of its metrics; those after `high` do not count any more."""

    begin: int
    end: int
    low: float = np.inf
    high: float = -np.inf

    def hold(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)


class JournalSeries:
    """What a journal holds up to where it has been read; `read` goes on from there."""

    def __init__(
        self,
        path: Path,
        *,
        with_metrics: bool = True,
        rewinds: Sequence[Rewind] = (),
        damage: JournalDamage | None = None,
    ) -> None:
        """Read it with `read`.

        Args:
            with_metrics: false leaves out the records of metrics, unread, but for their number.
            rewinds: if all of them are known, extremes are exact also of a long series that the run went back over;
                else, of the stretch in which it did so, one may be missing.
            damage: where the lines that are left out are noted.
        """
        self.path = path
        self._with_metrics, self._rewinds = with_metrics, rewinds
        self.damage = damage or JournalDamage(path)
        """The lines that are left out."""
        self._begin()

    def _begin(self) -> None:
        self.offset = 0
        """The end of the last complete line that was read."""
        self.metrics: dict[str, DecimatedSeries] = {}
        self.others: list[Record] = []
        """The records that are not of metrics; events of steps that the run went back over stand among them."""
        self.last_step: int | None = None
        """The training step that was logged last."""
        self.last_t_ms: int | None = None
        """When the last record was written."""
        self.records = 0
        self._waiting: dict[str, list[tuple[float, float, float]]] = {}
        self._parts: list[_Part] = []
        self._bounds = (-np.inf, np.inf)

    def read(self, most_bytes: int = BLOCK_BYTES) -> int:
        """Read on, at most about so many bytes; returns how many bytes were read: 0 if there is no new complete line.

        Raises OSError if the journal cannot be read.
        """
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            if size < self.offset:  # another file stands in its place
                self.damage.forget()
                self._begin()
            end = newline_before(file.fileno(), min(size, self.offset + most_bytes)) + 1
            if end <= self.offset:  # one line is longer than that, or the last one is not complete
                end = newline_before(file.fileno(), size) + 1
            if end <= self.offset:
                return 0
            file.seek(self.offset)
            block = file.read(end - self.offset)
        if self._parts and self._parts[-1].end - self._parts[-1].begin < _PART_BYTES:
            self._parts[-1].end = end
        else:
            self._parts.append(_Part(self.offset, end))
        self._add(block)
        self.offset += len(block)
        return len(block)

    def _add(self, block: bytes) -> None:
        for begin, stretch in _stretches(block):
            if not self._with_metrics and stretch.count(b"\n") == stretch.count(_METRICS):
                self.records += stretch.count(b"\n")
            elif len(stretch) < _ARROW_FROM_BYTES or not self._add_with_arrow(stretch, self.offset + begin):
                self._add_lines(stretch, self.offset + begin)
        self._flush()

    def again(self, low: float, high: float, *, most_bytes: int) -> dict[str, DecimatedSeries] | None:
        """The metrics of the steps from `low` to `high`, read again, so that only what is between them is decimated;
        None if more than so many bytes would have to be read.

        Raises OSError if the journal cannot be read.
        """
        import pyarrow as pa

        parts = [part for part in self._parts if part.low <= high and part.high >= low]
        if sum(part.end - part.begin for part in parts) > most_bytes:
            return None
        found = JournalSeries(self.path)
        found._parts = [_Part(0, 0)]
        with self.path.open("rb") as file:
            for part in parts:
                found._bounds = (low, min(high, part.high))
                file.seek(part.begin)
                found._add(file.read(part.end - part.begin))
        pa.default_memory_pool().release_unused()  # else the process keeps some ten megabytes
        return found.metrics

    def read_all(self) -> None:
        """Read to the end."""
        while self.read():
            pass

    @property
    def progress(self) -> dict[str, int]:
        """How many bytes have been read, and of how many; an unfinished last line is among the latter."""
        return {"bytes": self.offset, "of": self.path.stat().st_size}

    def _first_step_gone(self, offset: int) -> float:
        """The step from which on records here do not count, since the run went back over them later; else infinity."""
        return min((rewind.first for rewind in self._rewinds if rewind.offset > offset), default=np.inf)

    def _add_with_arrow(self, stretch: bytes, offset: int) -> bool:
        """Add records that are all of metrics; False, and nothing is added, if that is not what they are."""
        import pyarrow as pa
        from pyarrow import json as arrow_json

        for name, number in _STANDS_FOR.items():
            if name in stretch:
                stretch = stretch.replace(name, f":{number!r}".encode())
        try:
            table = arrow_json.read_json(
                pa.BufferReader(stretch), read_options=arrow_json.ReadOptions(block_size=1 << 21)
            ).combine_chunks()
            steps, times = (_numbers(table.column(name)) for name in ("step", "t_ms"))
            data = table.column("data")
            data = data.chunk(0) if data.num_chunks else None
            last_step = _last_step(stretch)
        except (pa.ArrowException, KeyError, ValueError):
            return False
        if steps is None or times is None or data is None or not pa.types.is_struct(data.type):
            return False
        if np.isnan(times).any():
            return False
        self._flush()
        columns = {field.name: _numbers(data.field(number)) for number, field in enumerate(data.type)}
        if any(column is None for column in columns.values()) or len(columns) != data.type.num_fields:
            return False
        placed = np.stack([np.where(np.isnan(steps), 0.0, steps), times], axis=1)
        counts = placed[:, STEP] < self._first_step_gone(offset)
        for name, values in columns.items():
            assert values is not None, "looked at above"
            is_there = ~np.isnan(values) & counts
            for mark, number in _STANDS_FOR.items():
                values[values == number] = _NON_FINITE[mark]
            points = np.concatenate([placed, values[:, None]], axis=1)
            self._extend(name, points if is_there.all() else points[is_there])
        if not np.isnan(steps).all():
            self._parts[-1].hold(np.nanmin(steps), np.nanmax(steps))
        self.records += len(placed)
        self.last_t_ms = int(times[-1])
        self.last_step = self.last_step if last_step is None else last_step
        return True

    def _add_lines(self, stretch: bytes, offset: int) -> None:
        after = offset
        for line in stretch.splitlines(keepends=True):
            offset, after = after, after + len(line)
            record = decode_or_note(line, offset, self.damage)
            if record is None:
                continue
            self.records += 1
            self.last_t_ms = record.t_ms
            if record.kind != Kind.METRICS:
                self._add_other(record)
                continue
            if not self._with_metrics:
                continue
            step, t_ms = float(record.step or 0), float(record.t_ms)
            if record.step is not None:
                self._parts[-1].hold(step, step)
            counts = step < self._first_step_gone(offset)
            for name, value in record.data.items() if counts else ():
                self._waiting.setdefault(name, []).append((step, t_ms, float(value)))
            if is_of_training(record):
                self.last_step = record.step

    def _flush(self) -> None:
        """Add what was read line by line to the series; all at once, since each addition has its price."""
        for name, points in self._waiting.items():
            self._extend(name, np.array(points))
        self._waiting = {}

    def _extend(self, name: str, points: Points) -> None:
        low, high = self._bounds
        if np.isfinite(self._bounds).any():
            points = points[(points[:, STEP] >= low) & (points[:, STEP] <= high)]
        self.metrics.setdefault(name, DecimatedSeries()).extend(points)

    def _add_other(self, record: Record) -> None:
        self.others.append(record)
        if len(self.others) > 2 * MOST_KEPT:
            self.others = [self.others[0], *self.others[-MOST_KEPT:]]
        if (first := rewound_to(record)) is not None:
            self._flush()
            for series in self.metrics.values():
                series.drop_from(first)
            for part in self._parts[:-1]:  # reading the last part again meets this record again
                part.high = min(part.high, first - 1)
            self.last_step = min(first - 1, self.last_step) if self.last_step is not None else None


def history_of_few_points(journal: Path, *, damage: JournalDamage) -> dict[str, list[tuple[int, float]]]:
    """`few_points` of a long journal, in one pass."""
    series = JournalSeries(journal, rewinds=rewinds_in(journal, damage=damage), damage=damage)
    series.read_all()
    history = {}
    for name, metric in series.metrics.items():
        points = sorted([*metric.points().tolist(), *metric.non_finite], key=lambda point: point[TIME])
        history[name] = sorted({int(step): float(value) for step, _, value in points}.items())
    return {name: values for name, values in history.items() if values}


def _stretches(block: bytes) -> Iterator[tuple[int, bytes]]:
    """The block in parts with their places in it: complete lines that are all of metrics, or a line that is another."""
    done = 0
    for found in _OTHER_KIND.finditer(block):
        if found.start() < done:
            continue
        begin = block.rfind(b"\n", 0, found.start()) + 1
        if begin > done:
            yield done, block[done:begin]
        done = block.find(b"\n", found.start()) + 1
        yield begin, block[begin:done]
    if done < len(block):
        yield done, block[done:]


def _last_step(stretch: bytes) -> int | None:
    """The step of the last record of training, which is nearly always the very last one; None if there is none.

    Raises ValueError for a line that is no record.
    """
    end = len(stretch)
    while end:
        begin = stretch.rfind(b"\n", 0, end - 1) + 1
        record = decode_record(stretch[begin:end])
        if is_of_training(record):
            return record.step
        end = begin
    return None


def _numbers(column: object) -> "np.ndarray[tuple[int], np.dtype[np.float64]] | None":
    """The numbers of an Arrow column, NaN for what is missing; None if it has others."""
    import pyarrow as pa

    kind = column.type  # type: ignore[attr-defined]
    if pa.types.is_null(kind) or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return None
    array = column.cast(pa.float64())  # type: ignore[attr-defined]
    return np.array(array.to_numpy(zero_copy_only=False) if isinstance(array, pa.Array) else array.to_numpy())
