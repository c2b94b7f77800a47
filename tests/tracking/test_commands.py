"""`vlatrack sync`, `status` and `reap` on real runs, journals and stores."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launching import running
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner, Result

from vlatrack.cli.main import app
from vlatrack.cli.progress import TerminalDisplay
from vlatrack.errors import TrackerError
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import backends_text
from vlatrack.tracking.delivery.report import BackendDelivery
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.run import TrackedRun
from vlatrack.training.callback import RunEnd

CSV = BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend")
SWITCHED = """
from pathlib import Path
from vlatrack.testing.csv_backend import CsvBackend
class Switched(CsvBackend):
    def open(self, start, acknowledged):
        if (Path(__file__).parent / "down").exists():
            raise ConnectionError("no route to host")
        return super().open(start, acknowledged)
"""


def call(*words: str | Path) -> Result:
    if words[0] in ("sync", "reap"):
        words += ("--trust-backends",)  # most trackers here are custom ones
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"}, catch_exceptions=False)


def lines_of(result: Result) -> list[list[str]]:
    return [line.split() for line in result.output.splitlines()]


def run_with(folder: Path, *backends: BackendConfig) -> ExampleRun:
    """A run whose training logged and whose delivery never started."""
    run = ExampleRun(folder)
    run.log(10)
    (run.dir / "delivery" / "backends.json").write_text(backends_text(backends))
    return run


@pytest.fixture
def switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a tracker that is down while it holds a file `down`; it is."""
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "switched.py").write_text(SWITCHED)
    (folder / "down").touch()
    monkeypatch.syspath_prepend(folder)
    return folder


