"""Two trackers of one kind in one run: each gets everything, and neither disturbs the other."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_proxy import Fault, FaultProxy
from happens import happens
from mlflow.tracking import MlflowClient
from wandb_double import WandbDouble
from wandb_file import offline_rows

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.destinations import remember_starts
from vlatrack.tracking.backends.registry import backends_text, connect
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.journal.records import Record
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles

ONLINE = BackendConfig("wandb")
OFFLINE = BackendConfig("wandb", options={"mode": "offline"})
ELSEWHERE = BackendConfig("wandb", options={"project": "elsewhere"})


def values(rows: list[dict[str, float]]) -> list[float]:
    return [row["train_loss_ct"] for row in rows]


def expected(records: list[Record]) -> list[float]:
    return [record.data["train_loss_ct"] for record in records]


@happens(
    "place",
    "one run reports to W&B online, to offline files and to a second project",
    "all three hold every value; from the second on, their run ids end in `-2`, `-3`",
)
def test_three_wandb_backends_of_one_run_hold_the_same_rows(tmp_path: Path, wandb_server: WandbDouble) -> None:
    run = ExampleRun(tmp_path, uid="u1")
    run.log(200)
    run.finish("FINISHED")
    files = RunFiles(run.dir)
    files.backends.write_text(backends_text(remember_starts([ONLINE, OFFLINE, ELSEWHERE], [], files.runs)))
    report = sync_run(run.dir)
    assert report.complete, report
    (offline,) = (run.dir / "wandb").glob("offline-run-*/run-u1-2.wandb")
    online, elsewhere = wandb_server.runs["u1"], wandb_server.runs["u1-3"]
    assert (online.project, elsewhere.project) == ("vlatrack", "elsewhere")
    assert [values(rows) for rows in (online.rows, offline_rows(offline), elsewhere.rows)] == [
        expected(run.metrics())
    ] * 3
    assert (online.state, elsewhere.state) == ("finished", "finished")


@pytest.mark.slow
def test_a_wandb_server_that_refuses_logins_does_not_hold_up_offline_files(
    run_dir: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    with FaultProxy(wandb_server.url) as proxy:
        monkeypatch.setenv("WANDB_BASE_URL", proxy.url)
        proxy.fault = Fault("status", 401)
        run = TrackedRun.start(
            run_dir, uid="u1", name="n", experiment="e", backends=[ONLINE, OFFLINE], params={}, tags={}
        )
        for step in range(100):
            run.log({"train_loss_ct": step / 7}, step=step)
        delivery = RunFiles(run_dir).delivery
        # The second attempt finds the id in use, and ends the client that both share.
        eventually(lambda: (delivery / "deliver.log").read_text().count("; next attempt in") > 2)
        eventually(lambda: CursorFile(delivery, "wandb-1").read().seq == 100)
        proxy.fault = None
        report = run.finish("FINISHED")
    assert report.complete, report
    newest = max((run_dir / "wandb").glob("offline-run-*/run-u1-2.wandb"))
    assert values(offline_rows(newest)) == values(wandb_server.runs["u1"].rows) == [step / 7 for step in range(100)]


def test_ids_of_wandb_runs_stay_as_they_are_when_a_run_is_resumed(tmp_path: Path) -> None:
    configs = [BackendConfig("mlflow"), ONLINE, OFFLINE]
    started = remember_starts(configs, [], tmp_path)
    again = remember_starts(configs, started, tmp_path)
    assert [config.started_with.get("id_suffix") for config in again] == [None, "", "-2"]


def test_two_experiments_of_one_mlflow_store_hold_the_same_run(tmp_path: Path, empty_store: Path) -> None:
    run = ExampleRun(tmp_path)
    run.log(3)
    store = run.dir.parent.parent / "mlflow.db"
    shutil.copy(empty_store, store)
    client = MlflowClient(f"sqlite:///{store}")
    for name in ("one", "two"):
        backend = connect(BackendConfig("mlflow", options={"experiment": name}), run.dir)
        backend.open(run.start_value(), -1)
        backend.deliver(run.metrics())
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        (stored,) = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(stored.info.run_id, "train_loss_ct")
        assert [metric.value for metric in history] == expected(run.metrics())
