"""`vlatrack sweep --status`, `--best` and `--drop`: what they say of a sweep that has begun."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vlatrack.errors import SpecError, TrackerError
from vlatrack.spec.load import load_spec
from vlatrack.sweep.study import SweepStudy

Ask = Callable[..., Result]


@pytest.fixture
def ask(tmp_path: Path, sweep_file) -> Ask:
    """The command in this process, about the sweep in the file that was written last."""
    from vlatrack.cli.main import app

    def call(*options: str) -> Result:
        file = tmp_path / "sweep.yaml"
        words = ["sweep", str(file if file.exists() else sweep_file()), "--runs", str(tmp_path / "runs"), *options]
        return CliRunner().invoke(app, words)

    return call


def complete(study: SweepStudy, *values: float) -> None:
    trial = study.begin()
    assert trial is not None
    study.note_values(trial, study.sweep.seeds[0], values)
    study.complete(trial)


@pytest.mark.parametrize("option", ["--status", "--best", "--drop"])
def test_a_sweep_that_has_not_begun_is_named(ask: Ask, option: str, tmp_path: Path) -> None:
    done = ask(option)
    assert isinstance(done.exception, SpecError)
    assert str(done.exception).startswith(f"{tmp_path / 'runs' / 'sweeps' / 'toys'}: no such sweep yet")
    assert not (tmp_path / "runs").exists()


def test_one_question_at_a_time(ask: Ask) -> None:
    assert str(ask("--best", "--drop").exception) == "vlatrack sweep: one of --status, --best and --drop at a time"


def test_the_status_has_a_line_for_each_trial_and_the_best_is_an_experiment(
    opened: Callable[..., SweepStudy], ask: Ask, tmp_path: Path
) -> None:
    study = opened()
    failed = study.begin()
    assert failed is not None
    assert "no trial is complete yet (1 of 3 trials (1 running))" in str(ask("--best").exception)
    study.fail(failed.number, "its loss is \x1b[31mred")
    complete(study, 0.25)
    lines = ask("--status").output.splitlines()
    assert lines[0].startswith("trial 1/3 failed  optim.lr=")
    assert "\x1b" not in lines[0]
    assert lines[1].startswith("trial 2/3 complete  val_ind_loss_ct 0.25 (best so far)  optim.lr=")
    assert lines[2] == "best: trial 2  val_ind_loss_ct 0.25"
    assert lines[3].startswith("2 of 3 trials (1 complete, 1 failed) · ")
    (tmp_path / "best.yaml").write_text(ask("--best").stdout)
    assert 1e-5 <= load_spec(tmp_path / "best.yaml").optim.lr <= 1e-2


def test_of_a_front_somebody_has_to_choose(opened: Callable[..., SweepStudy], ask: Ask) -> None:
    study = opened(objectives=[{"metric": "val_ind_loss_ct"}, {"metric": "val_ind_acc_action"}])
    for values in ((1.0, 0.5), (2.0, 0.9)):
        complete(study, *values)
    assert "2 configurations are on the Pareto front; choose one of" in str(ask("--best").exception)
    assert ask("--status").output.count("(on the front)") == 2


def test_a_sweep_is_dropped_unless_somebody_works_on_it(
    opened: Callable[..., SweepStudy], ask: Ask, tmp_path: Path
) -> None:
    study = opened()
    trial = study.begin()
    assert trial is not None
    assert isinstance(ask("--drop").exception, TrackerError)
    study.fail(trial.number, "no")
    run = tmp_path / "runs" / "toy" / "run-1"
    run.mkdir(parents=True)
    done = ask("--drop")
    assert done.output == f"dropped {study.folder.path}; its runs are still in {tmp_path / 'runs'}\n"
    assert run.is_dir()
    assert not study.folder.path.exists()
