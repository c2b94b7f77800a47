"""A tracker in memory that fails when told to, and a run that is delivered to it in the process of the test."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from vlatrack.tracking.backends.base import Artifact, Audit, Position, RejectedError, Rejection, RunFinish, RunStart
from vlatrack.tracking.delivery.cursor import Cursor, CursorFile
from vlatrack.tracking.delivery.tail import Tail
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Record
from vlatrack.tracking.privacy import private_directory
from vlatrack.tracking.run_files import RunFiles


class Memory:
    """A tracker in memory that survives its connections."""

    def __init__(self) -> None:
        self.url: str | None = "memory"
        self.rows: dict[int, Record] = {}
        self.batches: list[list[int]] = []
        self.artifacts: list[Artifact] = []
        self.alerts: list[str] = []
        self.statuses: list[str] = []
        self.starts: list[RunStart] = []
        self.poison: set[int] = set()
        self.failures: list[Exception] = []
        self.wants_all = False

    def open(self, start: RunStart, acknowledged: int) -> Position:
        return Position(0, 0) if self.wants_all else Position(acknowledged + 1, acknowledged + 1)

    def describe(self, start: RunStart) -> list[Rejection]:
        self.starts.append(start)
        self.statuses.append("RUNNING")
        return []

    def deliver(self, records: Sequence[Record]) -> list[Rejection]:
        self.batches.append([record.seq for record in records])
        if any(record.seq in self.poison for record in records):
            raise RejectedError("poison")
        self.rows |= {record.seq: record for record in records}
        if self.failures:  # stored, but the answer is lost
            raise self.failures.pop()
        return []

    def put_artifact(self, artifact: Artifact) -> None:
        self.artifacts.append(artifact)

    def alert(self, title: str, text: str, record: Record) -> None:
        self.alerts.append(f"{title} ({text})")

    def finish(self, finish: RunFinish) -> None:
        self.statuses.append(finish.status)

    def audit(self, start: RunStart) -> Audit:
        return Audit(metric_keys=1, last_seq=max(self.rows))

    def close(self) -> None: ...


class Run:
    """A run whose journal a test writes and whose delivery it runs in a thread."""

    def __init__(self, run_dir: Path) -> None:
        self.dir = run_dir
        self.files = RunFiles(run_dir)
        private_directory(self.files.delivery)
        self.stopping = threading.Event()
        self.cursor_file = CursorFile(self.files.delivery, "memory-0")
        self.start()

    def start(self, **params: int) -> None:
        self.append("start", {"name": "n", "experiment": "e", "params": params, "tags": {}})

    def append(self, kind: str, data: dict[str, object], *, step: int | None = None, t_ms: int | None = None) -> None:
        journal = Journal.open(self.files.journal, run="u1", writer="trainer")
        journal.append(kind, data, step=step, t_ms=t_ms)
        journal.close()

    def log(self, steps: range) -> None:
        journal = Journal.open(self.files.journal, run="u1", writer="trainer")
        for step in steps:
            journal.append("metrics", {"train_closs": float(step)}, step=step)
        journal.close()

    def finish(self) -> None:
        self.append("finish", {"status": "FINISHED", "reason": None, "deliver_until_ms": 0})

    def deliver(self, connect: Callable[[], Memory]) -> Cursor:
        Tail(self.dir, "memory-0", connect, self.stopping).run()
        return self.cursor_file.read()
