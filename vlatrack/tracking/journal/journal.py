"""The journal: every record a run ever logged, one JSON line each. It is the truth; trackers are its readers.

A line is `{v, run, writer, seq, t_ms, kind, step, data}`. `seq` counts from 0 without gaps, over restarts too.
JSON knows no NaN and no infinities: they stand in `data` as the strings "NaN", "Infinity" and "-Infinity", and in
records of kind `metrics`, whose values are numbers only, they are read back as floats.
"""

import json
import logging
import math
import numbers
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, SupportsFloat

from vlatrack.errors import TrackerError
from vlatrack.tracking.lock import FileLock, LockHeldError, lock_holder

VERSION = 1
SYNC_INTERVAL_S = 1.0

_BLOCK = 1 << 16
_LOCK_TIMEOUT_S = 1.0
"""Those who only ask whether a journal is being written hold its lock for an instant."""
_FULL_DISK_PAUSE_S = 0.2
_encode_strictly = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_log = logging.getLogger(__name__)


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


def decode_record(line: bytes) -> Record:
    """The record of one complete line; ValueError if it is none."""
    fields = json.loads(line)
    try:
        record = Record(**fields)
    except TypeError as error:
        raise ValueError(f"not a journal record: {line[:80]!r}") from error
    if record.kind == Kind.METRICS:
        for name, value in record.data.items():
            if isinstance(value, str):
                record.data[name] = float(value)
    return record


