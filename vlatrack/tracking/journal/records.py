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
    types = (type(record.v), type(record.seq), type(record.t_ms), type(record.run), type(record.data))
    if types != (int, int, int, str, dict) or type(record.step) not in (int, NoneType):
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


class JournalReader:
    """Reads a journal from a byte offset on, also while it is being written; an unfinished last line waits."""

    def __init__(self, path: Path, *, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        """Where the next record begins: the end of the last one that was returned, or passed over."""
        self.begin = offset
        """Where the last record begins that was returned."""

    def read(self, limit: int) -> list[Record]:
        """The next records: up to `limit` of metrics, or one of another kind; none if there are none yet.

        Raises TrackerError for a damaged line.
        """
        records: list[Record] = []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while len(records) < limit:
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                record = _decoded(line, self.path, self.offset)
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

        However many records of metrics are passed over, they cost little. Raises TrackerError for a damaged line.
        """
        line = b""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while (next_line := file.readline()).endswith(b"\n"):
                line = next_line
                self.begin = self.offset
                self.offset += len(line)
                if not _is_of_metrics(line):
                    break
        return _decoded(line, self.path, self.begin) if line else None


def _is_of_metrics(line: bytes) -> bool:
    """Whether a line is of metrics, without decoding it: the first key `kind` is the record's, as `data` comes last."""
    return line.startswith(_METRICS, line.find(_KIND) + len(_KIND))


def read_records(path: Path, *, start_offset: int = 0) -> Iterator[Record]:
    """The records from `start_offset` (0, or the end of a record) to the end of what is written by now."""
    reader = JournalReader(path, offset=start_offset)
    while records := reader.read(1000):
        yield from records


def records_backwards(path: Path, *, fd: int | None = None) -> Iterator[Record]:
    """The complete records, newest first, read from the end of the file in blocks: as fast for a journal of any length.

    Who has the file open gives its `fd`, which is right also where the path is no longer. Raises TrackerError for a
    damaged line.
    """
    with path.open("rb") if fd is None else os.fdopen(fd, "rb", closefd=False) as file:
        fd = file.fileno()
        end = newline_before(fd, os.fstat(fd).st_size) + 1
        while end > 0:
            begin = newline_before(fd, max(0, end - _BLOCK)) + 1
            for line in reversed(os.pread(fd, end - begin, begin).splitlines(keepends=True)):
                end -= len(line)
                yield _decoded(line, path, end)


def last_record(path: Path, *, fd: int | None = None) -> Record | None:
    """The last complete record; None for an empty journal."""
    return next(records_backwards(path, fd=fd), None)


def finish_record(path: Path, *, fd: int | None = None) -> Record | None:
    """The finish record that ended the run, which artifacts and events may follow; None while the run goes on, after a
    later start, and if the training process died without one."""
    for record in records_backwards(path, fd=fd):
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


def _decoded(line: bytes, path: Path, offset: int) -> Record:
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
