"""One bad run never stops the others in `sync`, `status` and `reap`: each is one row with its reason."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from happens import happens
from test_commands import call

from vlatrack import start_run
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import backends_text
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.run_files import RunFiles

NOBODY = 65534


def append_line(run_dir: Path, **fields: object) -> None:
    line = {"v": 1, "run": "u", "writer": "w", "seq": 3, "t_ms": 1, "step": None, **fields}
    with RunFiles(run_dir).journal.open("a") as journal:
        journal.write(json.dumps(line) + "\n")


def nest_deeply(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000 + "\n")


def make_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a line of deep nesting": lambda run: nest_deeply(RunFiles(run).journal),
    "a line whose data is null": lambda run: append_line(run, kind="metrics", data=None),
    "a finish without a status": lambda run: append_line(run, kind="finish", data={}),
    "a metric that is a list": lambda run: append_line(run, kind="metrics", data={"a": [1]}),
    "a journal that is a folder": lambda run: make_folder(RunFiles(run).journal),
    "backends of deep nesting": lambda run: nest_deeply(RunFiles(run).backends),
    "a log that is a folder": lambda run: make_folder(RunFiles(run).delivery_log),
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run that died, with nothing delivered, and beside it a folder for a bad one."""
    run = ExampleRun(tmp_path)
    run.log(5)
    RunFiles(run.dir).backends.write_text(backends_text([BackendConfig("tensorboard")]))
    shutil.copytree(run.dir, run.dir.parent / "bad")
    return tmp_path / "runs"


@happens(
    "place",
    "a run folder is damaged, crafted or cannot be written",
    "`status`, `sync` and `reap` have one row for it, with the reason, and serve all others",
)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_run_is_one_row_with_its_reason_and_the_others_are_served(runs: Path, damage: str) -> None:
    bad = runs / "contract" / "bad"
    DAMAGE[damage](bad)
    shown = call("status", "--runs", runs)
    assert shown.exit_code == 0
    assert {"contract/bad", "contract/run-1"} <= {line.split()[0] for line in shown.output.splitlines() if line}
    done = call("sync", "--runs", runs)
    assert done.exit_code == 1
    (row,) = [line for line in done.output.splitlines() if str(bad) in line.split(": ")[0]]
    assert len(row) > len(str(bad)) + 10
    assert "tensorboard-0: complete, 7 records" in done.output
    assert run_status(runs / "contract" / "run-1").status == "KILLED"


@happens(
    "place",
    "a line of a journal is damaged, also that of the start or the end",
    "`status`, `health`, `show`, `compare` and `report` name the line once and show the rest; delivery stops there",
)
@pytest.mark.parametrize(("kind", "told"), [("start", "line 1 is"), ("metrics", "line 3 is"), ("finish", "line 8 is")])
def test_a_damaged_line_is_named_by_every_command_and_the_rest_is_shown(tmp_path: Path, kind: str, told: str) -> None:
    with start_run("toy", runs=tmp_path, backends=[]) as run:
        for step in range(1, 7):
            run.log({"train_closs": 1 / step, "train_loss": 2 / step}, step=step)
    journal = Path(run.path) / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    place = {"start": 0, "metrics": 2, "finish": 7}[kind]
    lines[place] = lines[place][:140] + b"\x1b[31m\n"
    journal.write_bytes(b"".join(lines) + b'{"v":1,"run":"cut')
    line = f"journal.jsonl, {told} damaged (left out)"
    status = "STALE" if kind == "finish" else "FINISHED"
    shown = call("status", "--runs", tmp_path)
    assert shown.output.count(line) == 1
    assert (json.loads(call("status", "--runs", tmp_path, "--json").output)["status"]) == status
    for words in (("show", run.path), ("health", run.path), ("report", run.path, "--html", "--tables")):
        done = call(*words)
        assert (done.exit_code, done.output.count(line)) == (0, 1), done.output
    done = call("compare", run.path, run.path)
    assert (done.exit_code, done.output.count(line)) == (0, 2), done.output  # of A and of B
    assert "1 → 0.1667" in done.output
    assert json.loads(call("compare", run.path, run.path, "--json").output)["runs"][0]["damaged"] == line
    assert line in (Path(run.path) / "report" / "report.html").read_text()


def test_reaping_goes_on_after_a_run_that_cannot_be_ended(runs: Path) -> None:
    make_folder(RunFiles(runs / "contract" / "bad").delivery_log)
    done = call("reap", "--runs", runs)
    assert done.exit_code == 1
    assert "deliver.log: no regular file" in done.output
    assert run_status(runs / "contract" / "run-1").status == "KILLED"


def test_a_loop_of_links_and_a_link_to_nothing_stop_nobody(runs: Path) -> None:
    (runs / "loop").symlink_to("loop")
    (runs / "contract" / "nothing").symlink_to("gone")
    (runs / "contract" / "loop").symlink_to("loop")
    shown = call("status", "--runs", runs)
    assert shown.output.count("unreadable") == 4  # a row and a line for each loop
    assert "contract/run-1" in shown.output
    assert "nothing" not in shown.output


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Whose parents every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="vlatrack-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes another user")
def test_a_folder_that_may_not_be_read_is_a_row_and_not_missing(runs: Path, public_folder: Path) -> None:
    shutil.copytree(runs, public_folder / "runs")
    for path in public_folder.rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    (public_folder / "runs" / "secret").mkdir(mode=0o700)
    os.seteuid(NOBODY)
    try:
        shown = call("status", "--runs", public_folder / "runs")
    finally:
        os.seteuid(0)
    assert f"{public_folder}/runs/secret: unreadable: Permission denied" in shown.output
    assert "contract/run-1" in shown.output


def test_a_run_on_a_disk_that_can_only_be_read_is_shown_and_sync_says_why_it_cannot_go(runs: Path) -> None:
    bad = runs / "contract" / "bad"
    mount = ["mount", "-t", "tmpfs", "none", str(bad)]
    keep = shutil.copytree(bad, runs.parent / "keep")
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here (root is needed)")
    try:
        shutil.copytree(keep, bad, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(bad)], check=True)
        assert "contract/bad" in call("status", "--runs", runs).output
        done = call("sync", "--runs", runs)
    finally:
        subprocess.run(["umount", "--lazy", str(bad)], check=True)
    assert done.exit_code == 1
    assert "Read-only file system; delivery writes there: make it writable, or copy the run" in done.output
    assert "tensorboard-0: complete" in done.output
