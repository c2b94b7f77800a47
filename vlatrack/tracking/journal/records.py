"""Reading a journal: every record a run ever logged, one JSON line each. It is the truth; trackers are its readers.

A line is `{v, run, writer, seq, t_ms, kind, step, data}`. `seq` counts from 0 without gaps, over restarts too.
JSON knows no NaN and no infinities: they stand in `data` as the strings "NaN", "Infinity" and "-Infinity", and in
records of kind `metrics`, whose values are numbers only, they are read back as floats.

A run is a `start` record, metrics, artifacts and events, and one `finish` record, which only artifacts and events may
follow; a resumed run has another `start` after that.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any

from vlatrack.errors import TrackerError

_BLOCK = 1 << 16
_MOST_DAMAGED = 10_000
"""So many damaged lines are kept; of more, the number."""
_MOST_NAMED = 5
_KIND, _METRICS = b'"kind":"', b'metrics"'


class Kind(StrEnum):
    """What a record tells."""

    START = "start"
    METRICS = "metrics"
    ARTIFACT = "artifact"
    EVENT = "event"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a journal; `t_ms` is Unix time in milliseconds, `step` the training step or None."""

    v: int
    run: str
    writer: str
    seq: int
    t_ms: int
    kind: str
    step: int | None
    data: dict[str, Any]

    def wrong_field(self) -> str | None:
        """What of its data is missing or not of its type, as in a line that vlatrack has not written."""
        needed = _NEEDED.get(self.kind, {})
        return next((name for name, types in needed.items() if not isinstance(self.data.get(name), types)), None)


UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Identifies a run at every tracker."""
_NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    Kind.START: {"name": (str,), "experiment": (str,), "params": (dict,), "tags": (dict,)},
    Kind.ARTIFACT: {"name": (str,), "place": (str,)},
    Kind.EVENT: {"name": (str,), "data": (dict,), "alert": (bool,)},
    Kind.FINISH: {"status": (str,), "reason": (str, NoneType), "deliver_until_ms": (int,)},
}
"""What the data of a record must have."""


def decode_record(line: bytes) -> Record:
    """The record of one complete line; ValueError if it is none, or lacks what its kind must have."""
    try:
        record = Record(**json.loads(line))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not a journal record: {line[:80]!r}") from error
    types = (*map(type, (record.v, record.seq, record.t_ms)), *map(type, (record.run, record.kind, record.data)))
    if types != (int, int, int, str, str, dict) or type(record.step) not in (int, NoneType):
        raise ValueError("a field is not of its type")
    if UID.fullmatch(record.run) is None:  # trackers make names of files of it
        raise ValueError("its run is none")
    if record.kind == Kind.METRICS:
        for name, value in record.data.items():
            if isinstance(value, str):
                record.data[name] = float(value)
            elif type(value) not in (float, int):
                raise ValueError("a metric is no number")
    elif record.kind == Kind.FINISH and (wrong := record.wrong_field()) is not None:
        raise ValueError(f"a finish record without a right {wrong}")
    return record


class JournalDamage:
    """The lines of a journal that are no records, as far as they were met.

    Who shows a journal to people gives one to its readers: they leave those lines out, and it tells which. Without one
    they raise TrackerError, since what decides or delivers must not go on without a record.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.reasons: dict[int, str] = {}
        """By the offset of the line's first byte."""
        self.count = 0

    def add(self, offset: int, reason: str) -> None:
        """A line may be met several times, and counts once."""
        if offset in self.reasons:
            return
        self.count += 1
        if len(self.reasons) < _MOST_DAMAGED:
            self.reasons[offset] = reason

    def forget(self) -> None:
        """Another file stands in the journal's place."""
        self.reasons, self.count = {}, 0

    def told(self) -> str | None:
        """`journal.jsonl, line 17 is damaged (left out)`; None if no line is."""
        if not self.reasons:
            return None
        numbers = [f"{number:,}" for number in self._line_numbers(sorted(self.reasons)[:_MOST_NAMED])]
        if self.count > len(numbers):
            numbers.append(f"{self.count - len(numbers):,} more")
        if len(numbers) == 1:
            return f"{self.journal.name}, line {numbers[0]} is damaged (left out)"
        return f"{self.journal.name}, lines {', '.join(numbers[:-1])} and {numbers[-1]} are damaged (left out)"

    def _line_numbers(self, offsets: list[int]) -> list[int]:
        """Counted from 1; the offsets ascend."""
        numbers, lines, at = [], 1, 0
        with self.journal.open("rb") as file:
            for offset in offsets:
                while at < offset and (block := file.read(min(_BLOCK, offset - at))):
                    lines, at = lines + block.count(b"\n"), at + len(block)
                numbers.append(lines)
        return numbers


