"""The oracle of the storms: what each tracker holds of a run, beside what the run's journal says."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wandb_double import StoredRun, WandbDouble
from wandb_file import offline_artifacts, offline_exit_code, offline_rows

from vlatrack.tracking.backends.base import scalar_text
from vlatrack.tracking.backends.mlflow.backend import LONGEST_PARAM
from vlatrack.tracking.backends.mlflow.runs import name_of_mlflow_key
from vlatrack.tracking.backends.wandb.backend import X_AXIS, name_of_wandb_key
from vlatrack.tracking.journal.records import Kind, Record, read_records
from vlatrack.tracking.run_files import RunFiles

Row = tuple[str, int, int, float]
"""Documented name, timestamp in Unix milliseconds, training step, value."""
NOTE = "note.txt"
"""The file that each run logs."""


@dataclass(frozen=True)
class Outcome:
    """What the oracle found in one storm, over all trackers."""

    rows: int
    lost: int
    """Values of metrics and params."""
    duplicated: int
    files_lost: int
    """Trackers that do not have the run's artifact."""
    wrong_ends: int
    """Trackers whose run does not have the status that it ought to have, or that have more than one run."""
    blocked: int = 0
    """Trackers at which something that could have arrived while a fault lasted had not; 0 where a scene does not
    look."""

    @property
    def clean(self) -> bool:
        wrong = self.lost + self.duplicated + self.files_lost + self.wrong_ends + self.blocked
        return self.rows > 0 and wrong == 0


@dataclass(frozen=True)
class Held:
    """What a tracker holds of a run, under the documented names."""

    rows: Sequence[Row] = ()
    statuses: Sequence[str] = ()
    """One for each run that there is."""
    has_note: bool = False
    params: Mapping[str, str] | None = None
    """None: not looked at."""


Tracker = Callable[[RunFiles, str], Held]
"""Says what a tracker holds of the run with these files and this uid."""


def judge(files: RunFiles, uid: str, trackers: Iterable[Tracker], expected_status: str | None) -> Outcome:
    """Compare the trackers with the journal; the status of the run ought to be as its journal says, unless
    `expected_status` names another."""
    records = list(read_records(files.journal))
    assert [record.seq for record in records] == list(range(len(records))), "gaps in the journal"
    truth = _values(records)
    ends = [record.data["status"] for record in records if record.kind == Kind.FINISH]
    expected = [expected_status or end for end in ends[-1:]]
    has_note = any(record.kind == Kind.ARTIFACT for record in records)
    lost = duplicated = wrong = files_lost = 0
    for tracker in trackers:
        held = tracker(files, uid)
        rows = Counter(held.rows)
        lost += (truth - rows).total()
        duplicated += (rows - truth).total()
        wrong += [status.upper() for status in held.statuses] != expected
        files_lost += has_note and not held.has_note
        if held.params is not None:
            lost += len({name: text for name, text in _params(records).items() if held.params.get(name) != text})
    return Outcome(truth.total(), lost, duplicated, files_lost, wrong)


def number_behind(files: RunFiles, uid: str, trackers: Iterable[Tracker]) -> int:
    """How many trackers lack a metric of the journal, or the end that it says."""
    records = list(read_records(files.journal))
    truth, end = _values(records), next(r.data["status"] for r in reversed(records) if r.kind == Kind.FINISH)
    found = [tracker(files, uid) for tracker in trackers]
    return sum(bool(truth - Counter(held.rows)) or [s.upper() for s in held.statuses] != [end] for held in found)


def _values(records: Iterable[Record]) -> Counter[Row]:
    metrics = [record for record in records if record.kind == Kind.METRICS]
    return Counter((name, r.t_ms, r.step or 0, value) for r in metrics for name, value in r.data.items())


def _params(records: Sequence[Record]) -> dict[str, str]:
    return {name: scalar_text(value)[:LONGEST_PARAM] for name, value in records[0].data["params"].items()}


def mlflow_tracker(store: Path, artifacts: Path) -> Tracker:
    """An MLflow server or store, asked in its database itself: the server would hide what it holds twice."""

    def held(files: RunFiles, uid: str) -> Held:
        mine = "(SELECT run_uuid FROM tags WHERE key = 'vlatrack.uid' AND value = ?)"
        with contextlib.closing(sqlite3.connect(store, timeout=60)) as database:

            def select(columns: str, table: str) -> list[tuple]:  # type: ignore[type-arg]
                return database.execute(f"SELECT {columns} FROM {table} WHERE run_uuid IN {mine}", [uid]).fetchall()

            whole = {key.rpartition(".")[2]: name for key, name in select("key, value", "tags") if ".name." in key}
            rows = select("key, timestamp, step, value", "metrics")
            params = {_name(key, whole): text for key, text in select("key, value", "params")}
            statuses = [status for (status,) in select("status", "runs")]
        note = (files.run_dir / NOTE).read_bytes() if (files.run_dir / NOTE).exists() else b""
        has_note = any(kept.read_bytes() == note for kept in artifacts.rglob(NOTE))
        return Held([(_name(key, whole), *rest) for key, *rest in rows], statuses, has_note, params)

    return held


def _name(key: str, whole: Mapping[str, str]) -> str:
    """The documented name of an MLflow key; that of a cut one stands in a tag, by the digest at its end."""
    return whole.get(key.rpartition(":")[2]) or name_of_mlflow_key(key)


def wandb_tracker(double: WandbDouble, suffix: str = "") -> Tracker:
    """The double of W&B's server; the id of the run is its uid with this suffix."""

    def held(files: RunFiles, uid: str) -> Held:
        run = double.runs.get(f"{uid}{suffix}")
        if run is None:
            return Held()
        kept = [a["asked"]["artifactCollectionName"] for a in double.artifacts.values() if a["state"] == "COMMITTED"]
        note = (files.run_dir / NOTE).read_bytes() if (files.run_dir / NOTE).exists() else b""
        has_note = f"{run.name}-{NOTE}" in kept and note in double.uploads.values()
        return Held(_wandb_rows(run.rows), [run.state], has_note)

    return held


def offline_wandb_tracker(suffix: str) -> Tracker:
    """The offline files of W&B below the run directory."""

    def held(files: RunFiles, uid: str) -> Held:
        written = list((files.run_dir / "wandb").glob(f"offline-run-*/run-{uid}{suffix}.wandb"))
        states = [StoredRun(uid, "", exit_code=offline_exit_code(path)).state for path in written]
        rows = [row for path in written for row in _wandb_rows(offline_rows(path))]
        named = [name for path in written for name in offline_artifacts(path)]
        return Held(rows, states, f"{uid}{suffix}-{NOTE}" in named)

    return held


def _wandb_rows(history: Iterable[Mapping[str, float]]) -> list[Row]:
    return [
        (name_of_wandb_key(key), round(row["_timestamp"] * 1000), int(row[X_AXIS]), value)
        for row in history
        for key, value in row.items()
        if key != X_AXIS and not key.startswith("_")
    ]
