"""One bad item at a real MLflow store or server, and at the double of W&B's."""

import json
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fault_proxy import Fault, FaultProxy
from happens import happens
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from wandb_double import WandbDouble

from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.delivery import backoff
from vlatrack.tracking.delivery.cursor import Cursor, CursorFile
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.delivery.tail import Tail
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import OWN_RUN

Eventually = Callable[..., None]
MB = 1_000_000


def write_run(run_dir: Path, uid: str, *, file_size: int = 10) -> RunFiles:
    """A run with two files, metrics and an alert, that nobody has delivered."""
    run = TrackedRun.start(run_dir, uid=uid, name=uid, experiment="lanes", backends=[], params={"lr": 1}, tags={})
    for name, size in (("large.bin", file_size), ("small.txt", 10)):
        (run_dir / name).touch()
        os.truncate(run_dir / name, size)
        run.log_artifact(run_dir / name, name=name)
    for step in range(50):
        run.log({"train_closs": step / 3}, step=step)
    run.event("health", {}, alert=True)
    run.finish("FINISHED")
    return RunFiles(run_dir)


class Delivery:
    """One delivery in the process of the test, while something keeps it from being complete."""

    def __init__(self, files: RunFiles, config: BackendConfig) -> None:
        self._cursor = CursorFile(files.delivery, f"{config.kind}-0")
        self._stopping = threading.Event()
        self._tail = Tail(files.run_dir, f"{config.kind}-0", partial(connect, config, files.run_dir), self._stopping)
        self._tail.drain()
        self._thread = threading.Thread(target=self._tail.run, daemon=True)
        self._thread.start()

    @property
    def cursor(self) -> Cursor:
        return self._cursor.read()

    def complete(self) -> Cursor:
        self._thread.join(60)
        assert self._tail.finished, self.cursor
        return self.cursor

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(60)


def run_at(client: MlflowClient, uid: str) -> MlflowRun | None:
    experiment = client.get_experiment_by_name("lanes")
    found = (
        [] if experiment is None else client.search_runs([experiment.experiment_id], f"tags.`vlatrack.uid` = '{uid}'")
    )
    return found[0] if found else None


def has_ended_with_all_values(client: MlflowClient, uid: str) -> bool:
    run = run_at(client, uid)
    if run is None or run.info.status != "FINISHED":
        return False
    history = client.get_metric_history(run.info.run_id, "train_closs")
    return len(history) == 50 and any(tag.startswith("vlatrack.alert.") for tag in run.data.tags)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.2)


@happens(
    "server",
    "MLflow's artifact store cannot be used from here: `s3://` without boto3",
    "metrics, params, alerts and the end arrive; `status` and `sync` say what is missing",
)
def test_an_artifact_store_that_cannot_be_used_keeps_no_metrics_away(
    stored_run_dir: Path, eventually: Eventually
) -> None:
    client = MlflowClient(f"sqlite:///{stored_run_dir.parent.parent / 'mlflow.db'}")
    client.create_experiment("lanes", "s3://bucket/artifacts")
    delivery = Delivery(write_run(stored_run_dir, "u1"), BackendConfig("mlflow"))
    eventually(lambda: has_ended_with_all_values(client, "u1"))
    eventually(lambda: "boto3" in str(delivery.cursor.reason))
    run = run_at(client, "u1")
    assert run is not None
    assert run.data.params == {"lr": "1"}
    eventually(lambda: delivery.cursor.delivered_of(55) == 53)
    delivery.stop()


@pytest.mark.slow
@happens(
    "server",
    "an MLflow server answers 403 to files",
    "they wait with that reason; all others arrive, and files do later",
)
def test_an_mlflow_server_that_refuses_files_gets_all_others_and_the_files_later(
    run_dir: Path, mlflow_server: MlflowServer, eventually: Eventually
) -> None:
    client = MlflowClient(mlflow_server.url)
    with FaultProxy(mlflow_server.url) as proxy:
        proxy.choose = lambda method, path: Fault("status", 403) if method == "PUT" else None
        config = BackendConfig("mlflow", options={"tracking_uri": proxy.url})
        delivery = Delivery(write_run(run_dir, "u403"), config)
        eventually(lambda: has_ended_with_all_values(client, "u403"))
        eventually(lambda: "403" in str(delivery.cursor.reason))
        proxy.choose = lambda method, path: None
        cursor = delivery.complete()
    assert (cursor.delivered_of(55), cursor.dead_letters) == (55, 0)
    run = run_at(client, "u403")
    assert run is not None
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"large.bin", "small.txt"}
    assert run.info.status == "FINISHED"


