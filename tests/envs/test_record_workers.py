"""Recording in worker processes: the same demonstrations with any number of them, also when some die."""

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import toy_arena
from click.testing import Result
from program import Program
from toy_arena import STEPS_TO_SUCCESS, ToyArena
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.envs.kept_attempts import KeptAttempts
from vlatrack.envs.record import SEEDS_PER_RECORDING, STEPS_AFTER_SUCCESS, AttemptsHere, Demonstration, Trial, record
from vlatrack.envs.record_workers import AttemptsInWorkers
from vlatrack.envs.watched import EPISODES_PER_WORKER, Simulator
from vlatrack.errors import DataError, SimulatorError

ARENA = "toy_arena:ToyArena"
PUSH = Trial("push", seed=0, action_noise=0.1, longest=20)


def in_workers(workers: int = 1, timeout_s: float = 60, **options: object) -> AttemptsInWorkers:
    return AttemptsInWorkers(Simulator(ARENA, options, timeout_s), workers=workers)


def content_of(made: Iterator[Sequence[Demonstration]], attempts: int) -> list[tuple[bytes, ...]]:
    return [
        tuple(part.tobytes() for stretch in found for part in (stretch.actions, stretch.states, stretch.frames["top"]))
        for found in islice(made, attempts)
    ]


def workers_left() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "vlatrack.envs.worker" in child.cmdline()]


@pytest.fixture(scope="module")
def expected() -> list[tuple[bytes, ...]]:
    made = content_of(AttemptsHere(ToyArena()).of(PUSH), 8)
    assert [not found for found in made] == [number % 3 == 2 for number in range(8)]
    assert len(set(made)) == 7
    return made


@pytest.mark.parametrize("workers", [1, 3])
def test_attempts_do_not_depend_on_the_number_of_workers(workers: int, expected: list) -> None:
    with closing(in_workers(workers)) as attempts:
        assert content_of(attempts.of(PUSH), 8) == expected
    assert workers_left() == []


@pytest.mark.parametrize("trouble", ["crash", "raise", pytest.param("hang", marks=pytest.mark.slow)])
def test_an_attempt_that_breaks_its_worker_is_made_again(trouble: str, expected: list, tmp_path: Path) -> None:
    options = {"trouble": trouble, "seeds": "1 4", "times": 1, "notes": str(tmp_path)}
    with closing(in_workers(2, timeout_s=10 if trouble == "hang" else 60, **options)) as attempts:
        assert content_of(attempts.of(PUSH), 8) == expected
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
    with closing(in_workers(2, trouble="raise", seeds=1, pause_s=0.2)) as attempts:
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


@dataclass(frozen=True)
class Recording:
    """A recording of the command line, in a folder of its own."""

    folder: Path

    @property
    def demos(self) -> Path:
        return self.folder / "demos"

    @property
    def kept(self) -> Path:
        return self.folder / ".demos.attempts"

    def words(self, episodes: int, *others: str) -> list[str]:
        (self.folder / "notes").mkdir(exist_ok=True)
        options = ("--env-option", f"notes={self.folder / 'notes'}", "--storage", "png", "-o", str(self.demos))
        options += ("--max-steps", "20")
        return ["data", "record", f"push:{episodes}", "--env", ARENA, *options, *others]

    def begins(self) -> dict[str, int]:
        """How often each attempt was begun."""
        return {file.name: len(file.read_text().splitlines()) for file in (self.folder / "notes").iterdir()}

    def left(self) -> set[str]:
        return {file.name for file in self.folder.iterdir()} - {"notes"}


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path)


def of_command(words: list[str]) -> Result:
    return CliRunner().invoke(app, words, catch_exceptions=False)


def broken_off(recording: Recording) -> None:
    """Record until an attempt breaks every worker."""
    trouble = ("--env-option", "trouble=raise", "--env-option", "seeds=5")
    with pytest.raises(SimulatorError, match="attempt 5 at push broke 3 workers"):
        of_command(recording.words(6, *trouble))


