"""A run goes where it was meant to go, from whatever shell, folder and path it is delivered."""

import json
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from happens import happens
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from typer.testing import CliRunner, Result
from wandb_double import WandbDouble

from vlatrack.cli.main import app
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.destinations import public_address, remember_starts, sqlite_path, sqlite_uri, target_of
from vlatrack.tracking.backends.mlflow.server import MlflowServer as OwnServer
from vlatrack.tracking.backends.mlflow.store import give_number
from vlatrack.tracking.backends.registry import backends_of, backends_text, connect
from vlatrack.tracking.delivery.cursor import CursorFile, Mark
from vlatrack.tracking.delivery.tail import Tail
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles

MLFLOW, WANDB = BackendConfig("mlflow"), BackendConfig("wandb")
DOWN = "http://127.0.0.1:9"


def finished_run(folder: Path, config: BackendConfig, *, uid: str = "u1") -> ExampleRun:
    """A run that was trained in this environment and that its tracker has nothing of."""
    run = ExampleRun(folder, uid=uid)
    run.log(3)
    run.finish("FINISHED")
    files = RunFiles(run.dir)
    files.backends.write_text(backends_text(remember_starts([config], [], files.runs)))
    return run


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"}, catch_exceptions=False)


def deliver(run: ExampleRun) -> bool:
    """Deliver to the first backend, as its delivery process does; returns whether there was anything to do."""
    files = RunFiles(run.dir)
    (config,) = backends_of(files.backends.read_text())
    delivery = Tail(
        run.dir,
        f"{config.kind}-0",
        partial(connect, config, run.dir),
        threading.Event(),
        destination=lambda: target_of(config, files.runs).destination,
    )
    if delivery.finished:
        return False
    delivery.drain()
    delivery.run()
    return True


def rows(store: Path) -> list[float]:
    client = MlflowClient(sqlite_uri(store))
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return [metric.value for metric in client.get_metric_history(run.info.run_id, "train_loss_ct")]


VALUES = [step / 7 for step in range(3)]


