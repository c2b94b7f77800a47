"""What a run tells of its progress."""

from pathlib import Path

import pytest
from rich.console import Console

from vlatrack.cli.milestones import Milestones
from vlatrack.cli.progress import TerminalDisplay
from vlatrack.training.callback import RunEnd
from vlatrack.training.state import TrainState


def test_a_log_file_gets_a_line_at_the_beginning_and_for_each_tenth_of_the_encoding_and_of_the_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with TerminalDisplay() as display:
        for done in [*range(1, 41), *range(1, 41)]:  # of two cameras
            display.on_encode("train", done, 40)
        display.on_train_start(TrainState(), 20, 2)
        for step in range(1, 21):
            display.on_step(TrainState(step=step))
            display.on_log(TrainState(step=step), {"train_closs": float(step), "train_lr": 1.0})
    told = capsys.readouterr().out.splitlines()
    encoded = [f"encoding train {done}/40" for done in (1, *range(4, 41, 4))]
    trained = [f"training {step}/20  closs {step - 1:.4f}" for step in range(2, 21, 2)]
    assert told == [*encoded, *encoded, "training 0/20", *trained]


def test_a_resumed_training_tells_a_log_file_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalDisplay() as display:
        display.on_train_start(TrainState(step=13), 20, 2)
        display.on_step(TrainState(step=14))
    assert capsys.readouterr().out == "training 13/20\ntraining 14/20\n"


def test_a_log_file_is_told_the_time_that_is_left_and_in_the_end_that_it_took(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = iter([100.0, 100.5, 160.0, 220.0, 1000.0, 1100.0])
    milestones = Milestones(Console(), clock=lambda: next(seconds))
    for done in (10, 11, 15, 20):  # 10 were done before
        milestones.report("episodes", done, 20, "half of them" if done == 15 else "")
    for done in (0, 10):  # anew
        milestones.report("episodes", done, 20, "")
    assert capsys.readouterr().out.splitlines() == [
        "episodes 10/20",
        "episodes 15/20  0:01:00 left  half of them",
        "episodes 20/20  took 0:02:00",
        "episodes 0/20",
        "episodes 10/20  0:01:40 left",
    ]


def test_a_run_without_figures_names_its_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalDisplay() as display:
        display.on_run_end(RunEnd(tmp_path, "FINISHED"))
        assert capsys.readouterr().out == f"FINISHED {tmp_path} · look at it: {tmp_path}\n"
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "losses.png").touch()
        display.on_run_end(RunEnd(tmp_path, "FINISHED"))
    report = tmp_path / "report"
    assert capsys.readouterr().out == f"figures     {report}\nFINISHED {tmp_path} · look at it: {report}\n"
