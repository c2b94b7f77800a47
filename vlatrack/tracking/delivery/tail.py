"""One backend following one journal: deliver, acknowledge, retry with backoff, set aside what is refused for good."""

import contextlib
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.artifacts import KnownDigests, read_artifact
from vlatrack.tracking.backends.base import (
    ONLY_ONE,
    Backend,
    Buffers,
    Destination,
    Position,
    RejectedError,
    Rejection,
    RunEvent,
    RunFinish,
    RunStart,
    Scalar,
    TakesEvents,
    scalar_text,
)
from vlatrack.tracking.delivery.cursor import Cursor, CursorFile
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.journal.records import JournalReader, Kind, Record, finish_record, last_record
from vlatrack.tracking.privacy import redact
from vlatrack.tracking.run_files import RunFiles

BATCH_RECORDS = 500
BATCH_INTERVAL_S = 5.0
"""How long records come together before a backend that has everything gets them: a batch costs it nearly the same,
however few they are, and that time would be taken from the training."""
MAX_IN_FLIGHT = 50_000
"""Records that a backend may have taken and not stored yet: they lie in the memory of its client."""
POLL_S = 0.25
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivered:
    """Where delivery stands after a batch or one other record, and what the backend refused of that."""

    cursor: Cursor
    rejections: tuple[Rejection, ...] = ()


