"""TensorBoard: one event file in the run directory, with the journal's times; `tensorboard --logdir runs` shows it.

TensorBoard keeps values as 32-bit floats (the journal keeps all digits) and has no place for files: an artifact is a
text with its digest. A note beside the event file says which record it ends with, so that a replay adds nothing; if
the two disagree, the file is written anew from the journal.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from vlatrack.tracking.backends.base import (
    Artifact,
    Audit,
    NumberFormat,
    Position,
    Rejection,
    RunFinish,
    RunStart,
    StoredValue,
    metric_name,
    scalar_text,
)
from vlatrack.tracking.journal.history import is_of_training
from vlatrack.tracking.journal.records import Record
from vlatrack.tracking.lock import FileLock
from vlatrack.tracking.privacy import open_private, private_directory, write_private
from vlatrack.tracking.run_files import RunFiles

EVENT_FILE, NOTE_FILE = "events.out.tfevents.vlatrack", "written.json"
STATUS, PARAMS, TAGS = "run/status", "run/params", "run/tags"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """What the event file holds in its first `size` bytes."""

    size: int = 0
    metrics_seq: int = -1
    """The last record of metrics in it."""
    start_seq: int = -1
    """The last start record in it."""
    start_ms: int = 0
    finish_ms: int = 0
    status: str | None = None
    last_step: int = 0
    resumed_seq: int = -1
    """The start record of a run that was continued, of which no metric has been written since."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """SHA-256 by name."""
    alerts: tuple[int, ...] = ()
    """Their records."""


class TensorboardBackend:
    """The event file `tensorboard/events.out.tfevents.vlatrack` of one run."""

    numbers = NumberFormat(single=True)

    def __init__(self, run_dir: Path, *, naming: str) -> None:
        files = RunFiles(run_dir)
        self.url: str | None = f"tensorboard --logdir {files.runs}"
        self._run_dir, self._folder = files.run_dir, files.run_dir / "tensorboard"
        self._naming = naming
        self._file: BinaryIO | None = None
        self._lock: FileLock | None = None
        self._written = Written()

    def open(self, start: RunStart, acknowledged: int) -> Position:
        self.close()
        private_directory(self._folder, within=self._run_dir)
        self._lock = FileLock.acquire(self._folder / "lock")
        fd = open_private(self._folder / EVENT_FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self._file = os.fdopen(fd, "ab")
        known = _read_note(self._folder)
        if known is None or os.fstat(fd).st_size < known.size:
            known = Written()
        os.ftruncate(fd, known.size)
        self._written = known
        if known.size == 0:
            self._write([Event(wall_time=start.t_ms / 1000, file_version="brain.Event:2")])
        return Position(known.metrics_seq + 1, 0 if known.size == 0 else acknowledged + 1)

    def describe(self, start: RunStart) -> list[Rejection]:
        if start.seq > self._written.start_seq:
            step, is_over = self._written.last_step, self._written.finish_ms > start.t_ms
            params = _text(PARAMS, _table({k: scalar_text(v) for k, v in start.params.items()}), start.t_ms, step)
            events = [params, _text(TAGS, _table(start.tags), start.t_ms, step)]
            events += [] if is_over else [_text(STATUS, "RUNNING", start.t_ms, step)]
            status = self._written.status if is_over else "RUNNING"
            resumed = start.seq if self._written.metrics_seq >= 0 else -1
            self._write(events, status=status, start_seq=start.seq, start_ms=start.t_ms, resumed_seq=resumed)
        return []

    def deliver(self, records: Sequence[Record]) -> list[Rejection]:
        new = [record for record in records if record.seq > self._written.metrics_seq]
        if not new:
            return []
        events = [self._event_of(record) for record in new]
        resumed_seq, last_step = self._written.resumed_seq, self._written.last_step
        # A checkpoint that is evaluated later on makes no run go back.
        if trained := [record for record in new if is_of_training(record)]:
            first = trained[0]
            if 0 <= resumed_seq < first.seq and (first.step or 0) <= last_step:
                # TensorBoard then leaves out what was logged from this step on before the run went back.
                session = SessionLog(status=SessionLog.SessionStatus.START)
                anew = Event(wall_time=first.t_ms / 1000, step=first.step or 0, session_log=session)
                events.insert(new.index(first), anew)
            resumed_seq, last_step = -1 if first.seq > resumed_seq else resumed_seq, trained[-1].step or 0
        self._write(events, metrics_seq=new[-1].seq, last_step=last_step, resumed_seq=resumed_seq)
        return []

    def put_artifact(self, artifact: Artifact) -> None:
        if self._written.artifacts.get(artifact.name) == artifact.sha256:
            return
        listing = "".join(f"| {file.name} | `{file.sha256}` |\n" for file in artifact.files)
        text = f"| file | SHA-256 |\n|---|---|\n{listing}"
        event = _text(f"artifacts/{artifact.name}", text, self._written.start_ms, self._written.last_step)
        self._write([event], artifacts={**self._written.artifacts, artifact.name: artifact.sha256})

    def alert(self, title: str, text: str, record: Record) -> None:
        if record.seq not in self._written.alerts:
            event = _text(f"alerts/{title}", text, record.t_ms, self._written.last_step)
            self._write([event], alerts=(*self._written.alerts, record.seq))

    def finish(self, finish: RunFinish) -> None:
        if self._written.finish_ms != finish.t_ms:
            text = finish.status if finish.reason is None else f"{finish.status}: {finish.reason}"
            event = _text(STATUS, text, finish.t_ms, self._written.last_step)
            self._write([event], status=finish.status, finish_ms=finish.t_ms)

    def audit(self, start: RunStart) -> Audit:
        known = _read_note(self._folder)
        if known is None or not (self._folder / EVENT_FILE).exists():
            return Audit()
        return Audit(known.status, last_seq=known.metrics_seq)

    def metric_key(self, name: str) -> str:
        return metric_name(name, self._naming)

    def values(self, start: RunStart) -> Iterator[StoredValue]:
        path = self._folder / EVENT_FILE
        for event in _events(path) if path.exists() else ():
            t_ms = round(event.wall_time * 1000)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield StoredValue(value.tag, t_ms, event.step, value.simple_value)

    def start_anew(self) -> None:
        for name in (NOTE_FILE, EVENT_FILE):
            (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _event_of(self, record: Record) -> Event:
        values = [Summary.Value(tag=metric_name(n, self._naming), simple_value=v) for n, v in record.data.items()]
        return Event(wall_time=record.t_ms / 1000, step=record.step or 0, summary=Summary(value=values))

    def _write(self, events: Sequence[Event], **changes: object) -> None:
        """Append the events, then note what the file holds now; in this order, so that a crash loses nothing."""
        assert self._file is not None, "open it first"
        writer = RecordWriter(self._file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()
        os.fdatasync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        self._written = replace(self._written, size=size, **changes)  # type: ignore[arg-type]
        write_private(self._folder / NOTE_FILE, json.dumps(dataclasses.asdict(self._written)))


def _read_note(folder: Path) -> Written | None:
    try:
        fields = json.loads((folder / NOTE_FILE).read_bytes())
        known = {field.name for field in dataclasses.fields(Written)}  # vlatrack 0.1 noted others as well
        return Written(**{name: value for name, value in fields.items() if name in known})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        _log.warning("%s: damaged (%s); writing the event file anew", NOTE_FILE, error)
        return None


def _events(path: Path) -> Iterator[Event]:
    return (Event.FromString(raw) for raw in RawEventFileLoader(str(path)).Load())


def _text(tag: str, text: str, t_ms: int, step: int) -> Event:
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
    value = Summary.Value(tag=tag, metadata=plugin, tensor=tensor)
    return Event(wall_time=t_ms / 1000, step=step, summary=Summary(value=[value]))


def _table(rows: Mapping[str, str]) -> str:
    return "| name | value |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
