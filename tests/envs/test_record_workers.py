"""Recording in worker processes: the same demonstrations with any number of them, also when some die."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
from program import Program
from toy_arena import STEPS_TO_SUCCESS, ToyArena
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.envs.record import STEPS_AFTER_SUCCESS, AttemptsHere, Demonstration, Trial, record
from vlatrack.envs.record_workers import AttemptsInWorkers
from vlatrack.envs.watched import EPISODES_PER_WORKER, Simulator
from vlatrack.errors import DataError, SimulatorError

ARENA = "toy_arena:ToyArena"
PUSH = Trial("push", seed=0, action_noise=0.1, longest=20)


def in_workers(workers: int = 1, timeout_s: float = 60, **options: object) -> AttemptsInWorkers:
    return AttemptsInWorkers(Simulator(ARENA, options, timeout_s), workers=workers)


def content(made: Iterator[Sequence[Demonstration]], attempts: int) -> list[tuple[bytes, ...]]:
    return [
        tuple(part.tobytes() for stretch in found for part in (stretch.actions, stretch.states, stretch.frames["top"]))
        for found in islice(made, attempts)
    ]


def workers_left() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "vlatrack.envs.worker" in child.cmdline()]


@pytest.fixture(scope="module")
def expected() -> list[tuple[bytes, ...]]:
    made = content(AttemptsHere(ToyArena()).of(PUSH), 8)
    assert [not found for found in made] == [number % 3 == 2 for number in range(8)]
    assert len(set(made)) == 7
    return made


@pytest.mark.parametrize("workers", [1, 3])
def test_attempts_do_not_depend_on_the_number_of_workers(workers: int, expected: list) -> None:
    with closing(in_workers(workers)) as attempts:
        assert content(attempts.of(PUSH), 8) == expected
    assert workers_left() == []


@pytest.mark.parametrize("trouble", ["crash", "raise", pytest.param("hang", marks=pytest.mark.slow)])
def test_an_attempt_that_breaks_its_worker_is_made_again(trouble: str, expected: list, tmp_path: Path) -> None:
    options = {"trouble": trouble, "seeds": "1 4", "times": 1, "notes": str(tmp_path)}
    with closing(in_workers(2, timeout_s=10 if trouble == "hang" else 60, **options)) as attempts:
        assert content(attempts.of(PUSH), 8) == expected
    begun = {file.name: len(file.read_text().splitlines()) for file in tmp_path.iterdir()}
    assert {name for name, times in begun.items() if times == 2} == {"push-1", "push-4"}


def test_an_attempt_that_breaks_every_worker_ends_the_recording_with_one_line(tmp_path: Path) -> None:
    with (
        closing(in_workers(2, trouble="raise", seeds=1)) as attempts,
        pytest.raises(SimulatorError, match=r"attempt 1 at push broke 3 workers \(RuntimeError: the point") as told,
    ):
        record(attempts, {"push": 2}, output=tmp_path / "demos", longest=20)
    assert "\n" not in str(told.value)
    assert workers_left() == []
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_ahead_that_breaks_every_worker_is_no_matter_if_it_is_not_needed(tmp_path: Path) -> None:
    with closing(in_workers(2, trouble="raise", seeds=1, pause_s=0.5)) as attempts:
        told = record(attempts, {"push": 1, "pull": 1}, output=tmp_path / "demos", longest=20)
    assert [(task.task, task.attempts) for task in told] == [("push", 1), ("pull", 1)]


def test_attempts_at_the_task_before_do_not_count_for_the_next(tmp_path: Path) -> None:
    with closing(in_workers(3)) as attempts:
        told = record(attempts, {"push": 1, "pull": 2}, output=tmp_path / "workers", longest=20)
    assert [(task.task, task.attempts) for task in told] == [("push", 1), ("pull", 2)]
    record(AttemptsHere(ToyArena()), {"push": 1, "pull": 2}, output=tmp_path / "here", longest=20)
    one, other = (LeRobotDataset(tmp_path / name).episodes() for name in ("workers", "here"))
    assert [episode.task for episode in one] == ["push", "pull", "pull"]
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine.actions, theirs.actions)


def test_a_worker_is_replaced_after_some_attempts(tmp_path: Path) -> None:
    with closing(in_workers(notes=str(tmp_path))) as attempts:
        made = list(islice(attempts.of(PUSH), EPISODES_PER_WORKER + 1))
    assert len(made) == EPISODES_PER_WORKER + 1
    processes = {file.read_text() for file in tmp_path.iterdir()}
    assert len(processes) == 2


def test_a_simulator_without_an_expert_is_one_line() -> None:
    with pytest.raises(DataError, match="silent_arena:Silent: has no scripted expert to record"):
        AttemptsInWorkers(Simulator("silent_arena:Silent", {}, 60))
    assert workers_left() == []


def test_the_command_records_the_same_dataset_with_more_workers(tmp_path: Path) -> None:
    for name, workers in (("one", "1"), ("two", "2")):
        words = ["push:3", "pull:2", "--env", ARENA, "--workers", workers, "--storage", "png", "-o", tmp_path / name]
        done = CliRunner().invoke(app, ["data", "record", *map(str, words)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "push 3/3  " in done.output, "a log file, too, tells how far it is"
        assert f"wrote {tmp_path / name}: 5 episodes" in done.output
    assert LeRobotDataset(tmp_path / "one").fingerprint() == LeRobotDataset(tmp_path / "two").fingerprint()


def test_the_command_says_in_how_many_episodes_the_stretches_between_bursts_are(tmp_path: Path) -> None:
    bursts = ("--noise-steps", "1", "--clean-steps", "2")
    words = ["push:6", "--env", ARENA, *bursts, "--storage", "png", "-o", str(tmp_path / "demos")]
    done = CliRunner().invoke(app, ["data", "record", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    stretches = LeRobotDataset(tmp_path / "demos").episodes()
    assert f"6 demonstrations in {len(stretches)} episodes, {sum(one.length for one in stretches)} steps" in done.output
    assert {one.length for one in stretches} <= {1, 2, 3}


def test_nothing_is_rendered_during_a_burst_of_noise() -> None:
    arena = ToyArena()
    trial = Trial("push", seed=0, action_noise=0.1, longest=20, noise_steps=2, clean_steps=2)
    recorded = sum(len(stretch.actions) for stretch in next(AttemptsHere(arena).of(trial)))
    assert recorded <= arena.rendered <= recorded + 1, "after the last step the next would have been recorded, or not"
    assert recorded < STEPS_TO_SUCCESS + STEPS_AFTER_SUCCESS


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_recording_that_is_ended_leaves_neither_files_nor_workers(
    tmp_path: Path, program: Program, eventually: Callable[..., None], end: signal.Signals
) -> None:
    notes, demos = tmp_path / "notes", tmp_path / "demos"
    notes.mkdir()
    options = ("--env-option", "pause_s=0.1", "--env-option", f"notes={notes}")
    process = program.start("data", "record", "push:500", "--env", ARENA, *options, "--workers", "2", "-o", demos)
    eventually(lambda: len(list(notes.iterdir())) > 2)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.send_signal(end)
    _, told = process.communicate()
    assert "Traceback" not in told
    assert process.returncode == 128 + end
    eventually(lambda: not any(map(psutil.pid_exists, workers)))
    assert list(tmp_path.iterdir()) == [notes]
