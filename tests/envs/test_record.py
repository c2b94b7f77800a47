"""How demonstrations are recorded: with a small simulator of our own, and with Meta-World where it is installed."""

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from vlatrack.envs.metaworld_tasks import INSTRUCTIONS, instruction_for
from vlatrack.envs.opengl import choose_opengl
from vlatrack.envs.record import STEPS_AFTER_SUCCESS, Demonstration, TaskRecord, demonstrate, record
from vlatrack.errors import DataError, MissingPackageError

needs_metaworld = pytest.mark.skipif(find_spec("metaworld") is None, reason="needs pip install 'vlatrack[metaworld]'")
without_mujoco = pytest.mark.skipif(find_spec("mujoco") is not None, reason="tells of a missing package")

GOAL = 1.0
STRIDE = 0.1


class PointOnALine:
    """A point that is to reach 1.0; every `stuck_every`-th episode it cannot move."""

    def __init__(self, *, stuck_every: int = 0) -> None:
        self._stuck_every = stuck_every
        self._episode = 0
        self._position = 0.0
        self.executed: list[float] = []

    def reset(self) -> None:
        self._episode += 1
        self._position = 0.01 * self._episode

    def state(self) -> np.ndarray:
        return np.array([self._position], dtype=np.float32)

    def pictures(self) -> Mapping[str, np.ndarray]:
        picture = np.zeros((4, 4, 3), dtype=np.uint8)
        picture[..., 0] = int(100 * np.clip(self._position, 0, 2))
        return {"side": picture}

    def expert_action(self) -> np.ndarray:
        return np.array([np.clip((GOAL - self._position) / STRIDE, -1, 1)], dtype=np.float32)

    def step(self, action: np.ndarray) -> bool:
        self.executed.append(float(action[0]))
        stuck = self._stuck_every and self._episode % self._stuck_every == 0
        self._position += 0.0 if stuck else STRIDE * float(action[0])
        return abs(self._position - GOAL) < 0.03


def record_points(
    scene: PointOnALine, *, episodes: int = 3, seed: int = 0, action_noise: float = 0.2
) -> tuple[list[Demonstration], TaskRecord]:
    kept: list[Demonstration] = []
    told = demonstrate(
        scene, kept.append, task="reach", episodes=episodes, seed=seed, action_noise=action_noise, longest=60
    )
    return kept, told


def test_the_label_is_the_experts_clean_action_and_not_what_was_carried_out() -> None:
    scene = PointOnALine()
    recorded, _ = record_points(scene)
    labels = np.concatenate([demonstration.actions for demonstration in recorded])[:, 0]
    states = np.concatenate([demonstration.states for demonstration in recorded])[:, 0]
    assert labels == pytest.approx(np.clip((GOAL - states) / STRIDE, -1, 1), abs=1e-5)
    deviation = np.array(scene.executed) - labels
    assert 0.05 < deviation.std() < 0.25
    assert np.abs(scene.executed).max() <= 1


def test_pictures_and_states_are_those_before_the_action() -> None:
    recorded, _ = record_points(PointOnALine(), episodes=1, action_noise=0.0)
    only = recorded[0]
    assert only.states[0, 0] == pytest.approx(0.01)
    assert only.frames["side"][0, 0, 0, 0] == 1
    assert only.frames["side"][5, 0, 0, 0] == int(100 * only.states[5, 0])
    assert only.frames["side"].shape == (len(only.actions), 4, 4, 3)


def test_an_episode_ends_a_few_steps_after_its_success() -> None:
    recorded, _ = record_points(PointOnALine(), episodes=1, action_noise=0.0)
    achieved = np.flatnonzero(np.abs(recorded[0].states[:, 0] - GOAL) < 0.03)[0]  # the state after the success
    assert len(recorded[0].actions) == achieved + STEPS_AFTER_SUCCESS


def test_only_successful_episodes_are_kept_and_the_rate_is_told() -> None:
    recorded, told = record_points(PointOnALine(stuck_every=3), episodes=4)
    assert len(recorded) == 4
    assert (told.episodes, told.attempts) == (4, 5)
    assert told.success_rate == pytest.approx(0.8)
    assert told.frames == sum(len(demonstration.actions) for demonstration in recorded)


