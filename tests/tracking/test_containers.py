"""A run in a container: a user id without a name, a home that is not there, few files that may be open at once."""

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from happens import happens

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.wandb.account import has_key
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.run_files import checked_runs_folder
from vlatrack.tracking.trust import OWN_RUN
from vlatrack.tracking.user import provide_folders

UID = 12345
SHORT_TRAINER = Path(__file__).with_name("short_trainer.py")
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.fixture(scope="module")
def nobody() -> list[str]:
    """The beginning of a command line that makes its process one of a user id that /etc/passwd does not know."""
    command = ["unshare", "--user", f"--map-user={UID}", f"--map-group={UID}"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed (apt install util-linux)")
    probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"user namespaces cannot be made here: {probe.stderr.strip()}")
    return command


def environment(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in (*NAMES, "HOME")} | changes


def test_a_user_id_without_a_name_and_without_a_home_gets_both(nobody: list[str]) -> None:
    code = (
        "import getpass; from pathlib import Path; from vlatrack.cli.progress import prepare_process\n"
        "from vlatrack.tracking.backends.wandb.account import has_key; print(has_key())\n"
        "prepare_process(); print(getpass.getuser(), Path.home())"
    )
    command = [*nobody, sys.executable, "-c", code]
    bare = {name: value for name, value in environment().items() if name != "NETRC"}
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert done.stdout == f"False\nuid-{UID} /\n", done.stderr
    done = subprocess.run(
        command, env=bare | {"USER": "ada", "HOME": "/proc"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\nada /proc\n"


@pytest.mark.slow
@happens(
    "place",
    "a container runs as a user id that has no name, and neither home nor TMPDIR can be written",
    "MLflow, W&B and TensorBoard get the whole run; its user is called `uid-12345`",
)
def test_every_tracker_gets_a_run_of_a_user_id_without_name_home_and_tmpdir(
    stored_run_dir: Path, nobody: list[str]
) -> None:
    trackers = json.dumps([{"kind": kind} for kind in ("mlflow", "wandb", "tensorboard")])
    command = [*nobody, sys.executable, str(SHORT_TRAINER), str(stored_run_dir), trackers]
    without = environment(HOME="/proc/none", TMPDIR="/proc/none")
    done = subprocess.run(command, env=without, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(stored_run_dir.parents[1] / "mlflow.db") as store:
        ((name,),) = store.execute("SELECT value FROM tags WHERE key = 'mlflow.user'").fetchall()
    assert name == f"uid-{UID}"


def test_libraries_write_below_the_run_only_what_they_cannot_write_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "/proc/none")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", "")
    monkeypatch.delenv("WANDB_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_folders(tmp_path / "run")
    assert "WANDB_CACHE_DIR" not in os.environ
    assert os.environ["TMPDIR"] == tempfile.gettempdir()
    assert not (tmp_path / "run").exists()

    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "none"))
    monkeypatch.setattr(tempfile, "gettempdir", os.getcwd)
    (tmp_path / "run-0").mkdir()
    provide_folders(tmp_path / "run-0")
    assert os.environ["TMPDIR"] == tempfile.tempdir == str(tmp_path / "run-0" / "tmp")
    monkeypatch.delenv("WANDB_CACHE_DIR")
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    (tmp_path / "run").mkdir()
    provide_folders(tmp_path / "run")
    assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "run" / "wandb")
    assert os.environ["TMPDIR"] == tempfile.tempdir == str(tmp_path / "run" / "tmp")
    assert (tmp_path / "run" / "tmp").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("WANDB_CACHE_DIR", "/proc/mine")
    provide_folders(tmp_path / "run")
    assert os.environ["WANDB_CACHE_DIR"] == "/proc/mine"


def test_a_key_is_looked_for_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NETRC")
    monkeypatch.setattr(Path, "home", homeless)
    assert not has_key()


GREEDY = """
from vlatrack.testing.csv_backend import CsvBackend
class Greedy(CsvBackend):
    def open(self, start, acknowledged):
        self.files = [open("/dev/null") for _ in range(30)]
        return super().open(start, acknowledged)
"""
TRAINER = """
import sys; from pathlib import Path; from vlatrack.tracking.run import BackendConfig, TrackedRun
trackers = [
    BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend"),
    BackendConfig("custom", target="greedy:Greedy", options={"folder": "greedy"}),
]
where = Path(sys.argv[1])
with TrackedRun.start(where, uid="u", name="n", experiment="e", backends=trackers, params={}, tags={}) as run:
    held = []
    try:
        while True:
            held.append(open("/dev/null"))
    except OSError:
        pass  # as a training does that opens all it may
    for step in range(5):
        run.log({"train_closs": 0.5}, step=step)
    shares = run.finish("FINISHED", timeout_s=3).backends
print(*(share.undelivered for share in shares))
"""


@happens(
    "process",
    "a process may have 12 files open at once, and the training has all of them",
    "training goes on; delivery raises its own limit as far as it may, and a later sync delivers what is left",
)
@pytest.mark.parametrize(("hard", "undelivered"), [(4096, "0 0"), (12, "0 7")])
def test_a_training_that_may_open_few_files_goes_on_and_is_delivered(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard: int, undelivered: str
) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(tmp_path)
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (12, hard))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, str(run_dir)],
        env=os.environ | {"PYTHONPATH": path},
        preexec_fn=few,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"{undelivered}\n"), done.stderr
    assert run_status(run_dir).status == "FINISHED"
    assert sync_run(run_dir, trust=OWN_RUN).complete


@happens(
    "place",
    "the folder that a run was started in has been deleted, and the home cannot be looked into",
    "trackers write their caches and temporary files below the run",
)
def test_a_deleted_current_folder_and_an_unusable_home_are_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", "")
    monkeypatch.delenv("WANDB_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / ("h" * 300)))  # the disk answers with an error that is not "no such file"
    provide_folders(tmp_path / "run")
    assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "run" / "wandb")
    assert os.environ["TMPDIR"] == str(tmp_path)


def test_a_runs_folder_that_cannot_be_looked_for_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match="File name too long; choose another folder for the runs"):
        checked_runs_folder(tmp_path / ("r" * 300))
