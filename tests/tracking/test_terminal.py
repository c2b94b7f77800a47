"""What run folders, servers and libraries say is shown as text: no terminal obeys it, and no secret is in it."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from happens import happens
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.cli.progress import TerminalDisplay
from vlatrack.errors import VlatrackError
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import backends_text
from vlatrack.tracking.delivery.report import BackendDelivery
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.printable import printable
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import OWN_RUN
from vlatrack.training.callback import RunEnd

EVIL = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202egnp\u2066"
TALKATIVE = """
import sys, warnings
from vlatrack.testing.csv_backend import CsvBackend
class Talkative(CsvBackend):
    def open(self, start, acknowledged):
        address = "https://me:hunter2@mlflow.lab"
        print("trying", address)
        sys.stderr.write(address[:14]); sys.stderr.write(address[14:] + "\\n")
        warnings.warn(f"{address} is slow")
        raise ConnectionError("\\x1b[2Jno route to " + address + "\\nFINISHED")
"""


def is_plain(text: str) -> bool:
    return all(unicodedata.category(letter) not in ("Cc", "Cs") for letter in text.replace("\n", "")) and not (
        set("\u202e\u2066") & set(text)
    )


@happens(
    "place",
    "names, reasons or addresses of a run folder or a server hold control characters or marks of direction",
    "`status`, `sync`, `reap` and the audit show them escaped, and no terminal obeys them",
)
def test_nothing_that_a_run_folder_says_reaches_the_terminal_as_it_is(tmp_path: Path) -> None:
    run = ExampleRun(tmp_path)
    run.finish(f"DONE{EVIL}")  # type: ignore[arg-type]
    theirs = BackendConfig("custom", target=f"their:Class{EVIL}")
    RunFiles(run.dir).backends.write_text(backends_text([theirs]))
    for odd in ("run\u202e", "run\x1b[2J"):
        (run.dir.parent / odd / "delivery").mkdir(parents=True)
        (run.dir.parent / odd / "delivery" / "backends.json").write_text("[]")
        (run.dir.parent / odd / "journal.jsonl").write_bytes(RunFiles(run.dir).journal.read_bytes())
    for words in (("sync", run.dir, "--audit"), ("status",), ("reap",), ("sync", "--audit")):
        runs = () if len(words) == 3 else ("--runs", tmp_path / "runs")
        shown = CliRunner().invoke(app, [str(word) for word in (*words, *runs)], env={"COLUMNS": "300"})
        assert shown.output
        assert is_plain(shown.output), shown.output
        assert shown.exception is None or isinstance(shown.exception, SystemExit | VlatrackError)
    assert "run\\u202e" in shown.output


def test_the_end_of_a_run_shows_what_a_server_said_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    shares = (BackendDelivery("mlflow-0", 0, 3, 0, f"http://h/{EVIL}", f"500 {EVIL}"),)
    TerminalDisplay().on_run_end(RunEnd(Path("runs/e/r"), "FINISHED", backends=shares))
    TerminalDisplay().on_run_end(RunEnd(Path("runs/e/r"), "FAILED", reason=EVIL))
    assert is_plain(capsys.readouterr().out)


def test_text_of_every_language_stays_as_it_is() -> None:
    text = "vidéo 字 🙂‍↔️ می‌خواهم"
    assert printable(text) == text
    assert printable("a\nb\x00\ud800") == r"a\nb\x00\ud800"


@happens(
    "server",
    "the library of a tracker prints, warns or raises an address with its login",
    "`deliver.log` has it as `***`, one line for each message",
)
def test_the_log_of_a_delivery_holds_no_login_whoever_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    monkeypatch.syspath_prepend(tmp_path)
    run = ExampleRun(tmp_path)
    run.finish("FINISHED")
    RunFiles(run.dir).backends.write_text(backends_text([BackendConfig("custom", target="talkative:Talkative")]))
    assert not sync_run(run.dir, patience_s=0, trust=OWN_RUN).complete
    log = RunFiles(run.dir).delivery_log.read_text()
    assert "hunter2" not in log
    assert log.count("https://***@mlflow.lab") >= 4
    assert "trying https://***@mlflow.lab" in log
    assert is_plain(log)
    assert "FINISHED" not in log.splitlines()


@pytest.mark.parametrize(("error", "code"), [("RuntimeError", 1), ("VlatrackError", 2)])
def test_neither_the_traceback_nor_the_line_of_a_failed_command_holds_a_login(error: str, code: int) -> None:
    script = (
        "import sys; from vlatrack.cli import main as program; from vlatrack.errors import VlatrackError\n"
        f"def boom(): raise {error}('https://me:hunter2@mlflow.lab\\x1b[2J told planted-key-01')\n"
        "program.app.command()(boom); sys.argv[1:] = ['boom']; program.main()"
    )
    environment = os.environ | {"SOME_API_KEY": "planted-key-01"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert done.returncode == code
    begin = "Traceback (most recent call last):\n  File " if code == 1 else "error: "
    assert done.stderr.startswith(begin)
    assert done.stderr.endswith("https://***@mlflow.lab\\x1b[2J told ***\n")