def test_one_sync_delivers_a_run_whose_trackers_were_not_there_and_the_audit_agrees(stored_run_dir: Path) -> None:
    backends = [BackendConfig("mlflow"), BackendConfig("tensorboard"), CSV]
    run = TrackedRun.start(stored_run_dir, uid="u1", name="n", experiment="e", backends=backends, params={}, tags={})
    for step in range(700):
        run.log({"train_closs": step / 3, "train_loss_ct": 1.0}, step=step)
    assert run.finish("FINISHED", timeout_s=0).backends[0].undelivered == 702

    done = call("sync", stored_run_dir, "--audit")
    assert done.exit_code == 0, done.output
    assert f"{stored_run_dir} FINISHED mlflow-0: complete, 702 records;" in " ".join(done.output.split())
    rows = {
        words[0]: words[1:] for words in lines_of(done) if words and words[0] in ("mlflow-0", "custom-2", "journal")
    }
    assert rows["journal"] == ["FINISHED", "2", "1400", "700"]
    assert rows["mlflow-0"] == ["FINISHED", "2", "1400", "-", "same"]
    assert rows["custom-2"] == ["FINISHED", "2", "1400", "700", "same"]
    assert "tensorboard-1" in done.output

    client = MlflowClient(f"sqlite:///{stored_run_dir.parent.parent / 'mlflow.db'}")
    (stored,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    client.log_metric(stored.info.run_id, "train_closs", 1.0, timestamp=1, step=1)
    shutil.rmtree(stored_run_dir / "csv")
    done = call("sync", stored_run_dir, "--audit")
    assert done.exit_code == 1
    assert "values: 1400 here, 1401 there" in done.output
    assert "does not know the run" in done.output


def test_a_tracker_that_is_still_down_is_told_and_gets_everything_later(tmp_path: Path, switched: Path) -> None:
    run = run_with(tmp_path, CSV, BackendConfig("custom", target="switched:Switched", options={"folder": "late"}))
    run.finish("FINISHED")
    done = call("sync", run.dir, "--patience", "0.5")
    assert done.exit_code == 1
    assert "custom-0: complete, 12 records" in done.output
    told = "custom-1: 12 of 12 records not delivered, kept for `vlatrack sync`; ConnectionError"
    assert f"{told}: no route to host" in done.output
    assert "custom-0 0, custom-1 12" in call("status", "--runs", run.dir.parent.parent).output
    (switched / "down").unlink()
    assert call("sync", run.dir, "--backend", "custom-1").exit_code == 0
    assert (run.dir / "late" / "metrics.csv").read_text() == (run.dir / "csv" / "metrics.csv").read_text()


@pytest.mark.slow
def test_a_sync_of_no_run_in_particular_delivers_all_that_are_over_and_lack_something(
    tmp_path: Path, switched: Path
) -> None:
    late = run_with(tmp_path, CSV, BackendConfig("custom", target="switched:Switched", options={"folder": "late"}))
    late.finish("FINISHED")
    runs = late.dir.parent.parent
    shutil.copytree(late.dir, runs / "contract" / "died")
    with (runs / "contract" / "died" / "journal.jsonl").open("r+b") as journal:
        journal.truncate(journal.read().rindex(b"\n", 0, -1) + 1)
    running = runs / "contract" / "running"
    running.mkdir()
    journal = Journal.open(running / "journal.jsonl", run="u2", writer="test")
    journal.append("start", {"name": "n", "experiment": "e", "params": {}, "tags": {}})

    done = call("sync", "--runs", runs, "--patience", "0.5")
    assert done.exit_code == 1
    assert done.output.count("custom-0: complete, 12 records") == 2
    told = "custom-1: 12 of 12 records not delivered, kept for `vlatrack sync`; ConnectionError"
    assert done.output.count(told) == 2
    assert f"{runs / 'contract' / 'died'}  KILLED" in done.output
    assert f"2 not delivered completely; `vlatrack sync --runs {runs}`" in call("status", "--runs", runs).output
    (switched / "down").unlink()
    assert call("sync", "--runs", runs, "--backend", "custom-1").exit_code == 0
    assert call("sync", "--runs", runs).output == f"nothing to deliver in {runs}\n"
    audited = call("sync", "--runs", runs, "--audit")
    assert audited.exit_code == 0
    assert [words[0] for words in lines_of(audited) if words[-1] == "same"] == ["custom-0", "custom-1"] * 2
    assert run_status(running).status == "RUNNING"
    journal.close()


@pytest.fixture
def first_sync(tmp_path: Path, switched: Path) -> Iterator[tuple[ExampleRun, "subprocess.Popen[str]"]]:
    """A sync in another process that waits for its tracker."""
    run = run_with(tmp_path, BackendConfig("custom", target="switched:Switched"))
    run.finish("FINISHED")
    code = f"import sys; sys.path.insert(0, {str(switched)!r}); from vlatrack.cli.main import main; main()"
    command = [sys.executable, "-c", code, "sync", str(run.dir), "--trust-backends"]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield run, process


def test_a_second_sync_at_the_same_time_says_so_and_the_first_goes_on(
    first_sync: tuple[ExampleRun, "subprocess.Popen[str]"], switched: Path, eventually: Callable[..., None]
) -> None:
    run, first = first_sync
    log = run.dir / "delivery" / "deliver.log"
    eventually(lambda: log.exists() and "no route" in log.read_text())
    with pytest.raises(TrackerError, match=r"another process .* delivers this run"):
        call("sync", run.dir)
    (switched / "down").unlink()
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert "custom-0: complete, 12 records" in " ".join(out.split())


def test_what_cannot_be_synchronised_is_one_line(tmp_path: Path) -> None:
    run = run_with(tmp_path, CSV)
    with pytest.raises(TrackerError, match=r"no run directory .*give runs/<experiment>/<run-id>"):
        call("sync", tmp_path)
    with pytest.raises(TrackerError, match="has no backend 'wandb'; it has custom-0"):
        call("sync", run.dir, "--backend", "wandb")
    journal = Journal.open(run.dir / "journal.jsonl", run=run.uid, writer="test")
    with pytest.raises(TrackerError, match="still running"):
        call("sync", run.dir)
    journal.close()


def test_reap_ends_runs_whose_process_is_gone_everywhere_and_touches_no_other(tmp_path: Path) -> None:
    dead = run_with(tmp_path, CSV, BackendConfig("tensorboard"))
    runs = dead.dir.parent.parent
    alive = runs / "contract" / "run-2"
    alive.mkdir()
    journal = Journal.open(alive / "journal.jsonl", run="u2", writer="test")
    journal.append("start", {"name": "n", "experiment": "e", "params": {}, "tags": {}})
    shown = call("status", "--runs", runs)
    rows = {words[0]: " ".join(words[1:]) for words in lines_of(shown) if words}
    assert rows["contract/run-1"].startswith("RUNNING (stale) 9 0.083 1.286 ")
    assert "custom-0 11, tensorboard-1 11" in rows["contract/run-1"]
    assert rows["contract/run-2"].startswith("RUNNING - ")
    assert "no backends" in rows["contract/run-2"]
    assert f"`vlatrack reap --runs {runs}`" in shown.output

    done = call("reap", "--runs", runs)
    assert done.exit_code == 0, done.output
    assert f"{dead.dir}  KILLED" in done.output
    assert run_status(dead.dir).status == "KILLED"
    assert json.loads((dead.dir / "csv" / "run.json").read_text())["status"] == "KILLED"
    assert json.loads((dead.dir / "tensorboard" / "written.json").read_text())["status"] == "KILLED"
    assert run_status(alive).status == "RUNNING"
    assert re.search("run-1 +KILLED .* custom-0 0, tensorboard-1 0", call("status", "--runs", runs).output)
    assert call("reap", "--runs", runs).output == f"no stale runs in {runs}\n"
    journal.close()


def bytes_read() -> int:
    """By the calls of this process that read files; what it maps into memory does not count."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


def test_the_status_of_a_run_is_read_from_the_end_of_a_long_journal(tmp_path: Path) -> None:
    run = ExampleRun(tmp_path)
    run.log(1)
    journal = run.dir / "journal.jsonl"
    line = journal.read_bytes().splitlines(keepends=True)[-1]
    with journal.open("ab") as file:
        file.write(line * (20_000_000 // len(line)))
    run.finish("FINISHED")
    (tmp_path / "runs" / "contract" / "run-0").mkdir()
    (tmp_path / "runs" / "contract" / "run-0" / "journal.jsonl").write_text("no record\n")
    before = bytes_read()
    assert run_status(run.dir).status == "FINISHED"
    assert bytes_read() - before < 1_000_000
    shown = call("status", "--runs", tmp_path / "runs")
    assert re.search("contract/run-1 +FINISHED +0 .* no backends", shown.output)
    assert "contract/run-0  unreadable:" in shown.output
    with pytest.raises(TrackerError, match="no such folder"):
        call("status", "--runs", tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[\xff]", "damaged ('utf-8' codec can't decode"),
        (b'[{"kind": "comet"}]', "damaged (no backend is called 'comet'); resume the run to write it anew"),
        (b"{", "damaged (Expecting property name"),
    ],
)
def test_a_run_that_cannot_be_read_is_named_by_every_command_and_hides_no_other(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    run = run_with(tmp_path)
    run.finish("FINISHED")
    runs = run.dir.parent.parent
    damaged = runs / "contract" / f"run-{'with-a-long-name-' * 6}0"
    shutil.copytree(run.dir, damaged)
    (damaged / "delivery" / "backends.json").write_bytes(content)
    line = f"{damaged}: unreadable: {damaged}/delivery/backends.json: {reason}"

    shown = call("status", "--runs", runs)
    assert (shown.exit_code, shown.output.count(line)) == (0, 1)
    assert re.search("contract/run-1 +FINISHED +9 .* no backends", shown.output)
    for command in (["sync"], ["reap"], ["sync", "--audit"]):
        told = call(*command, "--runs", runs)
        assert (told.exit_code, told.output.count(line)) == (1, 1)
        assert "nothing to deliver" not in told.output
        assert "no stale runs" not in told.output
    assert f"{run.dir}  FINISHED, no backends" in told.output


def test_an_audit_of_all_runs_goes_on_after_a_damaged_journal(tmp_path: Path) -> None:
    run = run_with(tmp_path)
    run.finish("FINISHED")
    runs = run.dir.parent.parent
    damaged = runs / "contract" / "run-0"
    shutil.copytree(run.dir, damaged)
    lines = (damaged / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (damaged / "journal.jsonl").write_bytes(b"".join([*lines[:3], b"damage\n", *lines[4:]]))
    told = call("sync", "--audit", "--runs", runs)
    assert told.exit_code == 1
    assert f"{damaged}/journal.jsonl: byte {sum(map(len, lines[:3]))} begins no journal record" in told.output
    assert f"{run.dir}  FINISHED, no backends" in told.output
    with pytest.raises(TrackerError, match="begins no journal record"):
        call("sync", "--audit", damaged)


def test_the_last_line_of_an_incomplete_run_names_the_command_that_completes_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shares = (
        BackendDelivery("mlflow-0", 0, 312, 0, None, "ConnectionError"),
        BackendDelivery("csv-1", 312, 0, 0, "x", None),
    )
    TerminalDisplay().on_run_end(RunEnd(Path("runs/e/r"), "FAILED", backends=shares))
    told = capsys.readouterr().out
    assert "312 records not delivered to mlflow-0; `vlatrack sync runs/e/r` delivers them" in told
