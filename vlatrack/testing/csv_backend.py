"""The example of a custom backend: a run as `metrics.csv` and `run.json` in a folder of the run directory.

Use it with `{kind: custom, target: "vlatrack.testing.csv_backend:CsvBackend"}`; copy it to begin your own.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlatrack.tracking.backend import Artifact, Audit, Position, Rejection, RunFinish, RunStart, metric_name
from vlatrack.tracking.journal import Record


class CsvBackend:
    """Rows `seq,t_ms,step,name,value`; the journal's `seq` on each row makes replays harmless."""

    def __init__(self, run_dir: Path, *, naming: str, folder: str = "csv") -> None:
        self._folder = run_dir / folder
        self._naming = naming
        self._next_seq = 0
        self.url: str | None = str(self._folder)

    def open(self, start: RunStart, acknowledged: int) -> Position:
        self._folder.mkdir(exist_ok=True, mode=0o700)
        run = self._run() or {"uid": start.uid, "artifacts": {}, "alerts": {}}
        self._save({**run, "name": start.name, "params": dict(start.params), "status": "RUNNING"})
        # A crash may have cut the last record in two: drop it, and ask for it again.
        rows = self._rows()
        self._next_seq = rows[-1][0] if rows else 0
        with self._table.open("w", newline="") as file:
            csv.writer(file).writerows(row for row in rows if row[0] < self._next_seq)
        return Position(self._next_seq, acknowledged + 1)

    def deliver(self, records: Sequence[Record]) -> list[Rejection]:
        with self._table.open("a", newline="") as file:
            for record in records:
                if record.seq >= self._next_seq:
                    named = ((metric_name(name, self._naming), value) for name, value in record.data.items())
                    csv.writer(file).writerows((record.seq, record.t_ms, record.step or 0, *pair) for pair in named)
                    self._next_seq = record.seq + 1
        return []

    def put_artifact(self, artifact: Artifact) -> None:
        run = self._run()
        self._save({**run, "artifacts": {**run["artifacts"], artifact.name: artifact.sha256}})

    def alert(self, title: str, text: str, record: Record) -> None:
        run = self._run()
        self._save({**run, "alerts": {**run["alerts"], str(record.seq): f"{title}: {text}"}})

    def finish(self, finish: RunFinish) -> None:
        self._save({**self._run(), "status": finish.status, "reason": finish.reason})

    def audit(self, start: RunStart) -> Audit:
        if not self._table.exists():
            return Audit()
        rows = self._rows()
        points = {row[1:] for row in rows}
        return Audit(self._run().get("status"), len({row[3] for row in rows}), len(points), rows[-1][0] if rows else -1)

    def close(self) -> None:
        """Nothing is held open between calls."""

    @property
    def _table(self) -> Path:
        return self._folder / "metrics.csv"

    def _rows(self) -> list[tuple[int, int, int, str, str]]:
        if not self._table.exists():
            return []
        whole = self._table.read_bytes().rpartition(b"\n")[0].decode()
        rows = csv.reader(io.StringIO(whole, newline=""))
        return [(int(seq), int(t), int(step), name, value) for seq, t, step, name, value in rows]

    def _run(self) -> dict[str, Any]:
        file = self._folder / "run.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _save(self, run: dict[str, Any]) -> None:
        new = self._folder / "run.json.new"
        new.write_text(json.dumps(run, indent=2))
        new.replace(self._folder / "run.json")
