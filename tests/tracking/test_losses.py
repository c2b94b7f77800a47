"""A sync asks once, by counts, whether the trackers of a finished run still have what they acknowledged."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from happens import happens
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from test_commands import call
from test_repair import MLFLOW, WANDB, deliver
from wandb_double import WandbDouble

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import Audit, BackendConfig
from vlatrack.tracking.backends.mlflow.backend import MlflowBackend
from vlatrack.tracking.backends.mlflow.runs import runs_with_uid
from vlatrack.tracking.delivery.verification import unverified, values_at_most, verify
from vlatrack.tracking.journal.records import Kind
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import OWN_RUN


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that MLflow was asked for."""
    names, audit = [], MlflowBackend.audit

    def counted(self: MlflowBackend, start: object) -> Audit:
        names.append(start.uid)  # type: ignore[attr-defined]
        return audit(self, start)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowBackend, "audit", counted)
    return names


def finished(folder: Path, config: BackendConfig, *, uid: str = "contract-run-1") -> ExampleRun:
    run = ExampleRun(folder, uid=uid)
    run.log(50)
    run.finish("FINISHED")
    deliver(run, config)
    return run


@happens(
    "server",
    "a tracker has lost values of a finished run, and nobody asks for an audit",
    "the next `vlatrack sync` sees it by counts, says how many are lost, and delivers exactly these again",
)
def test_a_sync_delivers_again_what_a_local_store_has_lost(stored_run_dir: Path, asked: list[str]) -> None:
    run, store = finished(stored_run_dir.parents[2], MLFLOW), stored_run_dir.parents[1] / "mlflow.db"
    runs = stored_run_dir.parents[1]
    shutil.copy(store, store.with_name("whole.db"))
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        database.execute("DELETE FROM metrics WHERE step IN (3, 4)")
    told = call("sync", "--runs", runs)
    assert told.exit_code == 0
    assert told.output.startswith(f"{run.dir}  mlflow-0: has lost 4 values, which are delivered again\n")
    assert "  mlflow-0: 4 values delivered again\n" in told.output
    for name in (store.name, "whole.db"):
        with contextlib.closing(sqlite3.connect(store.with_name(name))) as database:
            assert database.execute("SELECT COUNT(*) FROM metrics").fetchall() == [(100,)]

    assert call("sync", "--runs", runs).output == f"nothing to deliver in {runs}\n"
    asked.clear()
    assert call("sync", "--runs", runs).output == f"nothing to deliver in {runs}\n"
    assert asked == [], "a run that was verified costs nothing"
    run.start(epochs=2)
    run.finish("FINISHED")
    assert unverified(run.dir, ["mlflow-0"]) == ["mlflow-0"], "it has gone on"


def test_a_sync_tells_a_tracker_again_how_a_run_ended(stored_run_dir: Path) -> None:
    run, store = finished(stored_run_dir.parents[2], MLFLOW), stored_run_dir.parents[1] / "mlflow.db"
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        # As in a backup of the moment between the last value and the end.
        database.execute("UPDATE runs SET status = 'RUNNING', end_time = NULL")
    told = call("sync", run.dir)
    assert told.exit_code == 0
    assert f"{run.dir}  mlflow-0: has lost the end of the run, which is told again\n" in told.output
    with contextlib.closing(sqlite3.connect(store)) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]


def test_a_server_is_asked_for_the_last_steps_alone(tmp_path: Path, mlflow_server: MlflowServer) -> None:
    config = BackendConfig("mlflow", options={"tracking_uri": mlflow_server.url})
    run = finished(tmp_path, config, uid="lost-at-the-end")
    client = MlflowClient(mlflow_server.url)
    (stored,) = runs_with_uid(client, client.get_experiment_by_name("contract").experiment_id, run.uid)
    with contextlib.closing(sqlite3.connect(mlflow_server.store)) as database, database:
        # As in a backup of two steps before.
        database.execute("DELETE FROM metrics WHERE run_uuid = ? AND step > 47", (stored.info.run_id,))
        database.execute("UPDATE latest_metrics SET step = 47 WHERE run_uuid = ?", (stored.info.run_id,))
    (verdict,) = verify(run.dir, ["mlflow-0"], trust=OWN_RUN)
    assert (verdict.is_lost, verdict.told.startswith("has lost 4 values")) == (True, True)


def test_a_run_that_a_person_deleted_is_told_once(stored_run_dir: Path) -> None:
    run, store = finished(stored_run_dir.parents[2], MLFLOW), stored_run_dir.parents[1] / "mlflow.db"
    client = MlflowClient(f"sqlite:///{store}")
    (stored,) = runs_with_uid(client, "1", run.uid)
    client.delete_run(stored.info.run_id)
    runs = stored_run_dir.parents[1]
    told = call("sync", "--runs", runs)
    assert (told.exit_code, "was deleted in MLflow; restore it there" in told.output) == (0, True)
    assert call("sync", "--runs", runs).output == f"nothing to deliver in {runs}\n"


def test_a_tracker_that_is_down_keeps_nobody_waiting_twice(tmp_path: Path, stored_run_dir: Path) -> None:
    first = finished(stored_run_dir.parents[2], MLFLOW)
    shutil.copytree(first.dir, first.dir.with_name("run-2"))
    runs = stored_run_dir.parents[1]
    (runs / "mlflow.db").write_bytes(b"no database" * 1000)
    told = call("sync", "--runs", runs)
    assert told.exit_code == 0, "both were delivered"
    assert told.output.count("mlflow-0: cannot be asked whether it still has the run: ") == 1


@pytest.mark.slow
def test_rows_that_wandb_lost_at_the_end_are_seen(tmp_path: Path, wandb_server: WandbDouble) -> None:
    run = finished(tmp_path, WANDB)
    assert list(verify(run.dir, ["wandb-0"])) == []
    run.start(epochs=2)
    run.finish("FINISHED")
    del wandb_server.runs[run.uid].history[48:]
    (verdict,) = verify(run.dir, ["wandb-0"])
    assert (verdict.is_lost, verdict.told.startswith("has lost 4 values")) == (True, True)


def test_values_are_counted_without_decoding_the_journal(tmp_path: Path) -> None:
    run = ExampleRun(tmp_path)
    run.log(5)
    run.append(Kind.METRICS, {"a": float("nan"), "b:c, d": float("inf")}, step=3)
    run.append(Kind.EVENT, {"name": "odd", "data": {"text": '"kind":"metrics"', "more": 1}, "alert": False})
    run.append(Kind.METRICS, {}, step=3)
    run.finish("FINISHED")
    assert values_at_most(RunFiles(run.dir).journal) == 12
    run.start(epochs=2)
    run.append(Kind.METRICS, {'odd":name': 1.0}, step=3)
    assert values_at_most(RunFiles(run.dir).journal) >= 13