@pytest.mark.slow
@happens(
    "item", "a file is larger than a proxy takes (413)", "it is refused, and the reason says how; all others arrive"
)
def test_a_file_that_is_too_large_for_a_proxy_is_a_dead_letter(run_dir: Path, mlflow_server: MlflowServer) -> None:
    client = MlflowClient(mlflow_server.url)
    files = write_run(run_dir, "u413", file_size=5 * MB)
    with FaultProxy(mlflow_server.url) as proxy:
        too_large = Fault("status", 413)
        proxy.choose = lambda method, path: too_large if method == "PUT" and path.endswith("large.bin") else None
        cursor = Delivery(files, BackendConfig("mlflow", options={"tracking_uri": proxy.url})).complete()
    assert has_ended_with_all_values(client, "u413")
    assert (cursor.delivered_of(55), cursor.dead_letters) == (55, 1)
    (letter,) = [json.loads(line) for line in (files.delivery / "mlflow-0.dead.jsonl").read_text().splitlines()]
    assert (letter["what"], "5.0 MB (413)" in letter["reason"]) == ("artifact large.bin", True)
    assert "copy_up_to_mb" in letter["reason"]


@pytest.mark.slow
@happens(
    "server",
    "an upload is slower than `--patience` lasts",
    "`sync` goes on for as long as any of it leaves the machine",
)
def test_a_sync_goes_on_while_a_slow_upload_makes_progress(run_dir: Path, mlflow_server: MlflowServer) -> None:
    files = write_run(run_dir, "u-slow", file_size=4 * MB)
    with FaultProxy(mlflow_server.url) as proxy:
        slow = Fault("throttle", bytes_per_s=400_000)
        proxy.choose = lambda method, path: slow if method == "PUT" else None
        files.backends.write_text(json.dumps([{"kind": "mlflow", "options": {"tracking_uri": proxy.url}}]))
        report = sync_run(run_dir, patience_s=3, trust=OWN_RUN)
    assert report.complete, report


@happens(
    "disk", "W&B's data folder cannot be written", "files wait with that reason; metrics, alerts and the end arrive"
)
def test_an_unwritable_data_folder_of_wandb_keeps_no_metrics_away(
    run_dir: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eventually: Eventually
) -> None:
    (tmp_path / "data").touch()  # a file where a folder ought to be
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    delivery = Delivery(write_run(run_dir, "u1"), BackendConfig("wandb"))
    eventually(lambda: "u1" in wandb_server.runs and wandb_server.runs["u1"].state == "finished")
    assert len(wandb_server.runs["u1"].rows) == 50
    assert [alert["title"] for alert in wandb_server.alerts] == ["health"]
    eventually(lambda: str(delivery.cursor.reason).startswith("artifact: "))
    (tmp_path / "data").unlink()
    cursor = delivery.complete()
    assert (cursor.delivered_of(55), cursor.dead_letters) == (55, 0)
    assert wandb_server.runs["u1"].state == "finished"
    assert len(wandb_server.runs["u1"].rows) == 50


@pytest.mark.slow
def test_a_slow_upload_to_wandb_keeps_no_metrics_waiting(
    run_dir: Path, wandb_server: WandbDouble, eventually: Eventually
) -> None:
    files = write_run(run_dir, "u1", file_size=3 * MB)
    with FaultProxy(wandb_server.url) as proxy:
        proxy.fault = Fault("throttle", bytes_per_s=500_000)
        wandb_server.uploads_to = proxy.url
        delivery = Delivery(files, BackendConfig("wandb"))
        eventually(lambda: "u1" in wandb_server.runs and len(wandb_server.runs["u1"].rows) == 50)
        assert bytes(3 * MB) not in wandb_server.uploads.values()
        cursor = delivery.complete()
    assert cursor.dead_letters == 0
    assert bytes(3 * MB) in wandb_server.uploads.values()
    assert wandb_server.runs["u1"].state == "finished"
