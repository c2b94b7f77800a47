"""`VLATRACK_SHARED=group`: the group of a run's folder may read all of it, and nobody else may."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from happens import happens
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.errors import TrackerError
from vlatrack.runner.run import resume_run
from vlatrack.tracking.privacy import private_files, write_private
from vlatrack.tracking.run import start_run
from vlatrack.tracking.run_files import checked_runs_folder

NOBODY, GROUP = 65534, 4711
TOY = Path(__file__).parents[1] / "support" / "toy.yaml"


@pytest.fixture
def strict_umask() -> Iterator[None]:
    usual = os.umask(0o077)
    yield
    os.umask(usual)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, strict_umask: None) -> None:
    """The variable, against a umask that would keep the group away."""
    monkeypatch.setenv("VLATRACK_SHARED", "group")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Whose parents every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="vlatrack-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def modes_below(folder: Path) -> dict[str, set[int]]:
    modes: dict[str, set[int]] = {"folders": set(), "files": set()}
    for path in folder.rglob("*"):
        modes["folders" if path.is_dir() else "files"].add(stat.S_IMODE(path.stat().st_mode))
    return modes


def run_at(runs: Path) -> Path:
    run = start_run("exp", runs=runs, backends=["tensorboard"])
    run.log({"train_closs": 1.0}, step=1)
    write_private(run.path / "notes.txt", "text")
    run.log_artifact(run.path / "notes.txt", name="notes.txt")
    assert run.finish("FINISHED", timeout_s=60).complete
    return run.path


def test_the_group_may_read_everything_that_a_run_and_its_delivery_write_whatever_the_umask(
    tmp_path: Path, shared: None
) -> None:
    run = run_at(tmp_path / "runs")
    assert modes_below(tmp_path / "runs") == {"folders": {0o750}, "files": {0o640}}
    assert stat.S_IMODE(run.parents[1].stat().st_mode) == 0o750


def test_a_set_group_id_bit_stays_so_that_everything_has_the_group_of_the_runs_folder(
    tmp_path: Path, shared: None
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o2770)
    run = run_at(tmp_path / "runs")
    assert modes_below(tmp_path / "runs") == {"folders": {0o2750}, "files": {0o640}}
    assert {path.stat().st_gid for path in run.rglob("*")} == {(tmp_path / "runs").stat().st_gid}


def test_without_the_variable_a_run_is_for_its_user_alone(tmp_path: Path, strict_umask: None) -> None:
    run = run_at(tmp_path / "runs")
    assert modes_below(run) == {"folders": {0o700}, "files": {0o600}}


@pytest.mark.parametrize("was_shared", [True, False])
def test_a_run_that_goes_on_is_for_those_for_whom_it_was_whatever_the_variable_is_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict_umask: None, was_shared: bool
) -> None:
    monkeypatch.setenv("VLATRACK_SHARED", "group" if was_shared else "")
    run = run_at(tmp_path / "runs")
    before = modes_below(run)
    monkeypatch.setenv("VLATRACK_SHARED", "" if was_shared else "group")
    resumed = start_run("exp", runs=tmp_path / "runs", backends=["tensorboard"], resume=run)
    with private_files(run):
        (run / "report").mkdir()
        (run / "report" / "losses.png").write_bytes(b"png")
    resumed.finish("FINISHED", timeout_s=60)
    assert modes_below(run) == before


@happens(
    "place",
    "`VLATRACK_SHARED` has a value that nobody knows",
    "one line says what it may be, before anything is made",
)
def test_a_wrong_value_is_one_line_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATRACK_SHARED", "all")
    for start in (lambda: start_run("exp", runs=tmp_path / "runs"), lambda: checked_runs_folder(tmp_path / "runs")):
        with pytest.raises(TrackerError, match="VLATRACK_SHARED=all: expected group, or no value for runs that only"):
            start()
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def another_user_of_the_group() -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([GROUP])
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setgroups(groups)


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes another user")
@happens(
    "place",
    "a run of one user is continued by another one of the group, who may only read it",
    "one line says whose it is, and how to begin another with its weights; `status` shows it",
)
def test_another_user_of_the_group_sees_the_run_and_is_told_why_it_cannot_be_continued(
    public_folder: Path, shared: None
) -> None:
    runs = public_folder / "runs"
    runs.mkdir()
    os.chown(runs, 0, GROUP)
    runs.chmod(0o2750)
    run = run_at(runs)
    (run / "spec.yaml").write_text("name: exp\n")
    (run / "spec.yaml").chmod(0o640)
    with another_user_of_the_group():
        shown = CliRunner().invoke(app, ["status", "--runs", str(runs)], catch_exceptions=False).output
        with pytest.raises(TrackerError) as refused:
            resume_run(run)
    assert "FINISHED" in shown
    assert "root" in shown
    assert str(refused.value) == (
        f"{run}: a run of root, which you may read but not write; begin one of yours with its weights: "
        f"vlatrack run EXPERIMENT.yaml init_from={run}"
    )


@pytest.mark.slow
def test_the_group_may_read_all_files_of_a_training(tmp_path: Path, shared: None, program) -> None:
    done = program.run("run", TOY, "tracking.backends=[mlflow]", "tracking.figures=true")
    assert done.returncode == 0, done.stderr
    run = program.only_run()
    names = {path.name for path in run.rglob("*")}
    assert {"policy.safetensors", "image_tokenizer.safetensors", "losses.png", "action_errors.csv"} <= names
    assert modes_below(run) == {"folders": {0o750}, "files": {0o640}}
    store = run.parents[1]
    assert modes_below(store / "mlartifacts") == {"folders": {0o750}, "files": {0o640}}
    assert stat.S_IMODE((store / "mlflow.db").stat().st_mode) == 0o640
