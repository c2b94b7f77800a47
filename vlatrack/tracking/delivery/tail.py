"""One backend following one journal: deliver, acknowledge, retry with backoff, set aside what is refused.

Metrics go in batches; other records one by one, each as soon as it is read. What fails is tried again later and keeps
nothing else waiting: not metrics a file, not files a metric, and none of them the end of the run, which is told as soon
as everything else has been attempted, and once more if anything arrives after it.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vlatrack.errors import VlatrackError
from vlatrack.tracking.backends.base import (
    ONLY_ONE,
    Backend,
    Buffers,
    Destination,
    Position,
    RejectedError,
    Rejection,
    RemoteDeletedError,
    RunFinish,
    TakesValuesAgain,
    deliver_or_halve,
)
from vlatrack.tracking.delivery.backoff import Backoff
from vlatrack.tracking.delivery.causes import one_line
from vlatrack.tracking.delivery.cursor import Cursor, CursorFile, Mark, SetAside
from vlatrack.tracking.delivery.others import OtherRecords
from vlatrack.tracking.journal.history import first_start
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.journal.records import JournalReader, Kind, Record, finish_record, last_record
from vlatrack.tracking.run_files import RunFiles

BATCH_RECORDS = 500
BATCH_INTERVAL_S = 5.0
"""How long records come together before a backend that has everything gets them: a batch costs it nearly the same,
however few they are, and that time would be taken from the training."""
MAX_IN_FLIGHT = 50_000
"""Records that a backend may have taken and not stored yet: they lie in the memory of its client."""
SHRINK_AFTER = 3
"""Failures in a row after which batches become smaller: something in them, or their size, may be at fault."""
END_WAITS_S = 5.0
"""How long the end of a run waits for an upload that goes on."""
POLL_S = 0.25
LARGEST = 2**63
MOST_PASSED_OVER = 8
"""Bad records of metrics in a row; if there are more, it is the tracker that takes none."""

_log = logging.getLogger(__name__)


class MetricsFailedError(VlatrackError):
    """Metrics could not be delivered, and are not tried again for so long; the connection is opened again, and other
    records go on."""

    def __init__(self, pause_s: float) -> None:
        super().__init__(pause_s)
        self.pause_s = pause_s


class Tail:
    """Delivers a run's journal to one backend until the run's end is there; `run` is the body of its thread."""

    def __init__(
        self,
        run_dir: Path,
        label: str,
        connect: Callable[[], Backend],
        stopping: threading.Event,
        *,
        destination: Callable[[], Destination] = lambda: ONLY_ONE,
    ) -> None:
        """`destination` is asked again when the backend is open: a database may not have been there before."""
        self._journal = RunFiles(run_dir).journal
        self._label = label
        self._connect = connect
        self._stopping = stopping
        self._draining = threading.Event()
        self._file = CursorFile(RunFiles(run_dir).delivery, label)
        self._destination = destination
        self._run_dir = run_dir
        self._cursor = self._saved = self._stored_cursor(destination())
        self._others = OtherRecords(run_dir, label, self._cursor.set_aside)
        self._position = Position(0, 0)
        self._reader = JournalReader(self._journal)
        self._reads_metrics = True
        self._in_flight: deque[Mark] = deque()
        """Up to where metrics were delivered, oldest first, and are not acknowledged yet: the backend has not stored
        them."""
        self._trouble, self._metrics_trouble = Backoff(), Backoff()
        self._batch_records = BATCH_RECORDS
        self._passed: set[int] = set()
        """Records of metrics that were set aside, or delivered out of turn."""
        self._furthest: tuple[int, ...] = ()
        self.finished = self._is_complete(self._cursor)
        """Whether the backend has everything of a run that is over."""

    def _stored_cursor(self, destination: Destination) -> Cursor:
        """Of this destination; a run that its tracker has to the end needs no temporary one."""
        cursor = self._file.read_for(self._journal)
        if cursor.seq < 0 or destination.is_called(cursor.destination):
            return replace(cursor, destination=destination.name)
        if destination.is_temporary and self._is_complete(cursor):
            return cursor
        _log.info("%s: %s had the run until now, %s gets all of it", self._label, cursor.destination, destination.name)
        self._file.forget_dead_letters()
        return Cursor(journal=cursor.journal, destination=destination.name)

    def _is_complete(self, cursor: Cursor) -> bool:
        last = last_record(self._journal)
        has_all = last is not None and last.seq == cursor.seq and cursor.is_all
        return has_all and finish_record(self._journal) is not None

    @property
    def progress(self) -> tuple[int, ...]:
        """Grows whenever the backend has got something more than it ever had: some are given all of it again each time
        that they are opened."""
        now = self._saved
        reached = (now.metrics.seq, now.others.seq, now.delivered_of(now.seq + 1), now.dead_letters)
        self._furthest = tuple(max(pair) for pair in zip(reached, self._furthest or reached, strict=True))
        return self._furthest

    def drain(self) -> None:
        """The run is over: no longer let records come together."""
        self._draining.set()

    def run(self) -> None:
        """Follow the journal to the finish record, through every failure, or until told to stop."""
        while not self.finished and not self._stopping.is_set():
            before = self.progress
            try:
                self._follow()
                self._await_something_due()
            except MetricsFailedError as error:
                self._note(error, error.pause_s)
            except Exception as error:  # the clients of the trackers raise whatever they like; the cursor shows it
                self._trouble = self._trouble if self.progress == before else Backoff()
                pause = self._trouble.failed()
                self._note(error, pause)
                self._stopping.wait(pause)

    def _note(self, error: Exception, pause: float) -> None:
        cause = error.__cause__ if isinstance(error, MetricsFailedError) else error
        assert isinstance(cause, Exception), "it was raised from one"
        text = one_line(cause)
        _log.warning("%s: %s; next attempt in %.1f s", self._label, text, pause)
        _log.debug("%s", self._label, exc_info=cause)
        self._cursor = replace(self._cursor, error=text)
        try:
            self._save()
        except OSError as full:  # the disk may have space again at the next attempt
            _log.warning("%s: the cursor cannot be written (%s)", self._label, full)

    def _save(self) -> None:
        refused = self._others.take_refused()
        if refused:
            self._cursor = replace(self._cursor, dead_letters=self._file.add_dead_letters(refused))
        self._cursor = replace(self._cursor, set_aside=self._others.left)
        if self._cursor != self._saved:
            self._file.write(self._cursor)
        self._saved = self._cursor

    def _follow(self) -> None:
        """Deliver what there is, tell the end, and leave."""
        with contextlib.closing(self._connect()) as backend:
            self._attach(backend)
            is_released, ends_at = False, 0.0
            while not self._stopping.is_set():
                if self._deliver_some(backend):
                    is_released = False
                    continue
                end = finish_record(self._journal)
                if end is not None and is_released and (self._others.are_tried or time.monotonic() > ends_at):
                    return self._tell_end(backend, end)
                if end is not None and not is_released and not is_being_written(self._journal):
                    # The journal is read once more: something may have come before it was released.
                    is_released, ends_at = True, time.monotonic() + END_WAITS_S
                elif is_released or not self._has_room or self._draining.wait(BATCH_INTERVAL_S):
                    self._stopping.wait(POLL_S)
        return None

    def _attach(self, backend: Backend) -> None:
        self._in_flight.clear()
        self._position = position = backend.open(first_start(self._journal), self._cursor.seq)
        destination = self._destination()
        if self._cursor.seq >= 0 and not destination.is_called(self._cursor.destination):  # its database is a new one
            self._cursor = self._stored_cursor(destination)
            self._others = OtherRecords(self._run_dir, self._label, ())
            self._attach(backend)
            return
        cursor = self._cursor
        if position.metrics_from <= cursor.metrics.seq:
            self._passed.clear()
            self._others.forget(metrics=True)
            self._cursor = replace(self._cursor, metrics=Mark())
        if position.others_from <= cursor.seq:
            self._others.forget(metrics=False)
            self._cursor = replace(self._cursor, others=Mark())
        self._cursor = replace(
            self._cursor,
            url=backend.url,
            destination=destination.name,
            error=cursor.error if self._metrics_trouble.failures else None,
            end_is_due=self._has_passed(finish_record(self._journal)),  # told once more, whatever happens now
        )
        self._read_from_here()
        self._save()

    def _has_passed(self, end: Record | None) -> bool:
        return end is not None and end.seq <= self._cursor.others.seq

    def _read_from_here(self) -> None:
        """In the order of the journal; while metrics cannot be delivered, the other records alone."""
        self._reads_metrics = self._metrics_trouble.is_due
        place = self._cursor.offset if self._reads_metrics else self._cursor.others.offset
        self._reader = JournalReader(self._journal, offset=place)

    def _deliver_some(self, backend: Backend) -> bool:
        """Deliver a batch of metrics or other records; whether something new was there or became of what was left. What
        fails time and again does not count: the end of the run would never be told."""
        before = self._others.left
        if not self._reads_metrics and self._metrics_trouble.is_due:
            self._read_from_here()
        if not self._reads_metrics:
            moved = self._deliver_next_other(backend)
        else:
            moved = self._has_room and self._deliver_next(backend)
        self._others.attempt(backend, self._reached.seq)
        self._others.collect()
        self._acknowledge_stored(backend)
        self._save()
        return moved or len(before) != len(self._others.left)

    def _deliver_next(self, backend: Backend) -> bool:
        """Deliver the next batch of metrics or the next other record."""
        records = self._reader.read(self._batch_records)
        if not records:
            return False
        last = records[-1]
        mark = Mark(self._reader.offset, last.seq)
        if last.kind == Kind.METRICS:
            self._deliver_metrics(backend, records)
        if mark.seq > self._reached.seq:
            self._in_flight.append(mark)
        if mark.seq > self._cursor.others.seq:
            self._cursor = replace(self._cursor, others=mark)
            self._deliver_other(backend, last, self._reader.begin)
        return True

    def _deliver_next_other(self, backend: Backend) -> bool:
        """Deliver the next record that is not of metrics."""
        record = self._reader.read_to_other()
        if record is None:
            return False
        self._cursor = replace(self._cursor, others=Mark(self._reader.offset, record.seq))
        self._deliver_other(backend, record, self._reader.begin)
        return record.kind != Kind.METRICS

    def _deliver_other(self, backend: Backend, record: Record, offset: int) -> None:
        if record.kind == Kind.FINISH:
            self._cursor = replace(self._cursor, end_is_due=True)
            return
        if record.kind == Kind.START:
            self._cursor = replace(self._cursor, end_is_due=False)  # an end that came before it is none any more
        if record.kind != Kind.METRICS and record.seq >= self._position.others_from:
            self._others.add(SetAside(record.seq, offset, record.kind))
            self._others.attempt(backend, self._reached.seq, seq=record.seq)

    def _deliver_metrics(self, backend: Backend, records: Sequence[Record]) -> None:
        """Deliver those of the records that the backend does not have. Raises MetricsFailedError, after which batches
        shrink until a record fails alone: it is passed over as soon as a later one proves that it is to blame."""
        first = max(self._reached.seq + 1, self._position.metrics_from)
        new = [record for record in records if record.seq >= first and record.seq not in self._passed]
        wanted = [record for record in new if _has_plain_place(record)]
        odd = [record for record in new if not _has_plain_place(record)]
        self._others.refuse([Rejection(r.seq, r.kind, "no tracker has such a step or time") for r in odd])
        if not wanted:
            return
        try:
            self._others.refuse(deliver_or_halve(backend.deliver, wanted))
        except RemoteDeletedError:
            raise
        except Exception as error:
            failed_alone = len(wanted) == 1 and self._metrics_trouble.failures >= SHRINK_AFTER
            if not failed_alone or not self._pass_over(backend, wanted[0], error):
                raise self._metrics_failed(len(wanted)) from error
        self._metrics_trouble = Backoff()
        self._batch_records = min(BATCH_RECORDS, 2 * self._batch_records)
        self._cursor = replace(self._cursor, error=None)

    def _metrics_failed(self, records: int) -> MetricsFailedError:
        pause_s = self._metrics_trouble.failed()
        if self._metrics_trouble.failures >= SHRINK_AFTER:
            self._batch_records = max(1, records // 8)
        return MetricsFailedError(pause_s)

    def _pass_over(self, backend: Backend, record: Record, error: Exception) -> bool:
        """Whether one of the next records of metrics arrives at once: then this one is to blame, and those in between.
        They are tried again later, or refused where the tracker takes nothing out of turn."""
        blamed = [SetAside(record.seq, self._reader.begin, record.kind, one_line(error))]
        reader = JournalReader(self._journal, offset=self._reader.offset)
        while len(blamed) <= MOST_PASSED_OVER and (following := reader.read(1)):
            if following[0].kind != Kind.METRICS or not _has_plain_place(following[0]):
                continue
            try:
                self._others.refuse(deliver_or_halve(backend.deliver, following))
            except RemoteDeletedError:
                raise
            except Exception as failure:
                blamed.append(SetAside(following[0].seq, reader.begin, following[0].kind, one_line(failure)))
                continue
            self._passed |= {following[0].seq, *(left.seq for left in blamed)}
            for left in blamed:
                if isinstance(backend, TakesValuesAgain) and not isinstance(backend, Buffers):
                    self._others.add(left)
                else:
                    self._others.refuse([Rejection(left.seq, left.kind, str(left.error))])
            return True
        return False

    def _tell_end(self, backend: Backend, end: Record) -> None:
        try:
            backend.finish(RunFinish.of(end))
        except RejectedError as verdict:
            self._others.refuse([Rejection(end.seq, end.kind, str(verdict))])
        self._cursor = replace(self._cursor, end_is_due=False)
        self._acknowledge_stored(backend)
        if self._in_flight:  # what was taken is not stored even now
            self._metrics_trouble.failed()
        self._save()
        self.finished = self._is_complete(self._cursor)

    def _await_something_due(self) -> None:
        """After the end was told: until something that failed can be tried again, or something new is there."""
        while not self.finished and not self._stopping.is_set():
            last = last_record(self._journal)
            is_new = last is not None and last.seq > self._cursor.others.seq
            lacks_metrics = self._cursor.metrics.seq < self._cursor.others.seq
            if is_new or self._others.is_any_due or (lacks_metrics and self._metrics_trouble.is_due):
                return
            self._others.collect()
            self._save()
            self.finished = self._is_complete(self._cursor)
            self._stopping.wait(0 if self.finished else POLL_S)

    @property
    def _has_room(self) -> bool:
        return self._reached.seq - self._cursor.metrics.seq < MAX_IN_FLIGHT

    @property
    def _reached(self) -> Mark:
        """Up to where metrics were delivered, stored or not."""
        return self._in_flight[-1] if self._in_flight else self._cursor.metrics

    def _acknowledge_stored(self, backend: Backend) -> None:
        """Move the mark of metrics behind what the backend has for good; of the rest it would be told again after a
        crash."""
        try:
            stored = backend.stored() if self._in_flight and isinstance(backend, Buffers) else None
        except Exception as error:
            raise MetricsFailedError(self._metrics_trouble.failed()) from error
        while self._in_flight and (stored is None or self._in_flight[0].seq <= stored):
            self._cursor = replace(self._cursor, metrics=self._in_flight.popleft())


def _has_plain_place(record: Record) -> bool:
    """Whether step and time are whole numbers of 64 bits, which is what trackers have for them."""
    return all(type(number) is int and -LARGEST <= number < LARGEST for number in (record.step or 0, record.t_ms))
