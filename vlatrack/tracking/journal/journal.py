"""Writing a journal: one process at a time appends records, and never waits for the disk; see `records.py`."""

import json
import logging
import math
import numbers
import os
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from vlatrack.errors import TrackerError
from vlatrack.tracking.journal.records import Kind, finish_record, last_record, newline_before
from vlatrack.tracking.lock import FileLock, LockHeldError, lock_holder
from vlatrack.tracking.privacy import open_private

VERSION = 1
SYNC_INTERVAL_S = 1.0

_LOCK_TIMEOUT_S = 1.0
"""Those who only ask whether a journal is being written hold its lock for an instant."""
_FULL_DISK_PAUSE_S = 0.2
_encode_strictly = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_log = logging.getLogger(__name__)


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
        os.ftruncate(fd, newline_before(fd, os.fstat(fd).st_size) + 1)
        last = last_record(path)
        self._next_seq = 0 if last is None else last.seq + 1
        self._synced_seq = self._next_seq
        self._ended = finish_record(path) is not None
        self._head = f'{{"v":{VERSION},"run":{json.dumps(run)},"writer":{json.dumps(writer)},"seq":'
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._released = False
        self._syncing = threading.Thread(target=self._sync_each_second, name="journal-sync", daemon=True)
        self._syncing.start()
        _OPEN_JOURNALS.add(self)

    @classmethod
    def open(cls, path: Path, *, run: str, writer: str) -> "Journal":
        """Create the file (mode 0600) or continue it, with a torn last line cut off.

        Raises TrackerError if another process is writing it or it is no regular file, OSError if the disk refuses.
        """
        try:
            file_lock = FileLock.acquire(path, timeout_s=_LOCK_TIMEOUT_S)
        except LockHeldError as error:
            raise TrackerError(f"{path}: {error.holder} is writing this run; wait for it or stop it") from error
        fd = open_private(path, os.O_RDWR | os.O_APPEND)
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
        """Sync and release the file. A second call finishes what an interrupted first one left, or does nothing."""
        if self._released:
            return
        self._closing.set()
        self._syncing.join()  # it renews the lease, so it ends before the lease goes
        if self._fd >= 0:
            self.sync_or_warn()
        self._close_file()
        self._file_lock.release()
        self._released = True

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
        if not self._released:
            self._closing.set()
            self._close_file()
            self._file_lock.forget()
            self._released = True

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1  # first, so that an interrupted close never closes a number that is another file's
        if fd >= 0:
            os.close(fd)


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
