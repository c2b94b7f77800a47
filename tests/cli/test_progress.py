"""What a run tells of its progress."""

import pytest

from vlatrack.cli.progress import TerminalDisplay
from vlatrack.training.state import TrainState


def test_a_log_file_gets_a_line_for_each_tenth_of_the_encoding_and_of_the_training(
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
    encoded = [f"encoding train {done}/40" for done in range(4, 41, 4)]
    trained = [f"training {step}/20  closs {step - 1:.4f}" for step in range(2, 21, 2)]
    assert told == encoded + encoded + trained


def test_a_resumed_training_tells_a_log_file_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalDisplay() as display:
        display.on_train_start(TrainState(step=13), 20, 2)
        display.on_step(TrainState(step=14))
    assert capsys.readouterr().out == "training 13/20\ntraining 14/20\n"