@pytest.mark.parametrize("end", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_recording_that_was_ended_goes_on_with_the_same_command(
    recording: Recording, program: Program, eventually: Callable[..., None], end: signal.Signals
) -> None:
    slow = ("--env-option", "pause_s=0.03", "--workers", "2")
    process = program.start(*recording.words(12, *slow))
    eventually(lambda: len(list(recording.kept.glob("*/*.npz"))) > 4)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.send_signal(end)
    _, told = process.communicate()
    assert "Traceback" not in told
    assert process.returncode == (-end if end == signal.SIGKILL else 128 + end)
    eventually(lambda: not any(map(psutil.pid_exists, workers)))
    kept = [f"push-{int(file.stem)}" for file in recording.kept.glob("*/*.npz")]
    if end != signal.SIGKILL:
        assert recording.left() == {".demos.attempts"}
        assert f"{len(kept)} attempts are kept in {recording.kept}; the same command goes on from there" in told
    done = of_command(recording.words(12, *slow))
    assert done.exit_code == 0, done.output
    assert recording.left() == {"demos"}
    begins = recording.begins()
    assert {begins[name] for name in kept} == {1}
    record(AttemptsHere(ToyArena()), {"push": 12}, output=recording.folder / "at once", longest=20, storage="png")
    assert LeRobotDataset(recording.demos).fingerprint() == LeRobotDataset(recording.folder / "at once").fingerprint()


def cut(content: bytearray, random: np.random.Generator) -> None:
    del content[random.integers(len(content)) :]


def flip(content: bytearray, random: np.random.Generator) -> None:
    content[random.integers(len(content))] ^= 1 << int(random.integers(8))


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_kept_attempt_that_is_damaged_anywhere_is_made_again(
    recording: Recording, damage: Callable[[bytearray, np.random.Generator], None]
) -> None:
    broken_off(recording)
    notes, random = recording.folder / "notes again", np.random.default_rng(0)
    notes.mkdir()
    trial = Trial("push", seed=0, action_noise=0.2, longest=20)
    whole = content_of(AttemptsHere(ToyArena()).of(trial), 3)
    source = hashlib.sha256(Path(toy_arena.__file__).read_bytes()).hexdigest()
    identity = (ARENA, {"notes": str(recording.folder / "notes"), "trouble": "raise", "seeds": 5}, source)
    file = sorted(recording.kept.glob("*/*.npz"))[1]
    stored = file.read_bytes()
    arena = AttemptsHere(ToyArena(notes=str(notes)))
    with KeptAttempts(arena, recording.demos, overwrite=False, identity=identity) as kept:
        for _ in range(200):
            content = bytearray(stored)
            damage(content, random)
            file.write_bytes(content)
            assert content_of(kept.of(trial), 2) == whole[:2]
        assert content_of(kept.of(trial), 3) == whole
    assert {file.name: len(file.read_text().splitlines()) for file in notes.iterdir()} == {"push-1": 200}


def test_other_settings_begin_anew(recording: Recording) -> None:
    broken_off(recording)
    before = recording.begins()
    done = of_command(recording.words(3, "--seed", "1"))
    assert done.exit_code == 0, done.output
    begins = recording.begins()
    assert begins | before == begins, "none of the attempts before was made again"
    assert {f"push-{SEEDS_PER_RECORDING + number}" for number in range(4)} <= set(begins)
    assert recording.left() == {"demos"}


def test_a_simulator_whose_code_has_changed_begins_anew(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    code = Path(toy_arena.__file__).read_text()
    monkeypatch.syspath_prepend(recording.folder)
    trouble = ("--env", "edited_arena:ToyArena", "--env-option", "seeds=3", "--env-option", "times=3")
    words = recording.words(4, *trouble, "--env-option", "trouble=raise")
    file = recording.folder / "edited_arena.py"
    file.write_text(code)
    with pytest.raises(SimulatorError, match="attempt 3 at push broke 3 workers"):
        of_command(words)
    assert recording.begins()["push-0"] == 1
    file.write_text(code + "# edited\n")
    assert of_command(words).exit_code == 0
    assert recording.begins()["push-0"] == 2


def test_two_processes_do_not_record_the_same_dataset(recording: Recording) -> None:
    with (
        KeptAttempts(AttemptsHere(ToyArena()), recording.demos, overwrite=False, identity=()),
        pytest.raises(DataError, match="demos: another process records it; wait for that one, or choose"),
    ):
        of_command(recording.words(3))
    assert recording.left() == set()
