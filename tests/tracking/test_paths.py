"""A run is the same run however its directory is called: as it is, through a symbolic link, or `.` from inside."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from happens import happens
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.errors import TrackerError
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.mlflow.backend import MlflowBackend
from vlatrack.tracking.backends.mlflow.server import MlflowServer
from vlatrack.tracking.backends.registry import backends_text
from vlatrack.tracking.backends.wandb.backend import WandbBackend
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.privacy import write_private
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles, checked_runs_folder

CSV = BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend")


def _as_it_is(run_dir: Path) -> Path:
    return run_dir


def _from_inside(run_dir: Path) -> Path:
    os.chdir(run_dir)
    return Path()


def _through_a_link(run_dir: Path) -> Path:
    link = run_dir.parents[2] / "elsewhere" / "the-run"
    link.parent.mkdir()
    link.symlink_to(run_dir, target_is_directory=True)
    return link


def _through_a_linked_runs_folder(run_dir: Path) -> Path:
    link = run_dir.parents[2] / "elsewhere"
    link.symlink_to(run_dir.parent.parent, target_is_directory=True)
    return link / run_dir.parent.name / run_dir.name


CALLED = [_as_it_is, _from_inside, _through_a_link, _through_a_linked_runs_folder]


@pytest.fixture
def run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has finished and that no tracker has."""
    monkeypatch.chdir(run_dir.parents[2])
    start(run_dir).finish("FINISHED", timeout_s=0)
    return run_dir


def start(run_dir: Path, *, resume: bool = False) -> TrackedRun:
    return TrackedRun.start(
        run_dir, uid="u", name="n", experiment="e", backends=[CSV], params={}, tags={}, resume=resume
    )


