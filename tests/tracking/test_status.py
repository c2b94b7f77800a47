"""`vlatrack status`: losses, pace and health from the ends of journals, filters, JSON, and tables of any width."""

import json
import math
import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from happens import happens
from launching import running
from rich.console import Console
from typer.testing import CliRunner, Result

from vlatrack.cli.main import app
from vlatrack.cli.status_table import status_table
from vlatrack.errors import TrackerError
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import backends_text
from vlatrack.tracking.delivery.report import Unreadable
from vlatrack.tracking.journal.encoding import sendable
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.progress import TrainingProgress
from vlatrack.tracking.journal.records import JournalDamage
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.run_state import run_states

STARTED_MS = 1_767_225_600_000
FOUND = {
    "detector": "spike",
    "severity": "warning",
    "metric": "train_closs",
    "step": 30,
    "value": 9.0,
    "message": "train_closs jumped to 9.0 at step 30.",
    "remedy": "Lower optim.lr.",
}


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["status", *map(str, words)], catch_exceptions=False)


def objects(*words: str | Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not of strict JSON")

    return [json.loads(line, parse_constant=refuse) for line in call(*words, "--json").output.splitlines()]


class Trainer:
    """Writes the journal of a training of 4 epochs of 10 steps that takes 2 s a step, and goes on."""

    def __init__(self, runs: Path, place: str, *, name: str = "", tracker: bool = False) -> None:
        self.dir = runs / place
        (self.dir / "delivery").mkdir(parents=True)
        (self.dir / "delivery" / "health.json").write_text("{}")  # it is watched
        if tracker:
            (self.dir / "delivery" / "backends.json").write_text(backends_text([BackendConfig("tensorboard")]))
        self.journal = Journal.open(self.dir / "journal.jsonl", run="u", writer="trainer")
        self.start(name or self.dir.name)

    def start(self, name: str, *, at_step: int = 0) -> None:
        params = {"train.epochs": 4, "train.max_steps": None}
        data = {"name": name, "experiment": "e", "params": params, "tags": {}}
        self.journal.append("start", data, t_ms=STARTED_MS + 2000 * at_step)

    def train(self, first: int, last: int, *, factor: float = 1.0) -> None:
        for step in range(first, last + 1):
            t_ms = STARTED_MS + 2000 * step
            losses = dict.fromkeys(("train_closs", "train_loss_ct", "train_z_loss", "train_loss"), factor / step)
            self.journal.append("metrics", losses | {"epoch": step / 10}, step=step, t_ms=t_ms)
            self.journal.append("metrics", {"system/cpu_percent": 1.0}, step=step, t_ms=t_ms)
            if step % 10 == 0:
                val = {"val_ind_closs": 2 * factor / step, "val_ind_loss_ct": math.nan, "epoch": step / 10}
                self.journal.append("metrics", val, step=step, t_ms=t_ms)

    def find(self, **changes: object) -> None:
        self.journal.append("event", {"name": "health", "data": FOUND | changes, "alert": True})

    def rewind(self, first: int, last: int) -> None:
        span = {"number": 1, "from_step": first, "to_step": last}
        self.journal.append("event", {"name": "rewound", "data": span, "alert": False})

    def end(self, status: str) -> None:
        self.journal.append("finish", {"status": status, "reason": None, "deliver_until_ms": 0})
        self.journal.close()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_run_that_trains_tells_its_losses_pace_time_left_health_and_owner(runs: Path) -> None:
    trainer = Trainer(runs, "e/20260101-000000-ab12", name="seed=2", tracker=True)
    trainer.train(1, 25)
    trainer.find(step=20)
    (shown,) = objects("--runs", runs)
    trainer.journal.close()
    assert shown["status"] == "RUNNING"
    assert (shown["name"], shown["experiment"]) == ("seed=2", "e")
    assert (shown["step"], shown["total_steps"], shown["epoch"], shown["epochs"]) == (25, 40, 2.5, 4)
    assert (shown["steps_per_s"], shown["left_s"]) == (0.5, 30.0)
    assert shown["started"] == "2026-01-01T00:00:00+00:00"
    assert shown["losses"]["train_closs"] == 1 / 25
    assert shown["losses"]["val_ind_closs"] == 2 / 20
    assert shown["losses"]["val_ind_loss_ct"] == "NaN"
    assert shown["owner"] == {"user": runs.owner(), "host": os.uname().nodename, "pid": os.getpid()}
    assert shown["health"] == "warning"
    assert [found["message"] for found in shown["findings"]] == [FOUND["message"]]
    assert shown["trackers"][0]["undelivered"] > 25


def test_what_a_resume_went_back_over_no_longer_counts(runs: Path) -> None:
    trainer = Trainer(runs, "e/r")
    trainer.train(1, 30, factor=1000.0)
    trainer.find(step=8, severity="critical")
    trainer.find(step=30)
    trainer.rewind(11, 30)
    trainer.start("r", at_step=10)
    (shown,) = objects("--runs", runs)
    assert (shown["losses"]["train_closs"], shown["losses"]["val_ind_closs"]) == (100.0, 200.0)
    assert (shown["steps_per_s"], shown["left_s"]) == (None, None)
    assert [found["step"] for found in shown["findings"]] == [8]
    assert shown["health"] == "critical"
    trainer.train(11, 13)
    (shown,) = objects("--runs", runs)
    trainer.journal.close()
    assert (shown["losses"]["train_closs"], shown["losses"]["val_ind_closs"]) == (1 / 13, 200.0)
    assert (shown["step"], shown["steps_per_s"], shown["left_s"]) == (13, 0.5, 54.0)


def test_runs_are_filtered_by_experiment_status_age_and_name_and_sorted_by_a_loss(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, factor, status in (("a/1", 3.0, "FINISHED"), ("a/2", 1.0, "FAILED"), ("bee/3", 2.0, "KILLED")):
        trainer = Trainer(runs, place, name=f"lr={factor}")
        trainer.train(1, 10, factor=factor)
        trainer.end(status)
    (runs / "bee" / "4").mkdir()
    (runs / "bee" / "4" / "journal.jsonl").write_text("no record\n")

    def chosen(*words: str) -> list[str]:
        return [shown["run"] for shown in objects("--runs", runs, *words)]

    assert chosen() == ["a/1", "a/2", "bee/3", "bee/4"]
    assert chosen("--experiment", "a") == ["a/1", "a/2"]
    assert chosen("--experiment", "b*", "--status", "Killed") == ["bee/3"]
    assert chosen("--status", "failed", "--status", "unreadable") == ["a/2", "bee/4"]
    assert chosen("--name", "lr=2") == ["bee/3"]
    assert chosen("--sort", "val_ind_closs") == ["a/2", "bee/3", "a/1", "bee/4"]
    assert chosen("--since", "1h") == ["a/1", "a/2", "bee/3"]  # their ends are of now
    assert chosen("--since", "2099-01-01") == []
    told = call("--runs", runs, "--name", "nothing").output
    assert told == f"none of the runs is such a one in {runs}\n"
    for words in (["--sort", "beauty"], ["--since", "yesterday"], ["--watch"], ["--watch", "--json"]):
        with pytest.raises(TrackerError, match=words[0]):
            call("--runs", runs, *words)


@happens(
    "place",
    "a journal is damaged, or its texts are hostile, and `status --json` reads it",
    "each run is one line of strict JSON with the same keys; damaged lines are named, and the rest is shown",
)
def test_every_run_is_one_strict_json_object_with_the_same_keys_also_a_damaged_one(runs: Path) -> None:
    evil = "<script>\x1b[2J\u202e\nname"
    trainer = Trainer(runs, f"e/{'x' * 40}", name=evil)
    trainer.train(1, 3, factor=math.inf)
    trainer.find(message=evil)
    trainer.find(step="no number", severity=["?"])  # no finding
    trainer.end(evil)
    damaged = ExampleRun(runs.parent)
    with RunFiles(damaged.dir).journal.open("a") as journal:
        journal.write('{"name":"health"\n')
    shown = objects("--runs", runs)
    assert shown[0].keys() == shown[1].keys()
    assert (shown[0]["status"], shown[0]["reason"]) == ("STALE", "the end of its journal is damaged")
    assert (shown[0]["damaged"], shown[1]["damaged"]) == ("journal.jsonl, line 2 is damaged (left out)", None)
    assert (shown[1]["name"], shown[1]["losses"]["train_closs"]) == (sendable(evil), "Infinity")
    assert (shown[1]["health"], [finding["message"] for finding in shown[1]["findings"]]) == (
        "warning",
        [sendable(evil)],
    )
    table = call("--runs", runs)
    assert table.exit_code == 0
    assert "\x1b" not in table.output
    assert "\u202e" not in table.output


@pytest.mark.parametrize(
    ("width", "headings", "is_grouped"),
    [
        (45, ["status", "step"], True),
        (60, ["status", "step", "left", "health"], True),
        (80, ["status", "step", "left", "closs", "loss_ct", "health"], True),
        (120, ["status", "step", "left", "closs", "loss_ct", "val closs", "val loss_ct", "health"], False),
        (200, None, False),
    ],
)
def test_a_narrow_terminal_shows_fewer_columns_and_each_whole(
    runs: Path, width: int, headings: list[str] | None, is_grouped: bool
) -> None:
    trainer = Trainer(runs, "metaworld-quickstart/20260101-120000-ab12", name="seed=2")
    trainer.train(1, 25)
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(status_table(list(run_states(runs)), runs, width))
    trainer.journal.close()
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert max(map(len, lines)) <= width
    expected = [*"status,step,left,closs,loss_ct,val closs,val loss_ct,speed,health,undelivered,owner,name".split(",")]
    assert re.split("  +", lines[0]) == ["run", *(expected if headings is None else headings)]
    assert (lines[1] == "metaworld-quickstart/") is is_grouped
    assert lines[-1].split()[0].endswith("20260101-120000-ab12")
    assert "…" not in captured.get()


def test_what_trackers_lack_is_told_before_the_losses(runs: Path) -> None:
    trainer = Trainer(runs, "metaworld-quickstart/20260101-120000-ab12", tracker=True)
    trainer.train(1, 25)
    trainer.end("FINISHED")
    console = Console(width=60, color_system=None)
    with console.capture() as captured:
        console.print(status_table(list(run_states(runs)), runs, 60))
    assert "tensorboard-0 54" in captured.get()


def test_the_progress_of_a_journal_without_any_training_is_empty(tmp_path: Path) -> None:
    run = ExampleRun(tmp_path)
    journal = RunFiles(run.dir).journal
    progress = TrainingProgress.of(journal, damage=JournalDamage(journal))
    assert (progress.name, progress.step, progress.total_steps, progress.losses) == ("run-1", None, None, {})
    (entry,) = run_states(run.dir.parents[1])
    assert not isinstance(entry, Unreadable)
    assert entry.health is None, "nobody has watched it"


def test_a_watch_shows_a_new_step_and_ends_with_ctrl_c_and_exit_code_0(runs: Path) -> None:
    trainer = Trainer(runs, "e/r")
    trainer.train(1, 7)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vlatrack", "status", "--watch", "--runs", str(runs)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with running(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True) as watch:
        os.close(theirs)
        read_until(ours, "7/40")
        trainer.train(8, 8)
        read_until(ours, "8/40")
        trainer.end("FINISHED")
        read_until(ours, "FINISHED")
        watch.send_signal(signal.SIGINT)
        while read_some(ours):
            pass
        assert watch.wait(timeout=30) == 0
    os.close(ours)


def read_until(terminal: int, wanted: str) -> None:
    seen, give_up = "", time.monotonic() + 60
    while wanted not in seen:
        assert time.monotonic() < give_up, seen
        seen += read_some(terminal)


def read_some(terminal: int) -> str:
    """What the other side writes next; nothing once it is gone."""
    ready, _, _ = select.select([terminal], [], [], 60)
    try:
        return os.read(terminal, 65536).decode(errors="replace") if ready else ""
    except OSError:  # the last process that had it open has ended
        return ""