@happens(
    "place",
    "a run was meant for an MLflow server, and is synced where `MLFLOW_TRACKING_URI` is not set",
    "`sync` and `status` name that server and the variable; nothing is delivered elsewhere, and the exit code is 1",
)
def test_a_run_meant_for_a_server_never_goes_to_the_local_store_because_a_variable_is_missing(
    tmp_path: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", f"http://me:planted-password@{mlflow_server.url.removeprefix('http://')}/"
    )
    run = finished_run(tmp_path, MLFLOW, uid="meant-for-a-server")
    runs = run.dir.parent.parent
    assert "planted" not in RunFiles(run.dir).backends.read_text()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    told = f"meant for MLflow at {mlflow_server.url}; set MLFLOW_TRACKING_URI and `vlatrack sync` again"
    for command in (["sync", run.dir], ["sync", "--runs", runs]):
        done = call(*command)
        assert done.exit_code == 1
        assert f"mlflow-0: 5 of 5 records not delivered, kept for `vlatrack sync`; {told}" in done.output
    assert (
        f"contract/run-1: mlflow-0: 5 of 5 records not delivered, kept for `vlatrack sync`; {told}"
        in call("status", "--runs", runs).output
    )
    audited = call("sync", run.dir, "--audit")
    assert (audited.exit_code, f"cannot be asked (TrackerError: {told})" in audited.output) == (1, True)
    assert [path.name for path in runs.iterdir()] == ["contract"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    done = call("sync", run.dir)
    assert (done.exit_code, "meant for" in done.output) == (0, False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the server has all of it: there is nothing to set for
    assert call("sync", run.dir).exit_code == 0
    assert [path.name for path in runs.iterdir()] == ["contract"]


@happens(
    "place",
    "a run was meant for W&B, and is synced where there is no key",
    "`sync` says so and what to set; no offline files are written, and the exit code is 1",
)
def test_a_run_meant_for_wandb_is_not_complete_as_offline_files(
    tmp_path: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path, WANDB)
    assert "kkkk" not in RunFiles(run.dir).backends.read_text()
    monkeypatch.setenv("WANDB_API_KEY", "")
    done = call("sync", run.dir)
    told = f"meant for W&B at {wandb_server.url}, project vlatrack; set WANDB_API_KEY (or call `wandb login`)"
    assert (done.exit_code, told in done.output) == (1, True)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.delenv("WANDB_BASE_URL")  # the key must not go to another server
    done = call("sync", run.dir)
    assert (done.exit_code, f"set WANDB_BASE_URL={wandb_server.url} and `vlatrack sync`" in done.output) == (1, True)
    assert not (run.dir / "wandb").exists()
    assert not wandb_server.runs
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    assert call("sync", run.dir).exit_code == 0
    assert len(wandb_server.runs["u1"].rows) == 3


@pytest.mark.slow
@happens(
    "place",
    "the environment names another tracker than the one that a run was meant for",
    "the run goes there, all of it, and `sync` says that it was meant for the other one",
)
def test_an_address_that_is_set_on_purpose_wins_and_gets_everything(
    delivered: ExampleRun, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = delivered
    shutil.copy(empty_store, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "other.db"))
    done = call("sync", run.dir)
    told = (
        "mlflow-0: meant for MLflow at the store in the runs folder; the environment now sends it to MLflow at sqlite"
    )
    assert (done.exit_code, told in done.output) == (0, True)
    assert rows(tmp_path / "other.db") == VALUES


def test_a_run_that_is_resumed_without_the_variable_stays_meant_for_its_server(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*backends: BackendConfig, resume: bool = True) -> TrackedRun:
        run = TrackedRun.start(
            run_dir, uid="u", name="n", experiment="e", backends=backends, params={}, tags={}, resume=resume
        )
        run.finish("FINISHED", timeout_s=0)
        return run

    monkeypatch.setenv("MLFLOW_TRACKING_URI", DOWN)
    start(MLFLOW, resume=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    resumed = start(MLFLOW)
    assert resumed.notices == (
        f"mlflow: meant for MLflow at {DOWN}; set MLFLOW_TRACKING_URI and `vlatrack sync` again",
    )
    assert [path.name for path in run_dir.parent.parent.iterdir()] == ["exp"]
    # What was an option, and is none any more, was taken away on purpose.
    start(BackendConfig("mlflow", options={"tracking_uri": DOWN}))
    assert start(MLFLOW).notices == ()
    RunFiles(run_dir).backends.write_text("{")
    assert start(MLFLOW).notices == ()


@pytest.fixture
def delivered(tmp_path: Path, empty_store: Path) -> ExampleRun:
    """A run that the MLflow store beside it has."""
    run = finished_run(tmp_path, MLFLOW)
    shutil.copy(empty_store, run.dir.parent.parent / "mlflow.db")
    assert deliver(run)
    return run


@happens(
    "place",
    "the MLflow database in the runs folder was deleted, or replaced by another one",
    "`vlatrack sync RUN` delivers everything to the new one",
)
def test_a_database_that_was_made_anew_at_the_same_path_gets_everything(
    delivered: ExampleRun, empty_store: Path
) -> None:
    store = delivered.dir.parent.parent / "mlflow.db"
    dead_letters = RunFiles(delivered.dir).delivery / "mlflow-0.dead.jsonl"
    dead_letters.write_text("{}\n")
    shutil.copy(empty_store, store)
    assert deliver(delivered)
    assert rows(store) == VALUES
    assert not dead_letters.exists()
    store.unlink()
    shutil.copy(empty_store, store)
    give_number(store)  # another run has used it
    assert deliver(delivered)
    assert rows(store) == VALUES


@pytest.mark.parametrize("name", ["", "the store in the runs folder", None])
def test_the_name_that_an_earlier_release_gave_a_destination_is_still_known(
    delivered: ExampleRun, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    file = RunFiles(delivered.dir).delivery / "mlflow-0.json"
    fields = {key: value for key, value in json.loads(file.read_text()).items() if key != "journal"}
    file.write_text(json.dumps(fields | {"destination": fields["destination"] if name is None else name}))
    assert not deliver(delivered)


def test_a_cursor_of_another_run_is_not_used_though_it_fits(tmp_path: Path) -> None:
    one, other = (finished_run(tmp_path / name, MLFLOW, uid=name) for name in ("a1", "a2"))
    assert RunFiles(one.dir).journal.stat().st_size == RunFiles(other.dir).journal.stat().st_size
    file = CursorFile(RunFiles(one.dir).delivery, "mlflow-0")
    whole = file.read_for(RunFiles(one.dir).journal)
    records = one.records()
    end = Mark(RunFiles(one.dir).journal.stat().st_size, records[-1].seq)
    file.write(replace(whole, metrics=end, others=end))
    assert file.read_for(RunFiles(one.dir).journal).seq == records[-1].seq
    shutil.copy(RunFiles(one.dir).delivery / "mlflow-0.json", RunFiles(other.dir).delivery)
    assert CursorFile(RunFiles(other.dir).delivery, "mlflow-0").read_for(RunFiles(other.dir).journal).seq == -1
    shutil.move(one.dir, tmp_path / "moved")
    assert (
        CursorFile(tmp_path / "moved" / "delivery", "mlflow-0").read_for(tmp_path / "moved" / "journal.jsonl").seq > 0
    )


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("HTTP://me:pw@Host:80/ml/", "http://host/ml"),
        ("https://Host:443", "https://host"),
        ("https://host:8443/", "https://host:8443"),
        ("sqlite:////a%3Fb/c.db", "sqlite+pysqlite:////a%3Fb/c.db"),
        ("sqlite:////a/b#.db", "sqlite:////a/b#.db"),
        (
            "postgresql+psycopg2://me:pw@db/mlflow?password=pw&host=/run",
            "postgresql+psycopg2://db/mlflow?password=***&host=%2Frun",
        ),
        ("databricks://profile", "databricks://profile"),
        ("databricks", "databricks"),
        ("file:///a%20b/mlruns", "file:///a%20b/mlruns"),
    ],
)
def test_an_address_is_kept_in_one_spelling_and_without_a_login(uri: str, public: str) -> None:
    assert public_address(uri) == public


def test_a_relative_database_is_the_one_of_the_folder_in_which_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    config = BackendConfig("mlflow", options={"tracking_uri": "sqlite:///my.db"})
    (started,) = remember_starts([config], [], tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "here")
    assert target_of(started, tmp_path / "runs").options["tracking_uri"] == sqlite_uri(tmp_path / "my.db")
    for absolute in (f"sqlite:///{tmp_path}/my.db?timeout=9", "sqlite:///file:my.db?uri=true"):
        (started,) = remember_starts(
            [BackendConfig("mlflow", options={"tracking_uri": absolute})], [], tmp_path / "runs"
        )
        assert target_of(started, tmp_path / "runs").options["tracking_uri"] == absolute


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({"project": "another"}, {}),
        ({"entity": "team"}, {}),
        ({}, {"WANDB_PROJECT": "another"}),
        ({}, {"WANDB_ENTITY": "team"}),
        ({}, {"WANDB_BASE_URL": "http://another:8080"}),
    ],
)
def test_another_project_entity_or_host_of_wandb_is_another_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], environment: dict[str, str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    before = target_of(WANDB, tmp_path).destination
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    now = target_of(BackendConfig("wandb", options=options), tmp_path).destination
    assert not now.is_called(before.name)
    assert before.is_called(before.name)


def uploaded(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("mlartifacts/*/artifacts/*"))


def log_file(run: ExampleRun, name: str) -> None:
    (run.dir / name).write_text(name)
    run.append("artifact", {"name": name, "place": name, "sha256": "", "files": {}})


@happens(
    "place",
    "the runs are in a folder with `%`, `?`, `#`, spaces or letters of any language in its path",
    "they are delivered to the database in that folder, files beside it, and `vlatrack ui --mlflow` opens it",
)
def test_a_path_with_any_letters_leads_to_its_own_database(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r %41?mode=ro#é 字;&'\""
    run = finished_run(folder, MLFLOW)
    log_file(run, "note.txt")
    runs = run.dir.parent.parent
    shutil.copy(empty_store, runs / "mlflow.db")
    assert deliver(run)
    assert rows(runs / "mlflow.db") == VALUES
    assert uploaded(runs) == ["note.txt"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    served: list[str] = []
    monkeypatch.setattr(OwnServer, "start", lambda server: served.extend(server.command))
    monkeypatch.setattr(OwnServer, "wait", lambda server: 0)
    assert call("ui", "--mlflow", "--runs", runs, "--port", "0").exit_code == 0
    address = served[served.index("--backend-store-uri") + 1]
    assert sqlite_path(address) == runs / "mlflow.db"
    assert len(MlflowClient(address).search_runs(["1"])) == 1


@pytest.mark.parametrize("how", ["moved", "copied"])
@happens(
    "place",
    "the folder with the runs and their MLflow database is moved or copied",
    "a run that goes on there is the same run, and its files are stored there",
)
def test_a_moved_or_copied_runs_folder_keeps_its_artifacts_beside_it(
    delivered: ExampleRun, tmp_path: Path, how: str
) -> None:
    runs = delivered.dir.parent.parent
    there = tmp_path / "elsewhere"
    (shutil.move if how == "moved" else shutil.copytree)(runs, there)
    delivered.dir = there / "contract" / "run-1"
    log_file(delivered, "after.txt")
    assert deliver(delivered)
    assert rows(there / "mlflow.db") == VALUES  # of one run
    assert (uploaded(there), uploaded(runs)) == (["after.txt"], [])