def call(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("called", CALLED)
def test_the_files_of_a_run_do_not_depend_on_how_it_is_called(run: Path, called: Callable[[Path], Path]) -> None:
    path = called(run)
    files = RunFiles(path)
    assert (files.run_dir, files.runs) == (run, run.parent.parent)
    mlflow, wandb = MlflowBackend(path, naming="documented"), WandbBackend(path, naming="documented", mode="offline")
    assert (mlflow._store, wandb._folder) == (f"sqlite:///{run.parent.parent / 'mlflow.db'}", run)


@pytest.mark.parametrize("called", CALLED)
def test_a_run_is_resumed_synchronised_and_audited_in_its_place(run: Path, called: Callable[[Path], Path]) -> None:
    everything = {path.name for path in run.parents[2].iterdir()}
    path = called(run)
    resumed = start(path, resume=True)
    (run / "figure.png").write_bytes(b"png")
    resumed.log_artifact(path / "figure.png", name="figure.png")
    resumed.log({"train_closs": 0.5}, step=1)
    resumed.finish("FINISHED", timeout_s=0)
    assert "custom-0 FINISHED 1 1 4 same" in " ".join(call("sync", path, "--audit", "--trust-backends").split())
    assert (run / "csv" / "metrics.csv").read_text().endswith(",1,train_closs,0.5\n")
    assert {path.name for path in run.parents[2].iterdir()} - everything <= {"elsewhere"}
    assert [path.name for path in run.parent.parent.iterdir()] == [run.parent.name]


def test_status_shows_a_runs_folder_that_is_called_by_a_link(run: Path) -> None:
    link = _through_a_linked_runs_folder(run).parents[1]
    assert "exp/run-1  FINISHED" in call("status", "--runs", link)
    os.chdir(run.parents[1])
    assert "exp/run-1  FINISHED" in call("status", "--runs", ".")


def test_the_user_interface_opens_the_store_that_a_linked_runs_folder_leads_to(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = run.parent.parent
    sqlite3.connect(runs / "mlflow.db").close()
    served: list[list[str]] = []
    monkeypatch.setattr(MlflowServer, "start", lambda server: served.append(server.command))
    monkeypatch.setattr(MlflowServer, "wait", lambda server: 0)
    link = _through_a_linked_runs_folder(run).parents[1]
    call("ui", "--mlflow", "--runs", link, "--port", "0")
    os.chdir(runs)
    call("ui", "--mlflow", "--runs", ".", "--port", "0")
    stores = [command[command.index("--backend-store-uri") + 1] for command in served]
    assert stores == [f"sqlite:///{runs / 'mlflow.db'}"] * 2


@pytest.mark.parametrize("odd", ["a\nb", "a\0b", "tab\t", "\udcff"])
def test_a_path_that_no_line_can_show_is_refused_in_one_line(tmp_path: Path, odd: str) -> None:
    for use in (RunFiles, checked_runs_folder, start):
        with pytest.raises(TrackerError, match="control character") as told:
            use(tmp_path / odd / "exp" / "run-1")
        assert "\n" not in str(told.value)
        assert list(tmp_path.iterdir()) == []
    assert RunFiles(tmp_path / "vidéo\u00a0字" / "e" / "r").runs.name == "vidéo\u00a0字"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(TrackerError, match="a loop of symbolic links"):
        RunFiles(tmp_path / "loop" / "r")


def test_a_runs_folder_that_is_a_file_or_below_one_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for runs in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(TrackerError, match=r"file: not a folder; choose another folder for the runs with --runs"):
            checked_runs_folder(runs)
    with pytest.raises(TrackerError, match=r"/proc/\d+: cannot be written"):
        checked_runs_folder(Path("/proc/self/runs"))
    assert checked_runs_folder(tmp_path / "new" / "runs") == tmp_path / "new" / "runs"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def foreign_run(folder: Path) -> Path:
    """A run that has finished and that no tracker has, as a download or a colleague's folder is."""
    run = ExampleRun(folder, uid="u")
    run.finish("FINISHED")
    RunFiles(run.dir).backends.write_text(backends_text([CSV]))
    return run.dir


TRACKED = (
    "journal.jsonl journal.lease delivery delivery/deliver.lock delivery/deliver.lease delivery/deliver.log "
    "delivery/backends.json delivery/custom-0.json delivery/custom-0.dead.jsonl tensorboard wandb"
).split()


@pytest.mark.parametrize("dangling", [False, True], ids=["there", "dangling"])
@pytest.mark.parametrize("name", TRACKED)
@happens(
    "place",
    "a file or folder that tracking writes, in a run folder of somebody else, is a symbolic link",
    "the run is one line that names it, and nothing outside is created, cut off or overwritten",
)
def test_a_symbolic_link_in_place_of_a_file_of_tracking_is_one_line_and_nothing_outside_changes(
    tmp_path: Path, name: str, dangling: bool
) -> None:
    run = foreign_run(tmp_path)
    link, outside = run / name, tmp_path / "of-this-user"
    with contextlib.suppress(FileNotFoundError):
        link.rename(outside)
    if not outside.exists():
        outside.mkdir() if name in ("tensorboard", "wandb") else outside.write_text("mine")
    link.symlink_to(tmp_path / "nothing" if dangling else outside)
    before = {path: path.read_bytes() for path in (outside, *outside.rglob("*")) if path.is_file()}

    for use in (sync_run, lambda place: start(place, resume=True)):
        with pytest.raises(TrackerError) as told:
            use(run)
        assert "\n" not in str(told.value)
    if not (name == "journal.jsonl" and dangling):  # a folder without a journal is no run
        assert f"{run}: unreadable: {link}: a symbolic link, which no run" in call("status", "--runs", run.parents[1])
    assert {path: path.read_bytes() for path in (outside, *outside.rglob("*")) if path.is_file()} == before
    assert not (tmp_path / "nothing").exists()


def test_a_file_is_replaced_and_never_written_through_a_link(tmp_path: Path) -> None:
    mine, cursor = tmp_path / "mine", tmp_path / "run" / "cursor.json"
    mine.write_text("mine")
    cursor.parent.mkdir()
    cursor.symlink_to(mine)
    cursor.with_name(f".cursor.json.{os.getpid()}.new").symlink_to(mine)
    write_private(cursor, "new")
    assert (mine.read_text(), cursor.read_text(), cursor.is_symlink()) == ("mine", "new", False)
    assert [path.name for path in cursor.parent.iterdir()] == ["cursor.json"]


def test_a_pipe_in_place_of_a_journal_is_one_line_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    run = foreign_run(tmp_path)
    (run / "journal.jsonl").unlink()
    os.mkfifo(run / "journal.jsonl")
    assert f"{run}/journal.jsonl: no regular file" in call("status", "--runs", run.parents[1])
