"""The records of a run that are delivered one by one to a backend: starts, artifacts, events, and metrics that failed
by themselves. Each is attempted in its turn, and one that fails is tried again later, while the others go on."""

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.artifacts import KnownDigests, read_artifact
from vlatrack.tracking.backends.base import (
    Backend,
    RejectedError,
    Rejection,
    RunEvent,
    RunStart,
    Scalar,
    TakesEvents,
    UploadsAside,
    scalar_text,
)
from vlatrack.tracking.delivery.backoff import Backoff
from vlatrack.tracking.delivery.causes import one_line
from vlatrack.tracking.delivery.cursor import SetAside
from vlatrack.tracking.health import HEALTH, finding_of
from vlatrack.tracking.journal.records import JournalReader, Kind, Record
from vlatrack.tracking.run_files import RunFiles

WAITS = "waits for the metrics before it"
Outcome = Sequence[Rejection] | Exception
_log = logging.getLogger(__name__)


class OtherRecords:
    """What is left of them; the finish record is not among them."""

    def __init__(self, run_dir: Path, label: str, left: Iterable[SetAside]) -> None:
        self._run_dir = run_dir
        self._journal = RunFiles(run_dir).journal
        self._label = label
        self._left = {record.seq: record for record in left}
        self._backoffs: defaultdict[int, Backoff] = defaultdict(Backoff)
        self._uploading: int | None = None
        self._uploaded: queue.SimpleQueue[tuple[int, int, Outcome]] = queue.SimpleQueue()
        self._beginning = 0
        """How often delivery began anew: an upload from before is not to the remote run of now."""
        self._refused: list[Rejection] = []

    @property
    def left(self) -> tuple[SetAside, ...]:
        """Ascending in seq."""
        return tuple(self._left[seq] for seq in sorted(self._left))

    @property
    def are_tried(self) -> bool:
        """Whether each has been attempted and none is being uploaded."""
        return self._uploading is None and all(record.error is not None for record in self._left.values())

    @property
    def is_any_due(self) -> bool:
        """Whether something could be attempted now."""
        return any(record.error != WAITS and self._is_due(record) for record in self._left.values())

    def add(self, record: SetAside) -> None:
        self._left.setdefault(record.seq, record)

    def remove(self, seq: int) -> None:
        self._left.pop(seq, None)
        self._backoffs.pop(seq, None)

    def forget(self, *, metrics: bool) -> None:
        """Delivery begins anew: of metrics, or of the others."""
        self._beginning += not metrics
        for record in self.left:
            if (record.kind == Kind.METRICS) == metrics:
                del self._left[record.seq]  # its pauses stay as long as they are

    def failed(self, record: SetAside, error: Exception) -> None:
        """Keep the record for later, with the reason."""
        pause = self._backoffs[record.seq].failed()
        text = one_line(error)
        self._left[record.seq] = replace(record, error=text)
        _log.warning("%s: %s %d: %s; next attempt in %.1f s", self._label, record.kind, record.seq, text, pause)

    def attempt(self, backend: Backend, metrics_until: int, *, seq: int | None = None) -> None:
        """Attempt the record `seq`, or one that is due: the one that has failed least. Events that a tracker shows with
        metrics come after these: `metrics_until` is the last record up to which they are delivered."""
        left = sorted(self.left, key=lambda record: self._backoffs[record.seq].failures)
        for record in left if seq is None else (self._left[seq],):
            if not self._is_due(record) or self._waits_for_metrics(record, backend, metrics_until):
                continue
            if record.kind == Kind.ARTIFACT and isinstance(backend, UploadsAside):
                if self._uploading is not None:
                    continue
                arguments = (backend, record, self._beginning)
                try:
                    threading.Thread(target=self._upload, args=arguments, name="upload", daemon=True).start()
                    self._uploading = record.seq
                except RuntimeError as error:  # as many threads as this machine allows
                    self.failed(record, error)
            else:
                self._conclude(record.seq, self._outcome(backend, record))
            return

    def collect(self) -> None:
        """Take note of an upload that has ended."""
        if not self._uploaded.empty():
            seq, beginning, outcome = self._uploaded.get_nowait()
            self._uploading = None
            if beginning == self._beginning:
                self._conclude(seq, outcome)

    def take_refused(self) -> list[Rejection]:
        """What was refused for good since the last call."""
        refused, self._refused = self._refused, []
        return refused

    def refuse(self, rejections: Sequence[Rejection]) -> None:
        self._refused += rejections

    def _is_due(self, record: SetAside) -> bool:
        return record.seq != self._uploading and self._backoffs[record.seq].is_due

    def _waits_for_metrics(self, record: SetAside, backend: Backend, metrics_until: int) -> bool:
        if record.kind != Kind.EVENT or record.seq <= metrics_until or not isinstance(backend, TakesEvents):
            return False
        if self._record(record).data["alert"]:
            return False
        self._left[record.seq] = replace(record, error=WAITS)
        return True

    def _upload(self, backend: Backend, record: SetAside, beginning: int) -> None:
        self._uploaded.put((record.seq, beginning, self._outcome(backend, record)))

    def _outcome(self, backend: Backend, record: SetAside) -> Outcome:
        try:
            return deliver_record(backend, self._run_dir, self._record(record))
        except Exception as error:  # the clients of the trackers raise whatever they like; the cursor shows it
            return error

    def _conclude(self, seq: int, outcome: Outcome) -> None:
        if seq not in self._left:  # forgotten meanwhile: delivery began anew
            return
        if isinstance(outcome, Exception):
            self.failed(self._left[seq], outcome)
        else:
            self._refused += outcome
            if self._left[seq].kind == Kind.START:  # what an earlier start said is out of date
                for earlier in [left.seq for left in self.left if left.kind == Kind.START and left.seq < seq]:
                    self.remove(earlier)
            self.remove(seq)

    def _record(self, record: SetAside) -> Record:
        return JournalReader(self._journal, offset=record.offset).read(1)[0]


def deliver_record(backend: Backend, run_dir: Path, record: Record, *, alerts: bool = True) -> Sequence[Rejection]:
    """Deliver one record, whatever its kind; returns what was refused for good. `alerts`: whether people are told."""
    data = record.data
    if (wrong := record.wrong_field()) is not None:
        return [Rejection(record.seq, record.kind, f"damaged: it has no right {wrong}")]
    try:
        match record.kind:
            case Kind.START:
                return backend.describe(RunStart.of(record))
            case Kind.METRICS:
                return backend.deliver([record])
            case Kind.ARTIFACT:
                known = KnownDigests(data.get("files", {}), record.t_ms)
                only = data.get("only", ())
                artifact = read_artifact(data["name"], data["place"], run_dir, known=known, only=only)
                aliases = tuple(data.get("aliases", ()))
                backend.put_artifact(replace(artifact, aliases=aliases, table=data.get("table")))
            case Kind.EVENT:
                if isinstance(backend, TakesEvents):
                    backend.event(RunEvent.of(record))
                if data["alert"] and alerts:
                    finding = finding_of(record) if data["name"] == HEALTH else None
                    text = _event_text(data["data"]) if finding is None else f"{finding.severity}: {finding.line()}"
                    backend.alert(data["name"], text, record)
            case _:
                raise RejectedError("a record of a later vlatrack")
    except (RejectedError, TrackerError) as verdict:
        return [Rejection(record.seq, f"{record.kind} {data.get('name', '')}".strip(), str(verdict))]
    return []


def _event_text(data: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key}: {scalar_text(value)}" for key, value in data.items())