def test_the_same_seed_gives_the_same_demonstrations_and_another_seed_others() -> None:
    first, again, other = (record_points(PointOnALine(), seed=seed)[0] for seed in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        assert one.states.tobytes() == two.states.tobytes()
        assert one.actions.tobytes() == two.actions.tobytes()
    assert first[0].states.tobytes() != other[0].states.tobytes()


def test_a_task_that_never_succeeds_ends_with_a_clear_error() -> None:
    with pytest.raises(DataError, match="reach: 0 of 2 episodes after 11 attempts; lower the action noise"):
        record_points(PointOnALine(stuck_every=1), episodes=2)


def test_every_task_has_an_instruction_of_its_own() -> None:
    assert len(INSTRUCTIONS) == 50
    assert len(set(INSTRUCTIONS.values())) == 50
    assert instruction_for("window-open-v3") == "open the window"


def test_an_unknown_task_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no task 'window-opn'; did you mean 'window-open-v3'"):
        record({"window-opn": 1}, output=tmp_path / "demos")
    with pytest.raises(DataError, match="no task '12345'; tasks: assembly-v3, "):
        record({"12345": 1}, output=tmp_path / "demos")
    with pytest.raises(DataError, match="window-open-v3: 0 episodes; record at least one"):
        record({"window-open-v3": 0}, output=tmp_path / "demos")
    assert list(tmp_path.iterdir()) == []


@without_mujoco
def test_a_missing_simulator_is_told_with_the_pip_line(tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match=r"pip install 'vlatrack\[metaworld\]'"):
        record({"window-open-v3": 1}, output=tmp_path / "demos")
    with pytest.raises(MissingPackageError, match=r"pip install 'vlatrack\[metaworld\]'"):
        import vlatrack.envs.metaworld  # noqa: F401
    assert list(tmp_path.iterdir()) == []


@needs_metaworld
def test_a_users_choice_of_opengl_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(MissingPackageError, match="tried MUJOCO_GL=disable; install one: apt-get install libegl1"):
        choose_opengl()
    assert os.environ["MUJOCO_GL"] == "disable"


@needs_metaworld
def test_the_table_of_instructions_covers_metaworlds_tasks() -> None:
    from metaworld import ALL_V3_ENVIRONMENTS

    assert sorted(INSTRUCTIONS) == sorted(ALL_V3_ENVIRONMENTS)


@needs_metaworld
def test_metaworld_without_pictures_is_the_same_bit_for_bit_for_a_seed() -> None:
    from vlatrack.envs.metaworld import MetaWorldScene

    def run(seed: int) -> list[Demonstration]:
        scene = MetaWorldScene("coffee-button-v3", cameras=(), resolution=32, seed=seed)
        kept: list[Demonstration] = []
        demonstrate(scene, kept.append, task="coffee-button-v3", episodes=2, seed=seed, action_noise=0.2)
        scene.close()
        return kept

    first, again, other = run(3), run(3), run(4)
    for one, two in zip(first, again, strict=True):
        assert one.actions.tobytes() == two.actions.tobytes()
        assert one.states.tobytes() == two.states.tobytes()
        assert one.states.shape[1] == 4
        assert np.abs(one.actions).max() <= 1
    assert first[0].states.tobytes() != first[1].states.tobytes()
    assert first[0].states.tobytes() != other[0].states.tobytes()


@needs_metaworld
def test_an_unknown_camera_is_told_which_there_are() -> None:
    from vlatrack.envs.metaworld import MetaWorldScene

    with pytest.raises(DataError, match="no camera 'front'; cameras: topview, corner"):
        MetaWorldScene("reach-v3", cameras=("front",), resolution=64, seed=0)


@needs_metaworld
def test_a_dataset_is_recorded_by_the_command_line(tmp_path: Path) -> None:
    """In a process of its own, as MuJoCo's choice of OpenGL is made once in a process."""
    program = "from vlatrack.cli.data import app; app()"
    words = ["handle-press-v3:1", "coffee-button-v3:1", "--resolution", "64", "--camera", "corner4", "-o", "demos"]
    result = subprocess.run(
        [sys.executable, "-c", program, "record", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "no off-screen OpenGL" in result.stderr:
        pytest.skip("needs an off-screen OpenGL: libegl1 or libosmesa6")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "wrote demos: 2 episodes" in result.stdout.splitlines()[-1]

    from vlatrack.data.formats.lerobot.dataset import LeRobotDataset

    dataset = LeRobotDataset(tmp_path / "demos")
    assert [episode.task for episode in dataset.episodes()] == [
        "press the handle down",
        "press the button of the coffee machine",
    ]
    view = dataset.frames(dataset.episodes()[1], "observation.images.corner4").astype(int)
    assert view.shape[1:] == (64, 64, 3)
    red, blue = view[..., 0], view[..., 2]
    assert (red - blue)[:, 40:].mean() > 15  # the wooden table is below: the view is upright
    assert abs((red - blue)[:, :8, 40:].mean()) < 10  # the grey wall is above
    assert np.abs(view[0] - view[-1]).max() > 60  # something moved
