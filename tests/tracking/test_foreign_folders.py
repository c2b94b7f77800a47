"""A run folder, or a runs folder with its MLflow store, that somebody made on purpose does no harm to who syncs it."""

import contextlib
import json
import sqlite3
import sys
from pathlib import Path

import pytest
from happens import happens
from test_commands import call

from vlatrack.cli import main
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.artifacts import read_artifact
from vlatrack.tracking.backends.base import BackendConfig, RejectedError
from vlatrack.tracking.backends.registry import backends_text, connect
from vlatrack.tracking.delivery.cursor import Cursor, CursorFile, Mark
from vlatrack.tracking.delivery.worker import close_as_killed
from vlatrack.tracking.journal.records import finish_record
from vlatrack.tracking.lock import FileLock
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import NOTHING, untrusted

EVIL = "https://evil.example"


@pytest.fixture
def run(stored_run_dir: Path) -> ExampleRun:
    return ExampleRun(stored_run_dir.parents[2])


@happens("place", "a journal has the name of another folder for its run", "it is damaged; nothing outside is touched")
def test_a_run_whose_id_is_a_path_removes_nothing(run: ExampleRun) -> None:
    precious = run.dir.parents[1] / "precious"
    precious.mkdir()
    journal = RunFiles(run.dir).journal
    journal.write_text(journal.read_text().replace(f'"run":"{run.uid}"', '"run":"x/../../../../precious"'))
    (run.dir / "wandb" / "offline-run-20260101_000000-x").mkdir(parents=True)
    RunFiles(run.dir).backends.write_text(backends_text([BackendConfig("wandb", options={"mode": "offline"})]))
    done = call("sync", "--runs", run.dir.parents[1])
    assert (done.exit_code, "begins no journal record" in done.output) == (1, True)
    assert precious.exists()


@happens(
    "place",
    "the MLflow store of a runs folder puts files of its runs elsewhere on the disk, or at a server",
    "the files are refused with that reason; metrics and the end arrive",
)
@pytest.mark.parametrize("place", ["{folder}/.ssh", "file://{folder}/.ssh", "https://evil.example/x", "sftp://evil/x"])
def test_a_store_that_puts_files_elsewhere_gets_none(run: ExampleRun, place: str) -> None:
    (run.dir / "authorized_keys").write_text("ssh-rsa AAAA")
    victim = run.dir.parents[1] / ".ssh"
    victim.mkdir()
    with contextlib.closing(connect(BackendConfig("mlflow"), run.dir)) as backend:
        backend.open(run.start_value(), -1)
        artifact = read_artifact("authorized_keys", "authorized_keys", run.dir)
        backend.put_artifact(artifact)  # as the store was made
        with contextlib.closing(sqlite3.connect(run.dir.parents[1] / "mlflow.db")) as database, database:
            database.execute("UPDATE runs SET artifact_uri = ?", (place.format(folder=victim.parent),))
        with pytest.raises(RejectedError, match="the store of this runs folder puts files at"):
            backend.put_artifact(artifact)
    assert list(victim.iterdir()) == []


def test_a_server_that_is_named_beside_a_trusted_one_is_not_trusted(
    run: ExampleRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    folder = BackendConfig(
        "mlflow", options={"tracking_uri": "sqlite:///mlflow.db"}, started_with={"tracking_uri": EVIL}
    )
    backend = connect(folder, run.dir)
    assert EVIL not in str(vars(backend))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    other_store = run.dir.parent / "mlflow.db"
    other_store.write_bytes((run.dir.parents[1] / "mlflow.db").read_bytes())
    with contextlib.closing(sqlite3.connect(other_store)) as database:
        database.execute("PRAGMA application_id = 7")
    (run.dir.parents[1] / "mlflow.db").unlink()
    left_behind = BackendConfig("mlflow", started_with={"store": str(other_store)})
    assert "since the run folder alone names it" in str(untrusted(left_behind, run.dir.parents[1], trust=NOTHING))


@happens(
    "place",
    "a run of vlatrack 0.1 that a server has is synced where `MLFLOW_TRACKING_URI` is missing",
    "it stays there: nothing is said to be lost, and nothing goes to a local store",
)
@pytest.mark.parametrize("lacks", [0, 2])
def test_a_run_of_an_earlier_release_stays_with_the_server_that_it_has_reached(tmp_path: Path, lacks: int) -> None:
    run = ExampleRun(tmp_path)
    run.log(5)
    run.finish("FINISHED")
    files = RunFiles(run.dir)
    files.backends.write_text(json.dumps([{"kind": "mlflow", "target": None, "naming": "documented", "options": {}}]))
    last = len(run.records()) - 1 - lacks
    lines = files.journal.read_bytes().splitlines(keepends=True)
    mark = Mark(sum(map(len, lines[: last + 1])), last)
    CursorFile(files.delivery, "mlflow-0").write(Cursor(mark, mark, destination="http://server:5000"))
    done = call("sync", "--runs", files.runs)
    assert done.exit_code == (1 if lacks else 0)
    assert ("meant for MLflow at http://server:5000; set MLFLOW_TRACKING_URI" in done.output) == bool(lacks)
    assert "lost" not in done.output
    assert [path.name for path in files.runs.iterdir()] == ["contract"]


def test_what_a_damaged_lease_or_cursor_says_reaches_the_terminal_escaped(
    run: ExampleRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    escape = json.dumps({"\x1b]0;owned\x07": 1})
    (run.dir / "journal.lease").write_text(escape)
    RunFiles(run.dir).backends.write_text(backends_text([BackendConfig("tensorboard")]))
    (RunFiles(run.dir).delivery / "tensorboard-0.json").write_text(escape)
    monkeypatch.setattr(sys, "argv", ["vlatrack", "status", "--runs", str(run.dir.parents[1])])
    hook = sys.excepthook
    with pytest.raises(SystemExit):
        main.main()
    monkeypatch.setattr(sys, "excepthook", hook)
    shown = "".join(capfd.readouterr())
    assert "\x1b" not in shown.replace("\x1b[", "")
    assert "contract/run-1" in shown


@happens("disk", "the disk is full when the end of a run whose process is gone is to be written", "it is tried again")
def test_a_full_disk_does_not_end_who_is_to_write_the_end(run: ExampleRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, **_: object) -> FileLock:
        raise OSError(28, "No space left on device", str(path))

    journal = RunFiles(run.dir).journal
    with monkeypatch.context() as disk:
        disk.setattr(FileLock, "acquire", full)
        assert not close_as_killed(journal)
    assert close_as_killed(journal)
    assert finish_record(journal) is not None
