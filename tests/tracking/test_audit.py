"""An audit compares value by value, in any order and in little memory."""

import contextlib
import json
import math
import random
import shutil
import sqlite3
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from happens import happens
from mlflow_server import MlflowServer

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import Backend, BackendConfig, NumberFormat, RunFinish, RunStart, StoredValue
from vlatrack.tracking.backends.mlflow import values as mlflow_values
from vlatrack.tracking.backends.registry import backends_text, connect
from vlatrack.tracking.delivery import value_hashes
from vlatrack.tracking.delivery.audit import audit_run, compared_values
from vlatrack.tracking.delivery.journal_values import metric_records
from vlatrack.tracking.delivery.value_hashes import HashFile, compare
from vlatrack.tracking.journal.records import Kind
from vlatrack.tracking.run_files import RunFiles


def delivered(run: ExampleRun, config: BackendConfig) -> Backend:
    """A run that a tracker has to the end."""
    RunFiles(run.dir).backends.write_text(backends_text([config]))
    run.finish("FINISHED")
    backend = connect(config, run.dir)
    with contextlib.closing(backend):
        backend.open(run.start_value(), -1)
        backend.deliver(run.metrics())
        backend.finish(RunFinish.of(run.records()[-1]))
    return backend


def test_two_sides_are_compared_in_any_order_and_over_many_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_hashes, "_CHUNK", 50)
    dice = random.Random(3)
    numbers = [dice.getrandbits(64) for _ in range(400)]
    ours, theirs = numbers[:300] + numbers[:50], numbers[20:400] + numbers[100:140]
    dice.shuffle(ours)
    dice.shuffle(theirs)
    with HashFile(tmp_path) as here, HashFile(tmp_path) as there, HashFile(tmp_path) as missing:
        for numbers, file in ((ours, here), (theirs, there)):
            for at in range(0, len(numbers), 30):
                file.add(np.array(numbers[at : at + 30], np.uint64))
        result = compare(here, there, missing)
        lost = sorted(set(ours) - set(theirs))
        assert missing.read().tolist() == lost
        assert missing.read(at_most=5).tolist() == lost[: len(missing.read(at_most=5))]
        assert list(tmp_path.iterdir()) == [], "the files have no names, so that nobody has to remove them"
    doubled = sum((Counter(theirs) - Counter(ours))[number] for number in set(ours))
    assert (result.missing, result.superfluous) == (len(lost), len(set(theirs) - set(ours))) == (20, 100)
    assert (result.doubled, result.here, result.there) == (doubled, 300, 380)


class Listing:
    """A tracker that lists what it is told to."""

    numbers = NumberFormat()

    def __init__(self, stored: Iterator[StoredValue]) -> None:
        self._stored = stored

    def metric_key(self, name: str) -> str:
        return name

    def values(self, start: RunStart) -> Iterator[StoredValue]:
        return self._stored


def test_an_audit_of_many_values_takes_little_memory(tmp_path: Path) -> None:
    run, count = ExampleRun(tmp_path), 30_000
    start = run.start_value()
    run.append(Kind.METRICS, {"train_closs": 0.0}, step=0, t_ms=0)
    files = RunFiles(run.dir)
    line = json.loads(files.journal.read_text().splitlines()[-1])
    with files.journal.open("a") as journal:
        for step in range(1, count):
            journal.write(json.dumps(line | {"seq": step + 1, "step": step, "data": {"train_closs": step / 7}}) + "\n")
    stored = (StoredValue("train_closs", 0, step, step / 7) for step in reversed(range(count)) if step != 7)
    tracemalloc.start()
    try:
        with compared_values(files, Listing(stored), start) as (values, _, _):
            assert (values.missing, values.superfluous, values.there) == (1, 0, count - 1)
        assert tracemalloc.get_traced_memory()[1] < 5e6, "a set of all values would take three times as much"
    finally:
        tracemalloc.stop()


def test_wide_records_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    run = ExampleRun(tmp_path)
    for step in range(12):
        run.append(Kind.METRICS, {f"m{number}": 1.0 for number in range(2500)}, step=step)
    assert [len(records) for records in metric_records(RunFiles(run.dir).journal)] == [1, 4, 4, 3]


@happens(
    "server",
    "a tracker lost some of the values that it had acknowledged, or has others",
    "`vlatrack sync --audit` compares value by value, says how many are missing and too many, and names the first",
)
def test_each_missing_value_and_each_that_was_not_logged_is_told(stored_run_dir: Path) -> None:
    run = ExampleRun(stored_run_dir.parents[2])
    run.log(20)
    delivered(run, BackendConfig("mlflow"))
    with contextlib.closing(sqlite3.connect(stored_run_dir.parents[1] / "mlflow.db")) as store, store:
        store.execute("DELETE FROM metrics WHERE key = 'train_closs' AND step >= 15")
        store.execute("UPDATE metrics SET value = value + 1e-9 WHERE key = 'train_loss_ct' AND step = 3")
    (audit,) = audit_run(run.dir, ["mlflow-0"])
    assert audit.differences == (
        "values: 40 here, 35 there",
        "6 missing: train_loss_ct at step 3, train_closs at step 15, train_closs at step 16, …",
        "1 that were not logged",
    )


@pytest.mark.parametrize("way", ["database", "unknown schema"])
def test_a_local_mlflow_lists_its_values_in_pages(
    stored_run_dir: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    run = ExampleRun(stored_run_dir.parents[2])
    run.log(10)
    run.append(Kind.METRICS, {"a/b=c": math.nan, "b": math.inf}, step=3)
    monkeypatch.setattr(mlflow_values, "ROWS_PER_PAGE", 7)
    monkeypatch.setattr(mlflow_values, "GET_METRIC_HISTORY_MAX_RESULTS", 3)
    if way == "unknown schema":
        monkeypatch.setattr(mlflow_values, "_COLUMNS", {"run_uuid", "nanoseconds"})
    backend = delivered(run, BackendConfig("mlflow"))
    with compared_values(RunFiles(run.dir), backend, run.start_value()) as (values, keys, _):
        assert (values.missing, values.superfluous, values.there, keys) == (0, 0, 22, 4)


@pytest.mark.slow
def test_a_server_lists_its_values_in_pages(
    tmp_path: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ExampleRun(tmp_path, uid="audited-in-pages")
    run.log(10)
    monkeypatch.setattr(mlflow_values, "GET_METRIC_HISTORY_MAX_RESULTS", 3)
    backend = delivered(run, BackendConfig("mlflow", options={"tracking_uri": mlflow_server.url}))
    with compared_values(RunFiles(run.dir), backend, run.start_value()) as (values, keys, _):
        assert (values.missing, values.superfluous, values.there, keys) == (0, 0, 20, 2)


def test_a_tensorboard_file_that_was_cut_lacks_values(tmp_path: Path) -> None:
    run = ExampleRun(tmp_path)
    run.log(20)
    delivered(run, BackendConfig("tensorboard"))
    assert audit_run(run.dir, ["tensorboard-0"])[0].differences == ()
    (events,) = (run.dir / "tensorboard").glob("*tfevents*")
    shutil.copy(events, tmp_path / "whole")
    with events.open("r+b") as file:
        file.truncate(events.stat().st_size // 2)
    (audit,) = audit_run(run.dir, ["tensorboard-0"])
    assert audit.values is not None
    assert audit.values.missing > 0
