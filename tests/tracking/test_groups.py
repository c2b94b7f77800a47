"""Runs of one sweep are shown together: `tracking.group` at MLflow, on SQLite and on a server, and at W&B."""

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from wandb_double import WandbDouble

from vlatrack.tracking.backends.base import BackendConfig, RunStart
from vlatrack.tracking.backends.mlflow import runs as mlflow_runs
from vlatrack.tracking.backends.mlflow.runs import runs_with_uid
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.run import TrackedRun

MLFLOW = BackendConfig("mlflow")


def start(uid: str, *, experiment: str = "exp", group: str | None = "lr-sweep") -> RunStart:
    return RunStart(uid, uid, experiment, {}, {}, 1_700_000_000_000, group=group)


def groups_of(client: MlflowClient, experiment: str) -> dict[str, list[str]]:
    """The names of the children of each run that is no child, as MLflow's user interface asks for them."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    top = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    asked = {run: client.search_runs([found.experiment_id], f"tags.mlflow.parentRunId = '{run}'") for run in ids(top)}
    return {run.info.run_name: sorted(child.info.run_name for child in asked[run.info.run_id]) for run in top}


def describe(run_dir: Path, of_run: RunStart) -> None:
    with contextlib.closing(connect(MLFLOW, run_dir)) as backend:
        backend.open(of_run, -1)
        assert backend.describe(of_run) == []


def ids(runs: Sequence[Run]) -> list[str]:
    return [run.info.run_id for run in runs]


def test_runs_of_a_group_are_children_of_one_finished_run_also_after_a_replay(stored_run_dir: Path) -> None:
    for uid in ("u1", "u2", "u1"):  # the last one is a replay
        describe(stored_run_dir, start(uid))
    describe(stored_run_dir, start("alone", group=None))
    describe(stored_run_dir, start("other", group="wd sweep's"))
    client = MlflowClient(f"sqlite:///{stored_run_dir.parent.parent / 'mlflow.db'}")
    assert groups_of(client, "exp") == {"lr-sweep": ["u1", "u2"], "wd sweep's": ["other"], "alone": []}
    statuses = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert statuses == {"lr-sweep": "FINISHED", "wd sweep's": "FINISHED"} | dict.fromkeys(
        ("u1", "u2", "alone", "other"), "RUNNING"
    )


def test_a_group_whose_run_was_deleted_gets_another_one(stored_run_dir: Path) -> None:
    client = MlflowClient(f"sqlite:///{stored_run_dir.parent.parent / 'mlflow.db'}")
    describe(stored_run_dir, start("u1"))
    (parent,) = runs_with_uid(client, "1", "group:1:lr-sweep")
    client.delete_run(parent.info.run_id)
    describe(stored_run_dir, start("u1"))
    assert groups_of(client, "exp") == {"lr-sweep": ["u1"]}


@pytest.mark.slow
def test_runs_that_start_at_once_on_a_server_make_one_group(
    tmp_path: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds no run of the group before any has made one: the worst moment."""
    uids = ["u1", "u2", "u3", "u4"]
    all_have_looked, looked = threading.Barrier(len(uids)), threading.local()

    def look(client: MlflowClient, experiment: str, uid: str, **view: int) -> Sequence[Run]:
        found = runs_with_uid(client, experiment, uid, **view)
        if uid.startswith("group:") and not hasattr(looked, "once"):
            looked.once = True
            all_have_looked.wait(60)
        return found

    monkeypatch.setattr(mlflow_runs, "runs_with_uid", look)
    server = BackendConfig("mlflow", options={"tracking_uri": mlflow_server.url})
    backends = [connect(server, tmp_path / uid) for uid in uids]
    for backend, uid in zip(backends, uids, strict=True):
        backend.open(start(uid, experiment="at-once"), -1)
    described: list[Callable[[], object]] = [
        lambda backend=backend, uid=uid: backend.describe(start(uid, experiment="at-once"))
        for backend, uid in zip(backends, uids, strict=True)
    ]
    threads = [threading.Thread(target=action) for action in described]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert groups_of(MlflowClient(mlflow_server.url), "at-once") == {"lr-sweep": uids}


@pytest.mark.slow
def test_a_group_travels_from_the_journal_to_both_trackers(stored_run_dir: Path, wandb_server: WandbDouble) -> None:
    run = TrackedRun.start(
        stored_run_dir,
        uid="u1",
        name="u1",
        experiment="exp",
        backends=[MLFLOW, BackendConfig("wandb")],
        params={},
        tags={},
        group="lr-sweep",
    )
    assert run.finish("FINISHED").complete
    client = MlflowClient(f"sqlite:///{stored_run_dir.parent.parent / 'mlflow.db'}")
    assert groups_of(client, "exp") == {"lr-sweep": ["u1"]}
    assert (wandb_server.runs["u1"].group, wandb_server.runs["u1"].job_type) == ("lr-sweep", "exp")
    first = json.loads((stored_run_dir / "journal.jsonl").read_text().splitlines()[0])
    assert first["data"]["group"] == "lr-sweep"
