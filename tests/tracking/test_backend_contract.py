"""The contract of backends, run on each that vlatrack has and on the example that it ships."""

import contextlib
import csv
import hashlib
import json
import math
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from wandb_double import WandbDouble

from vlatrack.testing.backend_contract import BackendContract, Row, Stored
from vlatrack.tracking.backends.base import Backend, BackendConfig
from vlatrack.tracking.backends.mlflow.runs import name_of_mlflow_key
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.backends.wandb.backend import name_of_wandb_key

LARGEST_DOUBLE = 1.7976931348623157e308
SINGLE = 1.2e-7


class TestCsv(BackendContract):
    """The example of the documentation, loaded as a user's YAML loads it."""

    def connect(self, run_dir: Path) -> Backend:
        return connect(BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend"), run_dir)

    def stored(self, run_dir: Path) -> Stored:
        run = json.loads((run_dir / "csv" / "run.json").read_text())
        with (run_dir / "csv" / "metrics.csv").open(newline="") as file:
            rows = [Row(name, int(step), int(t_ms), float(value)) for _, t_ms, step, name, value in csv.reader(file)]
        return Stored(1, run["status"], rows)


class TestTensorboard(BackendContract):
    relative_error = SINGLE

    def connect(self, run_dir: Path) -> Backend:
        return connect(BackendConfig("tensorboard"), run_dir)

    def stored(self, run_dir: Path) -> Stored:
        files = list((run_dir / "tensorboard").glob("*tfevents*"))
        events = [Event.FromString(raw) for file in files for raw in RawEventFileLoader(str(file)).Load()]
        values = [(event, value) for event in events for value in event.summary.value]
        rows = [
            Row(value.tag, event.step, round(event.wall_time * 1000), value.simple_value)
            for event, value in values
            if value.HasField("simple_value")
        ]
        texts = [value.tensor.string_val[0].decode() for _, value in values if value.tag == "run/status"]
        return Stored(len(files), texts[-1].partition(":")[0], rows)


class TestMlflow(BackendContract):
    infinity = LARGEST_DOUBLE

    @pytest.fixture(autouse=True)
    def _store(self, empty_store: Path) -> None:
        self._empty_store = empty_store

    def connect(self, run_dir: Path) -> Backend:
        store = run_dir.parent.parent / "mlflow.db"
        if not store.exists():
            shutil.copy(self._empty_store, store)
        return connect(BackendConfig("mlflow"), run_dir)

    def stored(self, run_dir: Path) -> Stored:
        client = MlflowClient(f"sqlite:///{run_dir.parent.parent / 'mlflow.db'}")
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        runs = [run for run in runs if not run.data.tags["vlatrack.uid"].startswith("group:")]
        run = runs[0]
        long = {tag[14:]: name for tag, name in run.data.tags.items() if tag.startswith("vlatrack.name.")}
        with contextlib.closing(
            sqlite3.connect(run_dir.parent.parent / "mlflow.db")
        ) as store:  # the client takes a minute
            found = store.execute("SELECT key, step, timestamp, value, is_nan FROM metrics").fetchall()
        rows = [
            Row(long.get(key.rpartition(":")[2]) or name_of_mlflow_key(key), step, t_ms, math.nan if is_nan else value)
            for key, step, t_ms, value, is_nan in found
        ]
        root = Path(run.info.artifact_uri.removeprefix("file://"))
        paths = [path for path in root.rglob("*") if path.is_file()]
        files = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        return Stored(len(runs), run.info.status, rows, files)


class TestWandb(BackendContract):
    """Against the double of the server; what it is uploaded of files is tested in test_delivery.py."""

    @pytest.fixture(autouse=True)
    def _server(self, wandb_server: WandbDouble) -> Iterator[None]:
        self._double = wandb_server
        yield
        wandb.teardown()

    def connect(self, run_dir: Path) -> Backend:
        return connect(BackendConfig("wandb"), run_dir)

    def stored(self, run_dir: Path) -> Stored:
        run = list(self._double.runs.values())[-1]
        rows = [
            Row(name_of_wandb_key(name), row["train_step"], round(row["_timestamp"] * 1000), float(value))
            for row in run.rows
            for name, value in row.items()
            if name != "train_step" and not name.startswith("_")
        ]
        uids = {name.partition("-")[0] for name in self._double.runs}
        return Stored(len(uids), run.state.upper(), rows)