class JournalReader:
    """Reads a journal from a byte offset on, also while it is being written; an unfinished last line waits."""

    def __init__(self, path: Path, *, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        """Where the next record begins: the end of the last one that `read` returned."""

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
                self.offset += len(line)
                if record.kind != Kind.METRICS:
                    break
        return records


def read_records(path: Path, *, start_offset: int = 0) -> Iterator[Record]:
    """The records from `start_offset` (0, or the end of a record) to the end of what is written by now."""
    reader = JournalReader(path, offset=start_offset)
    while records := reader.read(1000):
        yield from records


def records_backwards(path: Path) -> Iterator[Record]:
    """The complete records, newest first, read from the end of the file in blocks: as fast for a journal of any length.

    Raises TrackerError for a damaged line.
    """
    with path.open("rb") as file:
        fd = file.fileno()
        end = _newline_before(fd, os.fstat(fd).st_size) + 1
        while end > 0:
            begin = _newline_before(fd, max(0, end - _BLOCK)) + 1
            for line in reversed(os.pread(fd, end - begin, begin).splitlines(keepends=True)):
                end -= len(line)
                yield _decoded(line, path, end)


def last_record(path: Path) -> Record | None:
    """The last complete record; None for an empty journal."""
    return next(records_backwards(path), None)


def finish_record(path: Path) -> Record | None:
    """The finish record that ended the run, which artifacts and events may follow; None while the run goes on, after a
    later start, and if the training process died without one."""
    for record in records_backwards(path):
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
        begin = _newline_before(file.fileno(), offset - 1) + 1
    return JournalReader(path, offset=begin).read(1)[0]


def _decoded(line: bytes, path: Path, offset: int) -> Record:
    try:
        return decode_record(line)
    except ValueError as error:
        raise TrackerError(f"{path}: byte {offset} begins no journal record; remove that line") from error


def is_being_written(path: Path) -> bool:
    """Whether a living process, of this host or another, has this journal open for writing."""
    return lock_holder(path) is not None


class Journal:
    """The one writer of a journal file, thread-safe; an exclusive lock keeps every other writer away.

    A background thread calls fdatasync once a second, so that logging never waits for the disk. A forked child
    loses the file: its records would break the sequence. Metrics that come after a finish record are refused: the run
    has ended, and only artifacts and events of it may follow.
    """

    def __init__(self, path: Path, fd: int, file_lock: FileLock, *, run: str, writer: str) -> None:
        """Use `Journal.open`."""
        self.path = path
        self._file_lock = file_lock
        self.lost = 0
        """Records that could not be written (a full disk); their sequence numbers are given to later records."""
        self._warned: set[str] = set()
        self._fd = fd
        os.ftruncate(fd, _newline_before(fd, os.fstat(fd).st_size) + 1)
        last = last_record(path)
        self._next_seq = 0 if last is None else last.seq + 1
        self._synced_seq = self._next_seq
        self._ended = finish_record(path) is not None
        self._head = f'{{"v":{VERSION},"run":{json.dumps(run)},"writer":{json.dumps(writer)},"seq":'
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._syncing = threading.Thread(target=self._sync_each_second, name="journal-sync", daemon=True)
        self._syncing.start()
        _OPEN_JOURNALS.add(self)

    @classmethod
    def open(cls, path: Path, *, run: str, writer: str) -> "Journal":
        """Create the file (mode 0600) or continue it, with a torn last line cut off.

        Raises TrackerError if another process is writing it, OSError if the disk refuses.
        """
        try:
            file_lock = FileLock.acquire(path, timeout_s=_LOCK_TIMEOUT_S)
        except LockHeldError as error:
            raise TrackerError(f"{path}: {error.holder} is writing this run; wait for it or stop it") from error
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            return cls(path, fd, file_lock, run=run, writer=writer)
        except BaseException:
            os.close(fd)
            file_lock.release()
            raise

    def append(
        self,
        kind: str,
        data: Mapping[str, Any],
        *,
        step: int | None = None,
        t_ms: int | None = None,
        patience_s: float = 0.0,
    ) -> int | None:
        """Write one record and return its sequence number; None if the disk did not take it (counted in `lost`), or if
        it is of metrics and the run has ended.

        `data` holds JSON values and numbers of numpy or torch (0-dimensional). Raises TypeError for others.
        `t_ms` is when it happened in Unix milliseconds, now if None. While the disk is full, a record that must not
        be missed tries again for `patience_s` seconds.
        """
        try:
            body = _encode_strictly(data)
        except (ValueError, TypeError):
            body = _encode_strictly(_jsonable(data))
        rest = f'"kind":"{kind}","step":{"null" if step is None else int(step)},"data":{body}}}\n'
        happened = time.time_ns() // 1_000_000 if t_ms is None else t_ms
        give_up = time.monotonic() + patience_s
        while True:
            with self._lock:  # a thread that samples metrics must not come between the check and the line
                if self._ended and kind == Kind.METRICS:
                    self._warn_once("metrics that come after the end of the run are not logged")
                    return None
                seq = self._append_line(f'"t_ms":{happened},{rest}')
                if seq is not None and kind in (Kind.START, Kind.FINISH):
                    self._ended = kind == Kind.FINISH
            if seq is not None:
                return seq
            if time.monotonic() >= give_up:
                self.lost += 1
                return None
            time.sleep(_FULL_DISK_PAUSE_S)

    def sync(self) -> None:
        """Return when everything written so far is on the disk (fdatasync)."""
        seq = self._next_seq
        os.fdatasync(self._fd)
        self._synced_seq = seq

    def close(self) -> None:
        """Sync and release the file; a second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._syncing.join()
        self.sync_or_warn()
        os.close(self._fd)
        self._fd = -1
        self._file_lock.release()

    def _append_line(self, rest: str) -> int | None:
        seq = self._next_seq
        # Counted first: if a signal handler raises around the write, a number is left out, never used twice.
        self._next_seq = seq + 1
        if not self._write(f"{self._head}{seq},{rest}".encode()):
            self._next_seq = seq
            return None
        return seq

    def _write(self, line: bytes) -> bool:
        try:
            written = os.write(self._fd, line)
            if written < len(line):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise OSError("disk full")
        except OSError as error:
            why = "it is closed" if self._closing.is_set() else error
            self._warn_once("cannot be written; training goes on, records are lost", why)
            return False
        return True

    def _warn_once(self, what: str, why: object = None) -> None:
        if what not in self._warned:
            self._warned.add(what)
            _log.warning("%s: %s%s", self.path, what, "" if why is None else f" ({why})")

    def _sync_each_second(self) -> None:
        while not self._closing.wait(SYNC_INTERVAL_S):
            self._file_lock.beat()
            if self._next_seq != self._synced_seq:
                self.sync_or_warn()

    def sync_or_warn(self) -> None:
        """`sync`, with a warning where the disk refuses."""
        try:
            self.sync()
        except OSError as error:
            _log.warning("%s: not on the disk yet (%s)", self.path, error)

    def _forget_in_child(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            os.close(self._fd)
            self._fd = -1
            self._file_lock.forget()


_OPEN_JOURNALS: "weakref.WeakSet[Journal]" = weakref.WeakSet()


def _leave_journals_to_the_parent() -> None:
    # A forked data loader worker would otherwise hold the lock after the trainer is gone.
    for journal in list(_OPEN_JOURNALS):
        journal._forget_in_child()


os.register_at_fork(after_in_child=_leave_journals_to_the_parent)


def _jsonable(value: Any) -> Any:
    """Replace what strict JSON cannot hold: non-finite floats by their names, numpy and torch numbers by Python's."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"{type(value).__name__} is not a value for the journal")
    number = float(value)
    return number if math.isfinite(number) else _non_finite_name(number)


def _non_finite_name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _newline_before(fd: int, end: int) -> int:
    """Offset of the last newline in [0, end), -1 if there is none."""
    while end > 0:
        begin = max(0, end - _BLOCK)
        at = os.pread(fd, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at
        end = begin
    return -1