class JournalReader:
    """Reads a journal from a byte offset on, also while it is being written; an unfinished last line waits."""

    def __init__(self, path: Path, *, offset: int = 0, damage: JournalDamage | None = None) -> None:
        self.path = path
        self._damage = damage
        self.offset = offset
        """Where the next record begins: the end of the last one that was returned, or passed over."""
        self.begin = offset
        """Where the last record begins that was returned."""

    def read(self, limit: int) -> list[Record]:
        """The next records: up to `limit` of metrics, or one of another kind; none if there are none yet.

        Raises TrackerError for a damaged line, unless such are left out.
        """
        records: list[Record] = []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while len(records) < limit:
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                record = _decoded(line, self.path, self.offset, self._damage)
                if record is None:
                    self.offset += len(line)
                    continue
                if records and record.kind != Kind.METRICS:
                    break
                records.append(record)
                self.begin = self.offset
                self.offset += len(line)
                if record.kind != Kind.METRICS:
                    break
        return records

    def read_to_other(self) -> Record | None:
        """The next record that is not of metrics; if there is none yet, the last one of metrics; None if none is left.

        However many records of metrics are passed over, they cost little. Raises TrackerError for a damaged line,
        unless such are left out.
        """
        passed = b""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while (line := file.readline()).endswith(b"\n"):
                begin = self.offset
                self.offset += len(line)
                if _is_of_metrics(line):
                    passed, self.begin = line, begin
                elif (record := _decoded(line, self.path, begin, self._damage)) is not None:
                    self.begin = begin
                    return record
        return _decoded(passed, self.path, self.begin, self._damage) if passed else None


def _is_of_metrics(line: bytes) -> bool:
    """Whether a line is a whole record of metrics, undecoded: the first key `kind` is its own, as `data` comes last."""
    is_whole = line.startswith(b"{") and line.endswith(b"}}\n")
    return is_whole and line.startswith(_METRICS, line.find(_KIND) + len(_KIND))


def read_records(path: Path, *, start_offset: int = 0, damage: JournalDamage | None = None) -> Iterator[Record]:
    """The records from `start_offset` (0, or the end of a record) to the end of what is written by now."""
    reader = JournalReader(path, offset=start_offset, damage=damage)
    while records := reader.read(1000):
        yield from records


def records_backwards(path: Path, *, fd: int | None = None, damage: JournalDamage | None = None) -> Iterator[Record]:
    """The complete records, newest first, read from the end of the file in blocks: as fast for a journal of any length.

    Who has the file open gives its `fd`, which is right also where the path is no longer. Raises TrackerError for a
    damaged line, unless such are left out.
    """
    with path.open("rb") if fd is None else os.fdopen(fd, "rb", closefd=False) as file:
        fd = file.fileno()
        end = newline_before(fd, os.fstat(fd).st_size) + 1
        while end > 0:
            begin = newline_before(fd, max(0, end - _BLOCK)) + 1
            for line in reversed(os.pread(fd, end - begin, begin).splitlines(keepends=True)):
                end -= len(line)
                if (record := _decoded(line, path, end, damage)) is not None:
                    yield record


def last_record(path: Path, *, fd: int | None = None, damage: JournalDamage | None = None) -> Record | None:
    """The last complete record; None for an empty journal."""
    return next(records_backwards(path, fd=fd, damage=damage), None)


def finish_record(path: Path, *, fd: int | None = None, damage: JournalDamage | None = None) -> Record | None:
    """The finish record that ended the run, which artifacts and events may follow; None while the run goes on, after a
    later start, and if the training process died without one."""
    for record in records_backwards(path, fd=fd, damage=damage):
        match record.kind:
            case Kind.FINISH:
                return record
            case Kind.START | Kind.METRICS:
                return None
    return None


def record_ending_at(path: Path, offset: int) -> Record | None:
    """The record whose last byte stands before `offset`; None if no record ends there. TrackerError for damage."""
    with path.open("rb") as file:
        if offset < 1 or os.pread(file.fileno(), 1, offset - 1) != b"\n":
            return None
        begin = newline_before(file.fileno(), offset - 1) + 1
    return JournalReader(path, offset=begin).read(1)[0]


def decode_or_note(line: bytes, offset: int, damage: JournalDamage) -> Record | None:
    """The record of the line at this offset; None, and noted, for one that is damaged or lacks what its kind needs."""
    try:
        record = decode_record(line)
        wrong = record.wrong_field()
    except ValueError as error:
        damage.add(offset, str(error))
        return None
    if wrong is not None:
        damage.add(offset, f"a record of kind {record.kind} without a right {wrong}")
        return None
    return record


def _decoded(line: bytes, path: Path, offset: int, damage: JournalDamage | None) -> Record | None:
    """None only for a line that is left out."""
    if damage is not None:
        return decode_or_note(line, offset, damage)
    try:
        return decode_record(line)
    except ValueError as error:
        raise TrackerError(f"{path}: byte {offset} begins no journal record; remove that line") from error


def newline_before(fd: int, end: int) -> int:
    """Offset of the last newline in [0, end), -1 if there is none."""
    while end > 0:
        begin = max(0, end - _BLOCK)
        at = os.pread(fd, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at
        end = begin
    return -1
