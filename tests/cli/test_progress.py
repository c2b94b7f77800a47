"""What a run tells of its progress: in a terminal of any width, and in a log file."""

import io
import os
import pty
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from vlatrack.cli.bars import WIDTH_OF_FILES, Bars, StillAtIt
from vlatrack.cli.progress import TerminalDisplay
from vlatrack.metrics.states import MetricStates
from vlatrack.training.callback import RunEnd, SplitResult
from vlatrack.training.state import TrainState

LOSSES = {"train_closs": 1.5064, "train_loss_ct": 0.1884, "train_z_loss": 77.09, "train_l1_loss_action": 0.254}
ON_BAR = ["closs 1.506", "loss_ct 0.188", "z_loss 77.09", "l1_loss_action 0.254"]
TEXTS = ["closs 1.5064", "loss_ct 0.1884", "z_loss 77.0900", "l1_loss_action 0.2540"]


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def log_file() -> Console:
    return Console(file=io.StringIO(), width=WIDTH_OF_FILES)


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture
def terminal() -> Iterator[int]:
    """The end of a pseudo terminal that a program writes to."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    yield theirs
    os.close(ours)
    os.close(theirs)


def bar_at(terminal: int, width: int, name: str, done: int, total: int) -> str:
    """The bar of a training with four losses that takes 0.25 s a step, as a terminal of this width shows it."""
    clock = Clock()
    with open(terminal, "w", closefd=False) as file:
        console = Console(file=file, width=width, color_system=None, force_terminal=True)
        bars = Bars(console, clock)
        assert bars.is_live
        bars.advance(name, 0, total, unit="step")
        clock.now += done / 4
        bars.advance(name, done, total, unit="step", details=ON_BAR)
        with console.capture() as shown:
            console.print(bars._bars())
    (line,) = shown.get().splitlines()
    return line.rstrip()


@pytest.mark.parametrize(("width", "losses"), [(60, 1), (80, 2), (120, 4)])
def test_a_bar_shows_how_far_how_long_and_how_fast_and_then_as_many_losses_as_fit(
    terminal: int, width: int, losses: int
) -> None:
    line = bar_at(terminal, width, "training", 120, 28700)
    assert len(line) <= width
    assert re.fullmatch(r"training [━╸╺ ]+ 120/28700 1:59:05 4\.00 steps/s", line[: line.index("steps/s") + 7])
    assert line.split("steps/s")[1].split("  ")[1:] == ON_BAR[:losses]


def test_a_long_name_gives_way_to_what_a_bar_is_for(terminal: int) -> None:
    line = bar_at(terminal, 60, "pick up the black bowl between the plate and the ramekin", 120, 28700)
    assert len(line) <= 60
    assert line.startswith("pick up the ")
    assert "…" in line
    assert line.endswith("120/28700 1:59:05 4.00 steps/s")


def test_a_log_file_has_a_line_every_30_seconds_and_at_each_tenth_of_something_long() -> None:
    clock, console = Clock(), log_file()
    bars = Bars(console, clock)
    for done in range(601):  # a second each, and ten minutes in all: 30 s come before each tenth
        bars.advance("training", done, 600, unit="step", details=["closs 1.5"])
        clock.now += 1
    told = [int(re.findall(r"training (\d+)/600  ", line)[0]) for line in lines_of(console)]
    assert told == list(range(0, 601, 30))
    assert lines_of(console)[2] == "training 60/600  1.00 steps/s  0:09:00 left  closs 1.5"
    assert lines_of(console)[-1] == "training 600/600  1.00 steps/s  took 0:10:00  closs 1.5"


def test_what_takes_minutes_has_a_line_at_each_tenth_and_what_takes_a_moment_two_in_all() -> None:
    clock, console = Clock(), log_file()
    bars = Bars(console, clock)
    for seconds in (0.1, 0.01):
        for done in range(1001):
            bars.advance(f"encoding {seconds}", done, 1000, unit="frame")
            clock.now += seconds
        clock.now = round(clock.now)
    for done in range(21):
        bars.advance("evaluating", done, 20, unit="batch", is_brief=True)
        clock.now += 0.1 if done < 10 else 40 if done == 10 else 1
    told = [line.split("  ")[0] for line in lines_of(console)]
    assert told == [
        *(f"encoding 0.1 {done}/1000" for done in range(0, 1001, 100)),
        *(f"encoding 0.01 {done}/1000" for done in (0, 501, 1000)),
        *(f"evaluating {done}/20" for done in (11, 16)),
    ]


def test_what_begins_anew_is_measured_anew() -> None:
    clock, console = Clock(), log_file()
    bars = Bars(console, clock)
    for done in (10, 15, 20, 0, 10):  # 10 were done before
        bars.advance("episodes", done, 20, unit="episode")
        clock.now += 60
    assert lines_of(console) == [
        "episodes 10/20",
        "episodes 15/20  12.0 s/episode  0:01:00 left",
        "episodes 20/20  12.0 s/episode  took 0:02:00",
        "episodes 0/20",
        "episodes 10/20  6.00 s/episode  0:01:00 left",
    ]


def test_what_does_not_tell_how_far_it_is_has_a_line_every_30_seconds() -> None:
    console, waits = log_file(), iter([False, False, True])
    with StillAtIt(console, "part 2 of 4: delivery", wait=lambda seconds: next(waits)) as told:
        told._thread.join()
    assert lines_of(console) == ["part 2 of 4: delivery  0:00:30 so far", "part 2 of 4: delivery  0:01:00 so far"]


def test_colours_that_a_user_forces_upon_a_file_bring_no_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with TerminalDisplay() as display:
        display.on_train_start(TrainState(), 20, 2)
        display.on_step(TrainState(step=20))
    assert re.fullmatch(r"training 0/20\ntraining 20/20  \S+ steps/s\n", capsys.readouterr().out)


def test_a_log_file_is_told_of_encoding_training_and_every_evaluation_in_whole_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = SplitResult({name.removeprefix("train_"): value for name, value in LOSSES.items()}, MetricStates())
    with TerminalDisplay() as display:
        display.on_encode("train", 1, 40)
        display.on_encode("train", 40, 40)
        display.on_train_start(TrainState(), 20, 2)
        display.on_step(TrainState(step=9))
        display.on_log(TrainState(step=9), LOSSES | {"train_lr": 1.0})
        display.on_log(TrainState(step=9), {"train_gradient_share_closs": 1.0})
        display.on_step(TrainState(step=10))
        display.on_evaluate("val_ind", 1, 2, "batch")
        display.on_epoch(TrainState(step=10, epoch=1), {"train": result, "val_ind": result})
    told = capsys.readouterr().out
    losses = "  ".join(TEXTS)
    short = "  ".join(ON_BAR)
    assert [re.sub(r"  \S+ \w+/s", "", line) for line in told.splitlines()] == [
        "encoding train 1/40",
        "encoding train 40/40",
        "training 0/20",
        f"training 10/20  {short}",
        f"epoch 1/2    train     {losses}",
        f"epoch 1/2    val_ind   {losses}",
    ]
    assert "\x1b" not in told


def test_a_resumed_training_tells_a_log_file_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalDisplay() as display:
        display.on_train_start(TrainState(step=13), 20, 2)
        display.on_step(TrainState(step=14))
    assert capsys.readouterr().out == "training 13/20\n"


@pytest.mark.parametrize("width", [48, 60, 80, 120])
def test_the_line_of_an_epoch_cuts_no_loss_in_the_middle(
    terminal: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    metrics = {name.removeprefix("train_"): value for name, value in LOSSES.items()}
    with open(terminal, "w", closefd=False) as file:
        monkeypatch.setattr("sys.stdout", file)
        display = TerminalDisplay()
        with display._console.capture() as shown:
            display.on_epoch(TrainState(epoch=1), {"val_ind": SplitResult(metrics, MetricStates())})
    lines = shown.get().splitlines()
    assert max(map(len, lines)) <= width
    assert [text for line in lines for text in re.split("  +", line) if text in TEXTS] == TEXTS


def test_a_run_without_figures_names_its_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalDisplay() as display:
        display.on_run_end(RunEnd(tmp_path, "FINISHED"))
        assert capsys.readouterr().out == f"FINISHED {tmp_path} · look at it: {tmp_path}\n"
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "losses.png").touch()
        display.on_run_end(RunEnd(tmp_path, "FINISHED"))
    report = tmp_path / "report"
    assert capsys.readouterr().out == f"figures     {report}\nFINISHED {tmp_path} · look at it: {report}\n"
