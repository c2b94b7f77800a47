"""What a tracker acknowledged and lost is delivered again: exactly that, or the whole run where it is gone."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import wandb
from happens import happens
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from test_commands import CSV, call
from wandb_double import WandbDouble

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.destinations import target_of
from vlatrack.tracking.backends.mlflow.runs import runs_with_uid
from vlatrack.tracking.backends.registry import backends_text, connect
from vlatrack.tracking.backends.wandb.steps import StepShift
from vlatrack.tracking.delivery.audit import audit_run
from vlatrack.tracking.delivery.repair import repair_backend, repair_here
from vlatrack.tracking.delivery.tail import Tail
from vlatrack.tracking.journal.records import Kind
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import OWN_RUN

MLFLOW, WANDB = BackendConfig("mlflow"), BackendConfig("wandb")


def deliver(run: ExampleRun, config: BackendConfig) -> None:
    """As the delivery process does, up to the end of the run."""
    RunFiles(run.dir).backends.write_text(backends_text([config]))
    reach = partial(connect, config, run.dir)
    where = partial(target_of, config, RunFiles(run.dir).runs)
    tail = Tail(run.dir, f"{config.kind}-0", reach, threading.Event(), destination=lambda: where().destination)
    tail.drain()
    tail.run()
    assert tail.finished


def repair(run: ExampleRun, label: str) -> str | None:
    (audit,) = audit_run(run.dir, [label], trust=OWN_RUN)
    assert audit.differences
    told = repair_here(run.dir, label)
    (audit,) = audit_run(run.dir, [label], trust=OWN_RUN)
    assert audit.differences == ()
    return told


def repair_in_a_process(run: ExampleRun, label: str) -> str:
    (audit,) = audit_run(run.dir, [label], trust=OWN_RUN)
    told = repair_backend(run.dir, audit, patience_s=10, trust=OWN_RUN)
    assert audit_run(run.dir, [label], trust=OWN_RUN)[0].differences == ()
    return told


def mlflow_rows(store: Path, uid: str) -> list[tuple[str, int, float]]:
    rows = (
        "SELECT metrics.key, step, metrics.value FROM metrics JOIN tags USING (run_uuid) "
        "WHERE tags.key = 'vlatrack.uid' AND tags.value = ?"
    )
    with contextlib.closing(sqlite3.connect(store)) as database:
        return sorted(database.execute(rows, (uid,)))


def journal_rows(run: ExampleRun) -> list[tuple[str, int, float]]:
    return sorted((name, record.step or 0, value) for record in run.metrics() for name, value in record.data.items())


@happens(
    "server",
    "the database of MLflow is restored from a backup that is older than the end of a run",
    "`vlatrack sync --audit --repair` delivers the missing values, files and the end again, and nothing else",
)
def test_a_store_restored_from_an_older_backup_gets_exactly_what_it_lacks(
    stored_run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store = ExampleRun(stored_run_dir.parents[2]), stored_run_dir.parents[1] / "mlflow.db"
    run.log(150)
    backend = connect(MLFLOW, run.dir)
    backend.open(run.start_value(), -1)
    backend.deliver(run.metrics()[:100])
    shutil.copy(store, store.with_name("backup.db"))
    (run.dir / "spec.yaml").write_text("a: 1\n")
    run.append(Kind.ARTIFACT, {"name": "spec.yaml", "place": "spec.yaml"})
    run.finish("FINISHED")
    deliver(run, MLFLOW)
    assert mlflow_rows(store, run.uid) == journal_rows(run)

    shutil.copy(store.with_name("backup.db"), store)
    sent, log_batch = Counter[str](), MlflowClient.log_batch

    def counted(self: MlflowClient, *args: Any, **kwargs: Any) -> object:
        sent.update(metric.key for metric in kwargs.get("metrics", ()))
        return log_batch(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    (audit,) = audit_run(run.dir, ["mlflow-0"])
    assert audit.differences[:2] == ("status: FINISHED here, RUNNING there", "values: 300 here, 200 there")
    assert repair(run, "mlflow-0") == "100 values delivered again"
    assert sent == {"train_closs": 50, "train_loss_ct": 50}
    assert mlflow_rows(store, run.uid) == journal_rows(run)
    client = MlflowClient(f"sqlite:///{store}")
    (stored,) = runs_with_uid(client, "1", run.uid)
    assert "mlflow.vlatrack.artifact.spec.yaml" in stored.data.tags


@happens(
    "item",
    "a repair meets a file that cannot be stored again, such as a checkpoint that was deleted since",
    "the values, the other files and the end are told again, and a line says which file is not",
)
def test_a_file_that_cannot_be_stored_again_does_not_hold_up_a_repair(
    stored_run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store = ExampleRun(stored_run_dir.parents[2]), stored_run_dir.parents[1] / "mlflow.db"
    run.log(5)
    for name in ("a.txt", "b.txt"):
        (run.dir / name).write_text(name)
        run.append(Kind.ARTIFACT, {"name": name, "place": name})
    run.finish("FINISHED")
    deliver(run, MLFLOW)
    (run.dir / "b.txt").unlink()
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        database.execute("DELETE FROM metrics WHERE step = 3")
        database.execute("DELETE FROM tags WHERE key LIKE '%vlatrack.artifact.%'")
        database.execute("UPDATE runs SET status = 'RUNNING'")

    def refused(*_: object) -> None:
        raise OSError("the bucket is gone")

    monkeypatch.setattr(MlflowClient, "log_artifact", refused)
    told = repair(run, "mlflow-0")
    assert told == "2 values delivered again; 2 other records not, such as artifact a.txt: OSError: the bucket is gone"


@pytest.mark.slow
@happens(
    "server",
    "a run is gone from a tracker, and no person deleted it: the database is a new one",
    "`vlatrack sync --audit --repair` creates it anew and delivers all of it, files included",
)
def test_a_run_that_is_gone_is_delivered_anew(stored_run_dir: Path, empty_store: Path) -> None:
    run, store = ExampleRun(stored_run_dir.parents[2]), stored_run_dir.parents[1] / "mlflow.db"
    run.log(20)
    (run.dir / "spec.yaml").write_text("a: 1\n")
    run.append(Kind.ARTIFACT, {"name": "spec.yaml", "place": "spec.yaml"})
    run.finish("FINISHED")
    deliver(run, MLFLOW)
    shutil.copy(empty_store, store)
    shutil.rmtree(store.with_name("mlartifacts"))
    # In a process of its own: this one has the old database open.
    command = [sys.executable, "-m", "vlatrack", "sync", str(run.dir), "--audit", "--repair"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "mlflow-0: complete, 23 records" in done.stdout) == (0, True), done.stdout
    assert mlflow_rows(store, run.uid) == journal_rows(run)
    assert [path.name for path in store.with_name("mlartifacts").rglob("*.yaml")] == ["spec.yaml"]


@happens(
    "server",
    "a person deleted a run at MLflow, and `vlatrack sync --audit --repair` is called",
    "the run stays deleted; a line says so, and how to restore it",
)
def test_a_run_that_a_person_deleted_stays_deleted(stored_run_dir: Path) -> None:
    run, store = ExampleRun(stored_run_dir.parents[2]), stored_run_dir.parents[1] / "mlflow.db"
    run.log(5)
    run.finish("FINISHED")
    deliver(run, MLFLOW)
    client = MlflowClient(f"sqlite:///{store}")
    (stored,) = runs_with_uid(client, "1", run.uid)
    client.delete_run(stored.info.run_id)
    done = call("sync", run.dir, "--audit", "--repair")
    assert done.exit_code == 1
    deleted = f"run run-1 ({stored.info.run_id}) was deleted in MLflow; restore it there and `vlatrack sync`"
    assert f"mlflow-0: left as it is: {deleted}" in done.output
    assert client.search_runs(["1"]) == []


def test_a_server_that_lost_values_in_the_middle_gets_them_again(tmp_path: Path, mlflow_server: MlflowServer) -> None:
    run = ExampleRun(tmp_path, uid="lost-in-the-middle")
    run.log(60)
    run.finish("FINISHED")
    config = BackendConfig("mlflow", options={"tracking_uri": mlflow_server.url})
    deliver(run, config)
    with contextlib.closing(sqlite3.connect(mlflow_server.store)) as store, store:
        store.execute(
            "DELETE FROM metrics WHERE step BETWEEN 20 AND 29 AND run_uuid IN "
            "(SELECT run_uuid FROM tags WHERE key = 'vlatrack.uid' AND value = ?)",
            (run.uid,),
        )
    assert repair(run, "mlflow-0") == "20 values delivered again"
    assert mlflow_rows(mlflow_server.store, run.uid) == journal_rows(run)


def wandb_rows(server: WandbDouble, run: ExampleRun) -> list[tuple[str, int, float]]:
    return sorted(
        (name, row["train_step"], value)
        for row in server.runs[run.uid].rows
        for name, value in row.items()
        if name in ("train_closs", "train_loss_ct")
    )


@pytest.mark.slow
@happens(
    "server",
    "W&B lost rows in the middle of a run",
    "`vlatrack sync --audit --repair` appends them; a resume after that goes on where it should",
)
def test_rows_that_wandb_lost_are_appended_and_a_resume_goes_on_after_them(
    tmp_path: Path, wandb_server: WandbDouble
) -> None:
    run = ExampleRun(tmp_path)
    run.log(40)
    run.finish("FINISHED")
    deliver(run, WANDB)
    history = wandb_server.runs[run.uid].history
    whole = list(history)
    row = json.loads(history[5])
    del history[35:], history[10:20], row["train_closs"]
    history[5] = json.dumps(row)
    assert repair(run, "wandb-0") == "31 values delivered again"
    assert wandb_rows(wandb_server, run) == journal_rows(run)
    assert history[6:10] == whole[6:10], "what was there stays as it is"
    summary = json.loads(wandb_server.runs[run.uid].summary)
    assert (summary["train_loss_ct"], summary["train_step"]) == (39 / 7, 39)

    run.start(epochs=2)
    run.log(10, first_step=40)
    run.finish("FINISHED")
    deliver(run, WANDB)
    assert wandb_rows(wandb_server, run) == journal_rows(run)
    assert audit_run(run.dir, ["wandb-0"])[0].differences == ()
    steps = [row["_step"] for row in wandb_server.runs[run.uid].rows]
    assert steps == sorted(set(steps))

    del history[3:6]  # and once more, with what the resume logged among the rest
    del history[-4:-2]
    assert repair(run, "wandb-0") == "9 values delivered again"
    assert wandb_rows(wandb_server, run) == journal_rows(run)
    wandb.teardown()


@pytest.mark.slow
def test_rows_that_wandb_lost_at_the_end_keep_their_steps(tmp_path: Path, wandb_server: WandbDouble) -> None:
    run = ExampleRun(tmp_path)
    run.log(40)
    run.finish("FINISHED")
    deliver(run, WANDB)
    stored = wandb_server.runs[run.uid]
    del stored.history[30:]
    stored.summary = json.dumps(json.loads(stored.summary) | {"_step": 30})
    assert repair(run, "wandb-0") == "20 values delivered again"
    assert [row["_step"] for row in stored.rows] == list(range(1, 41))
    assert wandb_rows(wandb_server, run) == journal_rows(run)
    wandb.teardown()


HASTY_REPAIR = """
import sys
from pathlib import Path
from vlatrack.tracking.backends.wandb import backend
from vlatrack.tracking.delivery.repair import repair_here
backend.RETRIES = 1  # the client asks again and again, for a minute
print(repair_here(Path(sys.argv[1]), "wandb-0"))
"""


@pytest.mark.slow
@happens(
    "server",
    "W&B does not know a run any more, and `vlatrack sync --audit --repair` is called",
    "it is delivered anew, unless a person deleted it: then a line says so, and how to undelete it",
)
def test_a_run_that_wandb_does_not_know_is_delivered_anew_unless_a_person_deleted_it(
    tmp_path: Path, wandb_server: WandbDouble
) -> None:
    run = ExampleRun(tmp_path)
    run.log(10)
    run.finish("FINISHED")
    deliver(run, WANDB)
    wandb.teardown()
    wandb_server.deleted.add(run.uid)
    hasty = [sys.executable, "-c", HASTY_REPAIR, str(run.dir)]
    told = subprocess.run(hasty, stdout=subprocess.PIPE, text=True, check=True, timeout=250).stdout
    assert f"left as it is: run {run.uid} was deleted in W&B; undelete it there and `vlatrack sync`" in told
    wandb_server.deleted.clear()
    wandb_server.runs.clear()
    command = [sys.executable, "-m", "vlatrack", "sync", str(run.dir), "--audit", "--repair"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=250)
    assert (done.returncode, "wandb-0: delivered anew, all 12 records" in done.stdout) == (0, True), done.stdout
    assert wandb_rows(wandb_server, run) == journal_rows(run)
    wandb.teardown()


def test_the_step_of_a_record_and_back() -> None:
    shift = StepShift.of({"vlatrack_step_shift": {"from_seq": 100, "shift": 60}})
    assert [shift.step_of(seq) for seq in (99, 100, 120)] == [99, 160, 180]
    assert [shift.seq_of(step) for step in (99, 140, 159, 160, 180)] == [99, 99, 99, 100, 120]
    assert [shift.tells(step) for step in (159, 160)] == [False, True]
    for damaged in ({}, {"vlatrack_step_shift": 3}, {"vlatrack_step_shift": {"from_seq": "1", "shift": 2}}):
        assert StepShift.of(damaged) == StepShift()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensorboard", "custom"])
def test_a_file_that_was_damaged_is_written_anew(tmp_path: Path, kind: str) -> None:
    run, config = ExampleRun(tmp_path), CSV if kind == "custom" else BackendConfig("tensorboard")
    run.log(30)
    run.finish("FINISHED")
    deliver(run, config)
    (file,) = [*run.dir.glob("tensorboard/*tfevents*"), *run.dir.glob("csv/metrics.csv")]
    lines = file.read_bytes()
    file.write_bytes(lines[: lines.rindex(b"\n", 0, len(lines) // 2) + 1] if kind == "custom" else lines[:500])
    assert repair_in_a_process(run, f"{kind}-0") == "delivered anew, all 32 records"


def test_repair_alone_is_no_command(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="--repair: needs --audit"):
        call("sync", tmp_path, "--repair")
