"""A run that a test writes record by record, as a training would."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from vlatrack.tracking.backends.base import RunStart, Scalar, Status
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Kind, Record, read_records
from vlatrack.tracking.privacy import private_directory
from vlatrack.tracking.run_files import RunFiles


class ExampleRun:
    """A journal at `<folder>/runs/contract/run-1`, with nobody who delivers it."""

    def __init__(self, folder: Path, *, uid: str = "contract-run-1", group: str | None = None) -> None:
        self.dir = folder / "runs" / "contract" / "run-1"
        self.uid = uid
        self._group = group
        private_directory(RunFiles(self.dir).delivery)
        self.start(epochs=1)

    def append(
        self, kind: str, data: Mapping[str, object], *, step: int | None = None, t_ms: int | None = None
    ) -> None:
        with contextlib.closing(Journal.open(RunFiles(self.dir).journal, run=self.uid, writer="test")) as journal:
            journal.append(kind, data, step=step, t_ms=t_ms)

    def start(self, **params: Scalar) -> None:
        """Begin the run, or continue it."""
        fixed = {"name": "run-1", "experiment": "contract", "tags": {"by": "test"}, "group": self._group}
        self.append(Kind.START, {**fixed, "params": params})

    def log(self, steps: int, *, first_step: int = 0) -> None:
        """Two metrics for each step."""
        with contextlib.closing(Journal.open(RunFiles(self.dir).journal, run=self.uid, writer="test")) as journal:
            for step in range(first_step, first_step + steps):
                journal.append(Kind.METRICS, {"train_closs": 1 / (step + 3), "train_loss_ct": step / 7}, step=step)

    def finish(self, status: Status, *, reason: str | None = None) -> None:
        self.append(Kind.FINISH, {"status": status, "reason": reason, "deliver_until_ms": 0})

    def records(self) -> list[Record]:
        return list(read_records(RunFiles(self.dir).journal))

    def metrics(self) -> list[Record]:
        return [record for record in self.records() if record.kind == Kind.METRICS]

    def start_value(self) -> RunStart:
        """The first start, as a backend is told of it."""
        return RunStart.of(self.records()[0])
