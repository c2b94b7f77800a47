"""What the operating system refuses is one line that names the path, and exit code 2; never a traceback."""

import errno
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from vlatrack.cli import main as main_module
from vlatrack.cli.main import USER_ERROR, main
from vlatrack.tracking.privacy import private_directory


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs with a store that the user interface could show."""
    folder = tmp_path / "runs"
    folder.mkdir()
    sqlite3.connect(folder / "mlflow.db").close()
    return folder


def error_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> str:
    """The one line with which the program ends."""
    monkeypatch.setattr(sys, "argv", ["vlatrack", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == USER_ERROR, told
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    return told.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (
            ["a", "--resume", "auto"],
            "vlatrack run: --job continues the run that the job began; leave out --resume auto",
        ),
        (["../\x1b[2J"], r"vlatrack run: --job '../\x1b[2J': use up to 100 letters, digits and . _ -"),
        ([""], "vlatrack run: --job '': use up to 100 letters, digits and . _ -"),
    ],
)
def test_the_name_of_a_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, job: list[str], told: str
) -> None:
    assert error_of(capsys, monkeypatch, "run", "exp.yaml", "--job", *job) == told


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_does_not_exist(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, runs: Path, port: str
) -> None:
    told = error_of(capsys, monkeypatch, "ui", "--runs", runs, f"--port={port}")
    assert told == f"--port {port}: no such port; choose one from 1024 to 65535, or 0 for any free one"


def test_a_port_that_browsers_refuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    told = error_of(capsys, monkeypatch, "ui", "--runs", runs, "--port", "5061")
    assert told == "--port 5061: browsers refuse to open a page there; choose another, such as 5081"


def test_a_privileged_port(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    told = error_of(capsys, monkeypatch, "ui", "--runs", runs, "--port", "80")
    assert told == "--port 80: Permission denied; choose one above 1023"


def test_a_store_that_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    (runs / "mlflow.db").write_bytes(b"no database" * 100)
    told = error_of(capsys, monkeypatch, "ui", "--mlflow", "--runs", runs)
    assert told.startswith(f"{runs / 'mlflow.db'}: cannot be read (file is not a database)")


@pytest.mark.parametrize("command", ["status", "sync", "reap", "ui"])
def test_runs_that_are_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").touch()
    told = error_of(capsys, monkeypatch, command, "--runs", tmp_path / "file")
    assert told == f"{tmp_path / 'file'}: not a folder; give the folder that holds the runs with --runs"
    told = error_of(capsys, monkeypatch, command, "--runs", "a\nb")
    assert told.startswith("'a\\nb': a path with a newline")


def test_runs_that_cannot_be_made_are_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    told = error_of(capsys, monkeypatch, "run", "experiments/quickstart.yaml", "--runs", tmp_path / "file" / "runs")
    assert told == f"{tmp_path / 'file'}: not a folder; choose another folder for the runs with --runs"


def test_an_error_of_the_system_that_nobody_foresaw_names_its_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(main_module, "_check_habits", lambda *_: (tmp_path / "none").read_text())
    assert error_of(capsys, monkeypatch) == f"{tmp_path / 'none'}: No such file or directory"
    monkeypatch.setattr(main_module, "_check_habits", lambda *_: os.close(-1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        main()


def test_a_current_directory_that_was_deleted_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    told = error_of(capsys, monkeypatch, "status", "--runs", "runs")
    assert told == "the current directory has been deleted; change to another one"


@pytest.mark.parametrize("where", ["/dev/full", None])
def test_a_full_disk_that_nobody_foresaw_says_to_free_some_space(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str | None
) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)

    monkeypatch.setattr(main_module, "_check_habits", write)
    place = "" if where is None else f"{where}: "
    assert error_of(capsys, monkeypatch) == f"{place}No space left on device; free some disk space"


def test_a_run_begins_neither_below_a_file_nor_on_a_full_disk(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from vlatrack.errors import TrackerError; from vlatrack.tracking.run import BackendConfig, TrackedRun\n"
        "csv = BackendConfig('custom', target='vlatrack.testing.csv_backend:CsvBackend')\n"
        "def start(folder, limit):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    words = dict(uid='u', name='n', experiment='e', backends=[csv], params={'long': 500 * 'x'}, tags={})\n"
        "    try: TrackedRun.start(Path(folder), **words)\n"
        "    except TrackerError as error: print(error)\n"
        "start(sys.argv[1], resource.RLIM_INFINITY)\n"
        "for limit in (10, 300): start(sys.argv[2], limit)"
    )
    (tmp_path / "file").touch()
    private_directory(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "file" / "e" / "r", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=True,
    )
    below, at_once, later = done.stdout.splitlines()
    assert below.startswith(f"{tmp_path / 'file'}")
    assert below.endswith("File exists; no run can be written there")
    assert at_once == f"{tmp_path / 'run'}: File too large; no run can be written there"
    assert later.startswith(f"{tmp_path / 'run' / 'journal.jsonl'}: cannot be written; free some disk space")
    assert not (tmp_path / "run" / "journal.lease").exists()
