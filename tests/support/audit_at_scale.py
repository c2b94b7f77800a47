"""How long an audit of a run with millions of values takes at a backend, and how much memory:

`python tests/support/audit_at_scale.py FOLDER --at wandb --values 10000000` makes the run in an empty folder (3 GB),
stores its values, and audits it. W&B is the double of the tests: its pages cost less than those of the real server.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from mlflow_server import MlflowServer
from wandb_double import WANDB_KEY, Json, StoredRun, WandbDouble

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig, RunFinish
from vlatrack.tracking.backends.registry import backends_text, connect
from vlatrack.tracking.delivery.audit import audit_run
from vlatrack.tracking.delivery.configs import configs_of_run
from vlatrack.tracking.delivery.journal_values import metric_records
from vlatrack.tracking.journal.records import Kind, finish_record
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import OWN_RUN

NAMES = sorted(f"train_l1_loss_action_{x}" for x in range(20))
FIRST_MS = 1_790_000_000_000
CSV = BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend")


def value(name: str, step: int) -> float:
    return (step + NAMES.index(name)) / 7


def t_ms(step: int) -> int:
    """Three records have the same time."""
    return FIRST_MS + step // 3


def write_run(folder: Path, config: BackendConfig, records: int) -> ExampleRun:
    """A run with a metric of each name in each record."""
    run = ExampleRun(folder)
    files = RunFiles(run.dir)
    files.backends.write_text(backends_text([config]))
    with files.journal.open("a") as journal:
        for step in range(records):
            head = {"v": 1, "run": run.uid, "writer": "test", "seq": step + 1, "t_ms": t_ms(step)}
            data = {name: value(name, step) for name in NAMES}
            record = {**head, "kind": Kind.METRICS, "step": step, "data": data}
            journal.write(json.dumps(record, separators=(",", ":")) + "\n")
    run.finish("FINISHED")
    return run


def deliver(run: ExampleRun, config: BackendConfig, *, with_values: bool) -> None:
    """The run, its end and, where that takes minutes and not hours, its values."""
    journal = RunFiles(run.dir).journal
    with contextlib.closing(connect(config, run.dir)) as backend:
        end = finish_record(journal)
        assert end is not None, "it was written"
        backend.open(run.start_value(), -1)
        backend.describe(run.start_value())
        for records in metric_records(journal) if with_values else ():
            backend.deliver(records)
        backend.finish(RunFinish.of(end))


def fill_mlflow(database: Path, records: int) -> None:
    """What a delivery would store, written past MLflow."""
    with contextlib.closing(sqlite3.connect(database)) as store:
        store.execute("PRAGMA synchronous=OFF")
        store.execute("PRAGMA journal_mode=OFF")
        of_table = "FROM sqlite_master WHERE type = 'index' AND tbl_name = 'metrics' AND sql IS NOT NULL"
        indexes = store.execute(f"SELECT name, sql {of_table}").fetchall()
        for name, _ in indexes:
            store.execute(f"DROP INDEX {name}")
        (run_id,) = store.execute("SELECT run_uuid FROM runs").fetchone()
        insert = "INSERT INTO metrics (run_uuid, key, timestamp, step, value, is_nan) VALUES (?, ?, ?, ?, ?, 0)"
        store.executemany(insert, mlflow_rows(run_id, range(records)))
        store.executemany(insert.replace("metrics", "latest_metrics"), mlflow_rows(run_id, range(records - 1, records)))
        for _, sql in indexes:
            store.execute(sql)
        store.commit()


def mlflow_rows(run_id: str, steps: range) -> Iterator[tuple[str, str, int, int, float]]:
    return ((run_id, name, t_ms(step), step, value(name, step)) for name in NAMES for step in steps)


class LongRun(StoredRun):
    """A stored run with a row for each record, made when it is asked for; `rows` are the first and the last one."""

    records = 0

    @property
    def rows(self) -> list[Json]:
        return [self.row(0), self.row(self.records - 1)]

    def row(self, step: int) -> Json:
        place = {"_step": step + 1, "train_step": step, "_timestamp": t_ms(step) / 1000}
        return place | {name: value(name, step) for name in NAMES}


class LongRunDouble(WandbDouble):
    """Finds the rows of a page by their place."""

    def answer(self, operation: str, variables: Json) -> Json:
        if operation != "HistoryPage":
            return super().answer(operation, variables)
        run = self.runs[variables["run"]]
        assert isinstance(run, LongRun), "it was filled"
        steps = range(max(1, variables["minStep"]) - 1, min(variables["maxStep"] - 1, run.records))
        return {"project": {"run": {"history": [json.dumps(run.row(step)) for step in steps]}}}


def fill_wandb(server: LongRunDouble, run: ExampleRun, records: int) -> None:
    """What a delivery would have sent."""
    empty = server.runs[run.uid]
    server.runs[run.uid] = filled = LongRun(**vars(empty))
    filled.records = records
    filled.summary = json.dumps(filled.row(records - 1))


@contextlib.contextmanager
def stored_run(folder: Path, at: str, records: int) -> Iterator[Path]:
    """The directory of a run that a backend holds, for as long as its server runs."""
    with contextlib.ExitStack() as servers:
        config = BackendConfig("mlflow" if at == "sqlite" else at)
        match at:
            case "csv":
                config = CSV
            case "wandb":
                double = servers.enter_context(LongRunDouble())
                os.environ |= {"WANDB_BASE_URL": double.url, "WANDB_API_KEY": WANDB_KEY}
            case "http":
                server = MlflowServer(folder)
                server.start()
                servers.callback(server.kill)
                config = BackendConfig("mlflow", options={"tracking_uri": server.url})
        run = write_run(folder, config, records)
        deliver(run, config, with_values=at in ("csv", "tensorboard"))
        match at:
            case "sqlite":
                fill_mlflow(RunFiles(run.dir).runs / "mlflow.db", records)
            case "http":
                fill_mlflow(server.store, records)
            case "wandb":
                fill_wandb(double, run, records)
        yield run.dir


def measure(run_dir: Path) -> None:
    """Audit the run and print what that took."""
    begin = time.monotonic()
    (audit,) = audit_run(run_dir, configs_of_run(run_dir), trust=OWN_RUN)
    # That of getrusage would count the process that this one was forked from.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_mb = int(status["VmHWM"].split()[0]) * 1024 / 1e6
    print(
        f"{audit.values}\n{time.monotonic() - begin:.0f} s, at most {peak_mb:.0f} MB, differences: {audit.differences}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at", choices=("sqlite", "http", "wandb", "tensorboard", "csv"), default="sqlite")
    parser.add_argument("--values", type=int, default=10_000_000)
    given = parser.parse_args()
    with stored_run(given.folder, given.at, given.values // len(NAMES)) as run_dir:
        auditing = multiprocessing.get_context("spawn").Process(target=measure, args=(run_dir,))
        auditing.start()
        auditing.join()
