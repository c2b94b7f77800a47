"""Stored demonstrations, repeated in their simulator: what is kept, what is dropped and why, and after an end."""

import json
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from program import Program
from replay_arena import BREAKS, ReplayArena
from typer.testing import CliRunner

from vlatrack.cli.data_regenerate import suite_of
from vlatrack.cli.main import app
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.envs.kept_attempts import KeptAttempts
from vlatrack.envs.record import Attempts, AttemptsHere
from vlatrack.envs.record_workers import AttemptsInWorkers
from vlatrack.envs.regenerate import WAITS, Plan, Regeneration, make_plan, regenerate
from vlatrack.envs.watched import Simulator
from vlatrack.errors import DataError, SimulatorError

GOOD, SHORT = [0.3] * 4, [0.3] * 3
STATE = (0.0, 0.0)


def write(folder: Path, task: str, demonstrations: Mapping[int, tuple[list[float], tuple[float, ...] | None]]) -> Path:
    """A file in LIBERO's layout: number → how far each action moves, and the state at the start."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{task}_demo.hdf5"
    with h5py.File(path, "w") as file:
        for number, (moves, state) in demonstrations.items():
            actions = np.zeros((len(moves), 7))
            actions[:, 0], actions[:, 6] = moves, -1
            file[f"data/demo_{number}/actions"] = actions
            if state is not None:
                file[f"data/demo_{number}/states"] = np.tile(state, (len(moves), 1))
    return path


def regenerated(plan: Plan, folder: Path, *, workers: int = 0, progress: Callable | None = None) -> Regeneration:
    """In so many worker processes, or in this one."""
    (folder / "notes").mkdir(exist_ok=True)
    options = {"notes": str(folder / "notes")}
    simulator = Simulator("replay_arena:ReplayArena", options, timeout_s=60)
    output = folder / "demos"
    with ExitStack() as stack:
        attempts: Attempts = AttemptsHere(ReplayArena(**options))
        if workers:
            attempts = stack.enter_context(closing(AttemptsInWorkers(simulator, workers=workers)))
        kept = stack.enter_context(KeptAttempts(attempts, output, overwrite=False, identity=(options,)))
        report = folder / "demos.regeneration.json"
        return regenerate(kept, plan, output=output, report=report, settings={"why": "a test"}, progress=progress)


def begins(folder: Path) -> dict[str, int]:
    return {file.name: len(file.read_text().splitlines()) for file in (folder / "notes").iterdir()}


def test_what_succeeds_is_recorded_after_the_waits_and_without_no_ops(tmp_path: Path) -> None:
    write(tmp_path / "files", "push", {0: ([0.3, 0, 0, 0.3, 0.3, 0.3], STATE)})
    result = regenerated(make_plan(tmp_path / "files"), tmp_path)
    dataset = LeRobotDataset(tmp_path / "demos")
    (episode,) = dataset.episodes()
    assert (episode.task, episode.length) == ("push it", 4)
    np.testing.assert_allclose(episode.actions[:, 0], GOOD)
    np.testing.assert_allclose(episode.states[:, 0], [0, 0.3, 0.6, 0.9], rtol=1e-6)
    frames = dataset.frames(episode, "observation.images.top")
    assert frames[:, 0, 0, 0].tolist() == [WAITS, WAITS + 1, WAITS + 2, WAITS + 3], "a no-op is not executed either"
    assert [(kept.group, kept.steps, kept.no_ops) for kept in result.kept] == [("data/demo_0", 4, 2)]


def test_episodes_are_ordered_as_the_reference_sorts_them_and_resets_as_it_counts_them(tmp_path: Path) -> None:
    write(tmp_path / "files", "push", dict.fromkeys((*range(3), 10), (GOOD, STATE)))
    regenerated(make_plan(tmp_path / "files"), tmp_path)
    numbers = [int(episode.states[0, 2]) for episode in LeRobotDataset(tmp_path / "demos").episodes()]
    assert numbers == [0, 1, 3, 2], "demo_10, the fourth by its number, comes before demo_2"


def test_what_is_dropped_is_listed_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    write(folder, "push", {0: (GOOD, STATE), 1: (SHORT, STATE), 2: (GOOD, None), 3: (GOOD, (0.0, BREAKS))})
    write(folder, "pull", {0: ([0.0] * 5, STATE), 1: (GOOD, (0.5, 0.0))})
    (folder / "torn_demo.hdf5").write_bytes((folder / "push_demo.hdf5").read_bytes()[:999])
    result = regenerated(make_plan(folder), tmp_path, workers=1)
    assert [(kept.file, kept.group) for kept in result.kept] == [
        ("pull_demo.hdf5", "data/demo_1"),
        ("push_demo.hdf5", "data/demo_0"),
    ]
    stored = json.loads((tmp_path / "demos.regeneration.json").read_text())
    told = {(dropped["file"], dropped["group"]): dropped["reason"] for dropped in stored["dropped"]}
    assert told.pop(("pull_demo.hdf5", "data/demo_0")) == "the robot never moves"
    assert told.pop(("push_demo.hdf5", "data/demo_1")) == "the task is not achieved at its end"
    assert "no data/demo_2/states in it" in told.pop(("push_demo.hdf5", "data/demo_2"))
    assert "broke 3 workers (the worker ended: signal SIGSEGV)" in told.pop(("push_demo.hdf5", "data/demo_3"))
    assert "torn_demo.hdf5: damaged HDF5 file" in told.pop(("torn_demo.hdf5", ""))
    assert told == {}
    assert (stored["demonstrations"], stored["settings"]) == (7, {"why": "a test"})
    assert LeRobotDataset(tmp_path / "demos").episodes()[1].task == "push it"


def test_a_regeneration_that_was_ended_makes_only_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "files", "push", {number: (GOOD if number % 3 else SHORT, STATE) for number in range(8)})
    plan = make_plan(tmp_path / "files")

    def end(_: object, so_far: Regeneration) -> None:
        if len(so_far.kept) + len(so_far.dropped) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        regenerated(plan, tmp_path, progress=end)
    assert {file.name for file in tmp_path.iterdir()} == {"files", "notes", ".demos.attempts"}
    result = regenerated(plan, tmp_path)
    assert {begins(tmp_path)[f"push-{number}"] for number in range(5)} == {1}
    assert (len(result.kept), len(result.dropped)) == (5, 3)
    (tmp_path / "at once").mkdir()
    regenerated(plan, tmp_path / "at once", workers=2)
    one, other = (LeRobotDataset(folder / "demos").fingerprint() for folder in (tmp_path, tmp_path / "at once"))
    assert one == other


def test_where_nothing_succeeds_there_is_a_report_and_no_dataset(tmp_path: Path) -> None:
    write(tmp_path / "files", "push", {0: (SHORT, STATE)})
    with pytest.raises(
        DataError, match=r"no demonstration succeeded in the simulator; .*demos.regeneration.json says why"
    ):
        regenerated(make_plan(tmp_path / "files"), tmp_path)
    assert (tmp_path / "demos.regeneration.json").is_file()
    assert not (tmp_path / "demos").exists()


def test_a_simulator_that_breaks_from_the_start_and_states_of_another_one_are_one_line(tmp_path: Path) -> None:
    write(tmp_path / "files", "push", {0: (GOOD, (0.0, BREAKS)), 1: (GOOD, STATE)})
    with pytest.raises(SimulatorError, match="attempt 0 at push broke 3 workers"):
        regenerated(make_plan(tmp_path / "files"), tmp_path, workers=1)
    write(tmp_path / "files", "push", {0: (GOOD, (0.0, 0.0, 0.0))})
    with pytest.raises(
        DataError, match=r"push_demo.hdf5: data/demo_0: push: a state of 3 numbers, but this simulator's"
    ):
        regenerated(make_plan(tmp_path / "files"), tmp_path)


def test_files_without_what_is_needed_are_one_line(tmp_path: Path) -> None:
    write(tmp_path / "files", "push", {0: (GOOD, None)})
    with pytest.raises(DataError, match=r"files: no demonstration can be repeated; the first: .*no data/demo_0/states"):
        make_plan(tmp_path / "files")
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        make_plan(tmp_path / "nowhere")


def test_the_suite_is_found_by_the_names_of_its_files(tmp_path: Path) -> None:
    def suite(*tasks: str) -> str:
        folder = tmp_path / "-".join(tasks)[:80]
        for task in tasks:
            write(folder, task, {0: (GOOD, STATE)})
        return suite_of(make_plan(folder).tasks, folder)

    assert suite("turn_on_the_stove", "put_the_bowl_on_the_plate") == "libero_goal"
    with pytest.raises(DataError, match="files of several suites"):
        suite("turn_on_the_stove", "pick_up_the_milk_and_place_it_in_the_basket")
    with pytest.raises(DataError, match=r"no task 'turn_on_the_stov'; did you mean turn_on_the_stove_demo\.hdf5"):
        suite("turn_on_the_stov")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("libero") is None, reason="needs pip install 'vlatrack[libero]'")
def test_libero_repeats_its_demonstrations_to_the_bit_also_after_a_kill(
    tmp_path: Path, program: Program, eventually: Callable[..., None]
) -> None:
    from libero_file import write_libero

    files = tmp_path / "files"
    files.mkdir()
    path = write_libero(files, "libero_goal", "put_the_bowl_on_the_plate", demonstrations=2, lengths=(0, 30))
    words = ["data", "regenerate", "libero", str(files), "-o", str(tmp_path / "demos"), "--resolution", "32"]
    words += ["--rendering", "fast"]
    process = program.start(*words)
    eventually(lambda: list((tmp_path / ".demos.attempts").glob("*/000000.npz")), timeout_s=300)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = CliRunner().invoke(app, [*words, "--force"], catch_exceptions=False)  # it has been looked at before
    assert done.exit_code == 0, done.output
    assert "1 of 2 demonstrations" in done.output
    assert "dropped 1: the task is not achieved at its end" in done.output
    assert "data.recorded: {rotation: 180, prompt: language, gripper: raw, waits: 10}" in done.output
    dataset = LeRobotDataset(tmp_path / "demos")
    (episode,) = dataset.episodes()
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        states = np.concatenate([demo["obs/ee_states"][:], demo["obs/gripper_states"][:]], axis=1)
        np.testing.assert_array_equal(episode.states[:3], states[:3].astype("f4"))  # until the no-op
        np.testing.assert_allclose(episode.states[3:], states[4:], atol=0.03)
        np.testing.assert_array_equal(episode.actions, np.delete(demo["actions"][:], 3, axis=0).astype("f4"))
    frames = dataset.frames(episode, "observation.images.agentview")
    assert frames.shape == (episode.length, 32, 32, 3)
    assert len(np.unique(frames)) > 50