class Tail:
    """Delivers a run's journal to one backend until the run's end is there; `run` is the body of its thread."""

    def __init__(
        self,
        run_dir: Path,
        label: str,
        connect: Callable[[], Backend],
        stopping: threading.Event,
        *,
        destination: Destination = ONLY_ONE,
    ) -> None:
        self._run_dir = run_dir
        self._journal = RunFiles(run_dir).journal
        self._label = label
        self._connect = connect
        self._stopping = stopping
        self._draining = threading.Event()
        self._file = CursorFile(RunFiles(run_dir).delivery, label)
        self._cursor = self._stored_cursor(destination)
        self._in_flight: deque[Delivered] = deque()
        """What was delivered, oldest first, and not acknowledged yet: the backend has not stored it for good, or it
        comes after the finish record that is held back."""
        self._end: Record | None = None
        """The finish record that the backend is told last: some trackers take nothing after it."""
        self.finished = self._is_complete(self._cursor)
        """Whether the backend has everything of a run that is over."""

    def _stored_cursor(self, destination: Destination) -> Cursor:
        """Of this destination; a run that its tracker has to the end needs no temporary one."""
        cursor = self._file.read_for(self._journal)
        if cursor.destination in ("", destination.name):
            return replace(cursor, destination=destination.name)
        if destination.is_temporary and self._is_complete(cursor):
            return cursor
        _log.info("%s: %s had the run until now, %s gets all of it", self._label, cursor.destination, destination.name)
        self._file.dead_path.unlink(missing_ok=True)
        return Cursor(destination=destination.name)

    def _is_complete(self, cursor: Cursor) -> bool:
        last = last_record(self._journal)
        return last is not None and last.seq == cursor.seq and finish_record(self._journal) is not None

    @property
    def acknowledged(self) -> int:
        """The last sequence number that the backend has for good, or -1."""
        return self._cursor.seq

    def drain(self) -> None:
        """The run is over: no longer let records come together."""
        self._draining.set()

    def run(self) -> None:
        """Follow the journal to the finish record, through every failure, or until told to stop."""
        failures = 0
        while not self.finished and not self._stopping.is_set():
            before = self._cursor.seq
            try:
                self._follow()
            except Exception as error:
                self.finished = False  # what the cursor says counts
                failures = 0 if self._cursor.seq > before else failures + 1
                delay = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
                self._note(error, delay)
                self._stopping.wait(delay)

    def _note(self, error: Exception, delay: float) -> None:
        text = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
        _log.warning("%s: %s; next attempt in %.1f s", self._label, text, delay)
        _log.debug("%s", self._label, exc_info=error)
        try:
            self._acknowledge(replace(self._cursor, error=text))
        except OSError as full:  # the disk may have space again at the next attempt
            _log.warning("%s: the cursor cannot be written (%s)", self._label, full)

    def _acknowledge(self, cursor: Cursor) -> None:
        if cursor != self._cursor:
            self._file.write(cursor)
        self._cursor = cursor

    def _follow(self) -> None:
        with contextlib.closing(self._connect()) as backend:
            self._attach(backend)
            while not self._stopping.is_set():
                delivered = self._has_room and self._deliver_next(backend)
                self._acknowledge_stored(backend)
                if delivered:
                    continue
                if self.finished and not self._in_flight:
                    return
                if not self._has_room or self._draining.wait(BATCH_INTERVAL_S):
                    self._stopping.wait(POLL_S)

    def _attach(self, backend: Backend) -> None:
        self._in_flight.clear()
        acknowledged = self._cursor.seq
        following = JournalReader(self._journal, offset=self._cursor.offset).read(1)
        if following and following[0].kind == Kind.START:
            self._cursor = replace(self._cursor, start_offset=self._cursor.offset)
        self._start = JournalReader(self._journal, offset=self._cursor.start_offset).read(1)[0]
        end = finish_record(self._journal)
        # Of a run that was delivered to its end, and got more files since, the end is told once more.
        self._end = end if end is not None and self._start.seq < end.seq <= acknowledged else None
        self._position = backend.open(RunStart.of(self._start), acknowledged)
        follows_on = self._position == Position(acknowledged + 1, acknowledged + 1)
        self._reader = JournalReader(self._journal, offset=self._cursor.offset if follows_on else 0)
        self.finished = False
        self._acknowledge(replace(self._cursor, url=backend.url, error=None))

    def _deliver_next(self, backend: Backend) -> bool:
        """Deliver a batch of metrics or one other record; False if there is nothing yet."""
        begin = self._reader.offset
        released = self._end is not None and not is_being_written(self._journal)  # asked before the journal is read
        records = self._reader.read(BATCH_RECORDS)
        if not records:
            if released:
                self._tell_end(backend)
            return False
        last = records[-1]
        continued = last.kind == Kind.START and last.seq > self._start.seq
        if continued and self._end is not None:
            self._tell_end(backend)
        if last.kind == Kind.METRICS:
            rejections = self._deliver_metrics(backend, [r for r in records if r.seq >= self._position.metrics_from])
        elif last.kind == Kind.FINISH:
            rejections = []
            self._end = last if last.seq > self._start.seq else None  # else it is of an earlier part of the run
        else:
            rejections = self._deliver_other(backend, last) if last.seq >= self._position.others_from else []
        reached = self._reached
        if last.seq > reached.seq:
            dead_letters = reached.dead_letters + len(rejections)
            reached = replace(reached, offset=self._reader.offset, seq=last.seq, dead_letters=dead_letters)
            reached = replace(reached, start_offset=begin) if continued else reached
            self._in_flight.append(Delivered(reached, tuple(rejections)))
            if continued:
                self._acknowledge_stored(backend)
                self._attach(backend)
        return True

    def _tell_end(self, backend: Backend) -> None:
        assert self._end is not None, "the end was read"
        backend.finish(RunFinish.of(self._end))
        self._end, self.finished = None, True

    @property
    def _has_room(self) -> bool:
        return self._reached.seq - self._cursor.seq < MAX_IN_FLIGHT

    @property
    def _reached(self) -> Cursor:
        """The cursor of what was delivered last, stored or not."""
        return self._in_flight[-1].cursor if self._in_flight else self._cursor

    def _acknowledge_stored(self, backend: Backend) -> None:
        """Move the cursor behind what the backend has for good; of the rest it would be told again after a crash."""
        stored = backend.stored() if self._in_flight and isinstance(backend, Buffers) else None
        held_from = None if self._end is None else self._end.seq
        stored_now: list[Delivered] = []
        while self._in_flight:
            seq = self._in_flight[0].cursor.seq
            if (stored is not None and seq > stored) or (held_from is not None and seq >= held_from):
                break
            stored_now.append(self._in_flight.popleft())
        if stored_now:
            self._file.add_dead_letters([rejection for batch in stored_now for rejection in batch.rejections])
            self._acknowledge(stored_now[-1].cursor)

    def _deliver_metrics(self, backend: Backend, records: list[Record]) -> list[Rejection]:
        """Deliver; where the backend refuses several records, find the bad ones by halving."""
        if not records:
            return []
        try:
            return backend.deliver(records)
        except RejectedError as verdict:
            if len(records) == 1:
                return [Rejection(records[0].seq, records[0].kind, str(verdict))]
        half = len(records) // 2
        return self._deliver_metrics(backend, records[:half]) + self._deliver_metrics(backend, records[half:])

    def _deliver_other(self, backend: Backend, record: Record) -> list[Rejection]:
        data = record.data
        try:
            match record.kind:
                case Kind.START:
                    pass  # the run is opened by `_attach`
                case Kind.ARTIFACT:
                    known = KnownDigests(data.get("files", {}), record.t_ms)
                    artifact = read_artifact(data["name"], data["place"], self._run_dir, known=known)
                    backend.put_artifact(replace(artifact, aliases=tuple(data.get("aliases", ()))))
                case Kind.EVENT:
                    if isinstance(backend, TakesEvents):
                        backend.event(RunEvent.of(record))
                    if data["alert"]:
                        backend.alert(data["name"], _event_text(data["data"]), record)
                case _:
                    raise RejectedError("a record of a later vlatrack")
        except (RejectedError, TrackerError) as verdict:
            return [Rejection(record.seq, f"{record.kind} {data.get('name', '')}".strip(), str(verdict))]
        return []


def _event_text(data: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key}: {scalar_text(value)}" for key, value in data.items())
