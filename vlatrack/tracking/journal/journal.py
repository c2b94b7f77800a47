"""Writing a journal: one process at a time appends records, and never waits for the disk; see `records.py`."""

import errno
import json
import logging
import mmap
import os
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlatrack.errors import TrackerError
from vlatrack.tracking.journal.encoding import encode, sendable
from vlatrack.tracking.journal.records import Kind, finish_record, last_record, newline_before
from vlatrack.tracking.lock import FileLock, LockHeldError, lock_holder
from vlatrack.tracking.privacy import open_private

VERSION = 1
SYNC_INTERVAL_S = 1.0

_LOCK_TIMEOUT_S = 1.0
"""Those who only ask whether a journal is being written hold its lock for an instant."""
_FULL_DISK_PAUSE_S = 0.2
_FORKS = 512
_START, _METRICS, _FINISH = str(Kind.START), str(Kind.METRICS), str(Kind.FINISH)
"""As plain texts: to name a member of an enumeration is a call in Python 3.11."""
_NOT_AFTER_THE_END = (_METRICS, _FINISH)
_log = logging.getLogger(__name__)


def is_being_written(path: Path) -> bool:
    """Whether a living process, of this host or another, has this journal open for writing."""
    return lock_holder(path) is not None


class Journal:
    """The one writer of a journal file, thread-safe; an exclusive lock keeps every other writer away.

    A background thread calls fdatasync once a second, so that logging never waits for the disk. Metrics and another end
    that come after a finish record are refused: the run has ended, and only artifacts and events of it may follow.

    Sequence numbers have no gaps and none comes twice, also if a signal handler raises in the middle of `append`, or
    writes records of its own there: an interrupted record is in the file as a whole or not at all.

    A forked child loses the file, since its records would break the sequence: they are dropped and counted, and the
    parent's `close` tells how many there were.
    """

    def __init__(self, path: Path, fd: int, file_lock: FileLock, *, run: str, writer: str) -> None:
        """Use `Journal.open`."""
        self.path = path
        self.forked = False
        """Whether this process is a forked child of the one that opened the journal."""
        self.lost = 0
        """Records that could not be written (a full disk); their sequence numbers are given to later records."""
        self._file_lock = file_lock
        self._warned: set[str] = set()
        self._dropped = memoryview(mmap.mmap(-1, 8 * _FORKS)).cast("q")
        """Shared with forked children: how many records each has dropped, by its process id modulo `_FORKS`."""
        self._fd = fd
        self._head = f'{{"v":{VERSION},"run":{json.dumps(run)},"writer":{json.dumps(writer)},"seq":'.encode()
        self._lock = threading.RLock()  # a signal handler may log while the main thread does
        self._next, self._ended, self._uncounted = self._numbered(0), False, True
        self._recount()
        self.first_seq = self._next[0]
        """The sequence number of the first record that this writer writes."""
        self._synced_seq = self.first_seq
        self._closing = threading.Event()
        self._released = False
        self._syncing = threading.Thread(target=self._sync_each_second, name="journal-sync", daemon=True)
        _OPEN_JOURNALS.add(self)

    @classmethod
    def open(cls, path: Path, *, run: str, writer: str) -> "Journal":
        """Create the file (mode 0600) or continue it, with a torn last line cut off.

        Raises TrackerError if another process is writing it or it is no regular file, OSError if the disk refuses.
        """
        file_lock, fd, journal = None, -1, None
        try:
            file_lock = FileLock.acquire(path, timeout_s=_LOCK_TIMEOUT_S)
            fd = open_private(path, os.O_RDWR | os.O_APPEND)
            journal = cls(path, fd, file_lock, run=run, writer=writer)
            journal._syncing.start()
            return journal
        except LockHeldError as error:
            raise TrackerError(f"{path}: {error.holder} is writing this run; wait for it or stop it") from error
        except BaseException:  # Ctrl-C as well: a notebook lives on, and would keep the lock
            if journal is not None:
                journal.close()
            elif file_lock is not None:
                if fd >= 0:
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
        it is refused because the run has ended.

        `data` holds JSON values and numbers of numpy or torch (0-dimensional); what in its texts could not be sent is
        escaped, see `encoding.py`. Raises TypeError for other values. `t_ms` is when it happened in Unix milliseconds,
        now if None. While the disk is full, a record that must not be missed tries again for `patience_s` seconds.
        """
        happened = time.time_ns() // 1_000_000 if t_ms is None else int(t_ms)
        at_step = "null" if step is None else int(step)
        rest = f',"t_ms":{happened},"kind":"{kind}","step":{at_step},"data":{encode(data)}}}\n'.encode()
        give_up = time.monotonic() + patience_s
        while True:
            try:
                with self._lock:
                    seq = self._append_line(str(kind), rest)
                if seq is None and kind == Kind.METRICS:
                    self._warn_once("metrics that come after the end of the run are not logged")
                return seq
            except (OSError, TrackerError) as error:
                if self.forked:
                    self._drop_in_child(kind, data)
                    return None
                why = "it is closed" if self._closing.is_set() else error
                self._warn_once("cannot be written; training goes on, records are lost", why)
            if time.monotonic() >= give_up:
                with self._lock:
                    self.lost += 1
                return None
            time.sleep(_FULL_DISK_PAUSE_S)

    @property
    def has_begun(self) -> bool:
        """Whether this writer has written a record, also one whose writing was interrupted."""
        return self.records > self.first_seq

    @property
    def records(self) -> int:
        """How many have been written, by earlier writers too, and one whose writing was interrupted included."""
        with self._lock:
            if self._uncounted and self._fd >= 0:
                self._recount()
            return self._next[0]

    @property
    def dropped_in_forks(self) -> int:
        """How many records forked children have tried to write."""
        return sum(self._dropped)

    @property
    def place(self) -> Path:
        """Where the file is now: its folder may have been moved, on the same disk, while the journal is open."""
        return self._file_lock.place

    def sync(self) -> None:
        """Return when everything written so far is on the disk (fdatasync); at once if the journal is closed."""
        seq = self._next[0]
        if self._fd >= 0:
            os.fdatasync(self._fd)
        self._synced_seq = seq

    def close(self) -> None:
        """Sync and release the file. A second call finishes what an interrupted first one left, or does nothing."""
        if self._released:
            return
        self._closing.set()
        if self._syncing.is_alive():
            self._syncing.join()  # it renews the lease, so it ends before the lease goes
        self.sync_or_warn()
        with self._lock:  # a thread that is writing must not meet another file of the same number
            self._close_file()
            self._file_lock.release()
            self._released = True
        if dropped := self.dropped_in_forks:
            text = f"{dropped} records of forked processes were not logged; log in the process that started the run"
            self._warn_once(text)

    def _append_line(self, kind: str, rest: bytes) -> int | None:
        """Write one line; None if it is refused, OSError if the disk does not take it.

        Python runs signal handlers where a call begins or ends, and while it writes a number as text. One may raise,
        log, or even end the run; so nothing of that stands between the check, the number and the write, and what a
        handler has counted is not counted again.
        """
        if self._uncounted:
            self._recount()
        if self._ended and kind in _NOT_AFTER_THE_END:
            return None
        self._uncounted = True  # until it is certain what the file holds
        seq, head = self._next
        line = head + rest
        written = os.write(self._fd, line)
        if written < len(line):
            self._recount()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        following = self._numbered(seq + 1)
        if self._next[0] == seq:
            self._next = following
            self._ended = (self._ended and kind != _START) or kind == _FINISH
            self._uncounted = False
        return seq

    def _numbered(self, seq: int) -> tuple[int, bytes]:
        """A sequence number, and how its line begins."""
        return seq, self._head + b"%d" % seq

    def _recount(self) -> None:
        """Learn from the file what comes next, and cut a torn last line off; a signal handler may have done so."""
        size = os.fstat(self._fd).st_size
        end = newline_before(self._fd, size) + 1
        if end < size and self._uncounted:
            os.ftruncate(self._fd, end)
        last = last_record(self.path, fd=self._fd)
        following = self._numbered(0 if last is None else last.seq + 1)
        ended = finish_record(self.path, fd=self._fd) is not None
        if self._uncounted:
            self._next, self._ended, self._uncounted = following, ended, False

    def _warn_once(self, what: str, why: object = None) -> None:
        if what not in self._warned:
            self._warned.add(what)
            _log.warning("%s: %s%s", self.path, what, "" if why is None else f" ({why})")

    def _sync_each_second(self) -> None:
        while not self._closing.wait(SYNC_INTERVAL_S):
            self._file_lock.beat()
            if self._next[0] != self._synced_seq:
                self.sync_or_warn()

    def sync_or_warn(self) -> None:
        """`sync`, with a warning where the disk refuses."""
        try:
            self.sync()
        except OSError as error:
            if self._fd >= 0:  # else a signal handler has closed it meanwhile
                _log.warning("%s: not on the disk yet (%s)", self.path, error)

    def _drop_in_child(self, kind: str, data: Mapping[str, Any]) -> None:
        first = self.dropped_in_forks == 0
        with self._lock:
            self._dropped[os.getpid() % _FORKS] += 1
        if first:
            names = ", ".join(list(data)[:3]) if kind == Kind.METRICS else f"{kind} {data.get('name')}"
            this = f"process {os.getpid()}, a fork of the one that started the run,"
            self._warn_once(f"{this} cannot log {sendable(names)}; log in the process that started the run")

    def _forget_in_child(self) -> None:
        self.forked = True
        if self._released:
            return
        self._released = True
        # Threads that are not in the child may have held these when it was forked.
        self._lock, self._closing = threading.RLock(), threading.Event()
        self._closing.set()
        self._close_file()
        self._file_lock.forget()

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
