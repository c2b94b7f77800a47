"""A run whose folder is moved while it goes on: the training ends well, and so does the delivery."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
from happens import happens
from mlflow.tracking import MlflowClient

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig, RunFinish
from vlatrack.tracking.backends.destinations import remember_starts, target_of
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.run import TrackedRun, run_status, start_run
from vlatrack.tracking.run_files import RunFiles

CSV = BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend")


@pytest.fixture
def moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> tuple[TrackedRun, Path, Path]:
    """A run that was moved while it goes on, where it was, and where it is."""
    monkeypatch.setattr("vlatrack.tracking.delivery.supervisor.WATCH_S", 0.02)
    run = start_run("exp", runs=tmp_path / "runs", backends=[CSV])
    old, new = run.path, tmp_path / "archive" / "exp" / run.run_id
    run.log({"train_closs": 0.5}, step=1)
    eventually(lambda: CursorFile(old / "delivery", "custom-0").read().seq == 1)
    new.parent.mkdir(parents=True)
    old.rename(new)
    return run, old, new


@happens(
    "place",
    "the folder of a run is moved, on the same disk, while the run goes on",
    "logging and the end of the run go on in the new place, and so does the delivery; nothing is left at the old one",
)
def test_a_run_that_is_moved_while_it_goes_on_ends_in_its_new_place(
    moved: tuple[TrackedRun, Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    run, old, new = moved
    run.log({"train_closs": 0.25}, step=2)
    (new / "figure.txt").write_text("x")
    run.log_artifact("figure.txt", name="figure.txt")
    report = run.finish("FINISHED", timeout_s=30)
    assert report.complete, report
    assert (run.path, run_status(new).status) == (new, "FINISHED")
    assert [line.split(",")[-1] for line in (new / "csv" / "metrics.csv").read_text().split()] == ["0.5", "0.25"]
    assert f"the run's folder was moved to {new}" in caplog.text
    assert not old.exists()
    assert not is_being_written(new / "journal.jsonl")
    assert not list(new.rglob("*.lease"))


@pytest.mark.parametrize("config", [CSV, BackendConfig("tensorboard")], ids=str)
def test_a_backend_does_not_make_a_folder_anew_that_was_moved_before_it_opened(
    tmp_path: Path, config: BackendConfig
) -> None:
    run = ExampleRun(tmp_path)
    start, backend = run.start_value(), connect(config, run.dir)
    run.dir.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        backend.open(start, -1)
    assert not run.dir.exists()


def test_wandb_files_are_in_the_new_place_of_a_run_that_was_moved_just_before_its_client_wrote_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, new, init = ExampleRun(tmp_path), tmp_path / "moved", wandb.init

    def move_and_init(**arguments: Any) -> wandb.Run:
        run.dir.rename(new)
        return init(**arguments)

    run.finish("FINISHED")
    start, end = run.start_value(), RunFinish.of(run.records()[-1])
    monkeypatch.setattr(wandb, "init", move_and_init)
    backend = connect(BackendConfig("wandb", options={"mode": "offline"}), run.dir)
    backend.open(start, -1)
    backend.finish(end)
    wandb.teardown()
    assert not run.dir.exists()
    assert [path.suffix for path in new.glob("wandb/offline-run-*/*.wandb")] == [".wandb"]


def test_a_run_whose_folder_is_gone_ends_without_an_error(
    moved: tuple[TrackedRun, Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    run, old, new = moved
    shutil.rmtree(new)
    run.log({"train_closs": 0.25}, step=2)
    report = run.finish("FINISHED", timeout_s=30)
    assert not report.complete
    assert (report.backends[0].undelivered, "is gone; where it was moved to another disk" in caplog.text) == (4, True)
    assert not old.exists()
    assert not new.exists()


@happens(
    "place",
    "a single run is moved out of its runs folder, away from the MLflow database there",
    "it is still delivered to that database, as the same run",
)
def test_a_run_that_is_moved_alone_is_delivered_to_the_store_it_was_started_beside(
    tmp_path: Path, empty_store: Path
) -> None:
    run = ExampleRun(tmp_path)
    run.log(3)
    runs = run.dir.parent.parent
    shutil.copy(empty_store, runs / "mlflow.db")
    (config,) = remember_starts([BackendConfig("mlflow")], [], runs)
    connect(config, run.dir).open(run.start_value(), -1)
    known = target_of(config, runs).destination
    moved = run.dir = Path(shutil.move(run.dir, tmp_path / "archive" / "contract" / "run-1"))
    away = RunFiles(moved).runs
    assert target_of(config, away).destination.name == known.name
    (resumed,) = remember_starts([BackendConfig("mlflow")], [config], away)
    assert (resumed.started_with, target_of(resumed, away).unset) == (config.started_with, None)
    backend = connect(resumed, moved)
    backend.open(run.start_value(), -1)
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    assert len(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])) == 1
    assert [path.name for path in away.iterdir()] == ["contract"]
    shutil.copy(empty_store, away / "mlflow.db")  # there it has a store of its own
    assert target_of(config, away).options["tracking_uri"] is None
