"""How long an audit of a run with millions of values in a local MLflow takes, and how much memory:

`python tests/support/audit_at_scale.py FOLDER --values 10000000` makes the run in an empty folder (3 GB) and audits it.
"""

import argparse
import contextlib
import json
import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig, RunFinish
from vlatrack.tracking.backends.registry import backends_text, connect
from vlatrack.tracking.delivery.audit import audit_run
from vlatrack.tracking.journal.records import Kind, finish_record
from vlatrack.tracking.run_files import RunFiles

NAMES = sorted(f"train_l1_loss_action_{x}" for x in range(20))
FIRST_MS = 1_790_000_000_000


def value(name: str, step: int) -> float:
    return (step + NAMES.index(name)) / 7


def write_run(folder: Path, records: int) -> ExampleRun:
    """A run with a metric of each name in each record; three records have the same time."""
    run = ExampleRun(folder)
    files = RunFiles(run.dir)
    files.backends.write_text(backends_text([BackendConfig("mlflow")]))
    with files.journal.open("a") as journal:
        for step in range(records):
            head = {"v": 1, "run": run.uid, "writer": "test", "seq": step + 1, "t_ms": FIRST_MS + step // 3}
            data = {name: value(name, step) for name in NAMES}
            record = {**head, "kind": Kind.METRICS, "step": step, "data": data}
            journal.write(json.dumps(record, separators=(",", ":")) + "\n")
    run.finish("FINISHED")
    return run


def fill_store(run: ExampleRun, records: int) -> None:
    """What a delivery would store, written past MLflow, which would take an hour."""
    files = RunFiles(run.dir)
    with contextlib.closing(connect(BackendConfig("mlflow"), run.dir)) as backend:
        end = finish_record(files.journal)
        assert end is not None, "it was written"
        backend.open(run.start_value(), -1)
        backend.finish(RunFinish.of(end))
    with contextlib.closing(sqlite3.connect(files.runs / "mlflow.db")) as store:
        store.execute("PRAGMA synchronous=OFF")
        store.execute("PRAGMA journal_mode=OFF")
        of_table = "FROM sqlite_master WHERE type = 'index' AND tbl_name = 'metrics' AND sql IS NOT NULL"
        indexes = store.execute(f"SELECT name, sql {of_table}").fetchall()
        for name, _ in indexes:
            store.execute(f"DROP INDEX {name}")
        (run_id,) = store.execute("SELECT run_uuid FROM runs").fetchone()
        insert = "INSERT INTO metrics (run_uuid, key, timestamp, step, value, is_nan) VALUES (?, ?, ?, ?, ?, 0)"
        store.executemany(insert, rows(run_id, range(records)))
        store.executemany(insert.replace("metrics", "latest_metrics"), rows(run_id, range(records - 1, records)))
        for _, sql in indexes:
            store.execute(sql)
        store.commit()


def rows(run_id: str, steps: range) -> Iterator[tuple[str, str, int, int, float]]:
    return ((run_id, name, FIRST_MS + step // 3, step, value(name, step)) for name in NAMES for step in steps)


def measure(run_dir: Path) -> None:
    """Audit the run and print what that took."""
    begin = time.monotonic()
    (audit,) = audit_run(run_dir, ["mlflow-0"])
    # That of getrusage would count the process that this one was forked from.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_mb = int(status["VmHWM"].split()[0]) * 1024 / 1e6
    print(
        f"{audit.values}\n{time.monotonic() - begin:.0f} s, at most {peak_mb:.0f} MB, differences: {audit.differences}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--values", type=int, default=10_000_000)
    given = parser.parse_args()
    made = write_run(given.folder, given.values // len(NAMES))
    fill_store(made, given.values // len(NAMES))
    auditing = multiprocessing.get_context("spawn").Process(target=measure, args=(made.dir,))
    auditing.start()
    auditing.join()
