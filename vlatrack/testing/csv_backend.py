"""The example of a custom backend, `{kind: custom, target: "vlatrack.testing.csv_backend:CsvBackend"}`; copy it."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

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
)
from vlatrack.tracking.journal.records import Record
from vlatrack.tracking.privacy import private_directory, write_private


class CsvBackend:
    """Rows `seq,t_ms,step,name,value` in `metrics.csv`; `run.json` notes how many bytes, and records, of it count."""

    numbers = NumberFormat()

    def __init__(self, run_dir: Path, *, naming: str, folder: str = "csv") -> None:
        self._run_dir = run_dir
        self._table, self._note_file = run_dir / folder / "metrics.csv", run_dir / folder / "run.json"
        self._noted = json.loads(self._note_file.read_text()) if self._note_file.exists() else {}
        self._naming = naming
        self.url: str | None = str(run_dir / folder)

    def open(self, start: RunStart, acknowledged: int) -> Position:
        private_directory(self._table.parent, within=self._run_dir)
        self._table.touch(mode=0o600)
        os.truncate(self._table, self._noted.get("size", 0))  # a crash may have left a part of a batch
        is_new = not self._noted
        self._note({"seq": -1, "size": 0, **self._noted, "name": start.name})
        return Position(self._noted["seq"] + 1, 0 if is_new else acknowledged + 1)

    def describe(self, start: RunStart) -> list[Rejection]:
        has_ended = self._noted.get("ended_ms", -1) > start.t_ms
        self._note({"params": dict(start.params), **({} if has_ended else {"status": "RUNNING"})})
        return []

    def deliver(self, records: Sequence[Record]) -> list[Rejection]:
        new = [record for record in records if record.seq > self._noted["seq"]]
        with self._table.open("a", newline="") as file:
            for record in new:
                named = ((metric_name(name, self._naming), value) for name, value in record.data.items())
                csv.writer(file).writerows((record.seq, record.t_ms, record.step or 0, *pair) for pair in named)
        self._note({"size": self._table.stat().st_size, "seq": max(self._noted["seq"], records[-1].seq)})
        return []

    def put_artifact(self, artifact: Artifact) -> None:
        self._note({f"artifact {artifact.name}": artifact.sha256})

    def alert(self, title: str, text: str, record: Record) -> None:
        self._note({f"alert {record.seq}": f"{title}: {text}"})

    def finish(self, finish: RunFinish) -> None:
        self._note({"status": finish.status, "reason": finish.reason, "ended_ms": finish.t_ms})

    def audit(self, start: RunStart) -> Audit:
        return Audit(self._noted.get("status"), last_seq=self._noted["seq"]) if self._noted else Audit()

    def metric_key(self, name: str) -> str:
        return metric_name(name, self._naming)

    def values(self, start: RunStart) -> Iterator[StoredValue]:
        if self._table.exists():
            with self._table.open(newline="") as file:
                for _, t_ms, step, key, value in csv.reader(file):
                    yield StoredValue(key, int(t_ms), int(step), float(value))

    def start_anew(self) -> None:
        for file in (self._note_file, self._table):
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _note(self, facts: dict[str, object]) -> None:
        self._noted |= facts
        write_private(self._note_file, json.dumps(self._noted, indent=2))
