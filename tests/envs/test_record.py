"""How demonstrations are recorded: with a small simulator of our own, and with Meta-World where it is installed."""

import os
import subprocess
import sys
from contextlib import closing
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from toy_arena import ToyArena

from vlatrack.envs.base import EnvironmentInfo, Observation, StepResult
from vlatrack.envs.metaworld import INSTRUCTIONS, MetaWorld
from vlatrack.envs.opengl import OSMESA_WHEEL, choose_opengl, wheel_libraries
from vlatrack.envs.record import (
    SEEDS_PER_RECORDING,
    STEPS_AFTER_SUCCESS,
    AttemptsHere,
    Demonstration,
    TaskProgress,
    Trial,
    attempt,
    demonstrate,
    record,
)
from vlatrack.errors import DataError, MissingPackageError

needs_metaworld = pytest.mark.skipif(find_spec("metaworld") is None, reason="needs pip install 'vlatrack[metaworld]'")
without_mujoco = pytest.mark.skipif(find_spec("mujoco") is not None, reason="tells of a missing package")

GOAL = 1.0
STRIDE = 0.1


class PointOnALine:
    """A point that is to reach 1.0; in every `stuck_every`-th attempt it cannot move."""

    tasks = ("reach",)
    info = EnvironmentInfo(robot="point", fps=10, cameras={"side": (4, 4)}, action_names=("dx",), state_names=("x",))

    def __init__(self, *, stuck_every: int = 0, over_after: int = 1000) -> None:
        self._stuck_every, self._over_after = stuck_every, over_after
        self.executed: list[float] = []

    def reset(self, task: str, *, seed: int) -> Observation:
        assert task == "reach"
        attempt = seed % SEEDS_PER_RECORDING + 1
        self._stuck = bool(self._stuck_every) and attempt % self._stuck_every == 0
        self._position, self._steps = 0.01 * attempt, 0
        return self._observation()

    def step(self, action: np.ndarray) -> StepResult:
        assert self._steps < self._over_after, "the episode is over"
        self.executed.append(float(action[0]))
        self._position += 0.0 if self._stuck else STRIDE * float(action[0])
        self._steps += 1
        achieved = abs(self._position - GOAL) < 0.03
        return StepResult(self._observation(), success=achieved, done=self._steps == self._over_after)

    def expert_action(self) -> np.ndarray:
        return np.array([np.clip((GOAL - self._position) / STRIDE, -1, 1)], dtype=np.float32)

    def close(self) -> None:
        """Nothing is held."""

    def _observation(self) -> Observation:
        image = np.zeros((4, 4, 3), dtype=np.uint8)
        image[..., 0] = int(100 * np.clip(self._position, 0, 2))
        return Observation({"side": image}, np.array([self._position], dtype=np.float32), "reach the end")


def record_points(
    environment: PointOnALine,
    *,
    episodes: int = 3,
    seed: int = 0,
    action_noise: float = 0.2,
    noise_steps: int = 1,
    clean_steps: int = 0,
) -> tuple[list[Demonstration], TaskProgress]:
    kept: list[Demonstration] = []
    trial = Trial("reach", seed, action_noise, longest=60, noise_steps=noise_steps, clean_steps=clean_steps)
    told = demonstrate(AttemptsHere(environment), trial, kept.append, episodes=episodes)
    return kept, told


def test_the_label_is_the_experts_clean_action_and_not_what_was_carried_out() -> None:
    environment = PointOnALine()
    recorded, _ = record_points(environment)
    labels = np.concatenate([demonstration.actions for demonstration in recorded])[:, 0]
    states = np.concatenate([demonstration.states for demonstration in recorded])[:, 0]
    assert labels == pytest.approx(np.clip((GOAL - states) / STRIDE, -1, 1), abs=1e-5)
    deviation = np.array(environment.executed) - labels
    assert 0.05 < deviation.std() < 0.25
    assert np.abs(environment.executed).max() <= 1


def test_a_noise_stays_for_as_many_steps_as_is_said() -> None:
    environment = PointOnALine()
    recorded, _ = record_points(environment, episodes=1, noise_steps=3)
    labels = recorded[0].actions[:, 0]
    not_clipped = (np.abs(environment.executed) < 1) & (np.abs(labels) < 1)
    pushes = np.where(not_clipped, environment.executed - labels, np.nan)
    drawn = [set(push[~np.isnan(push)].round(5)) for push in np.split(pushes, range(3, len(pushes), 3))]
    assert max(map(len, drawn)) == 1
    assert len(set.union(*drawn)) > 1


def test_only_the_named_numbers_of_an_action_get_noise(tmp_path: Path) -> None:
    executed: list[np.ndarray] = []

    class NotedArena(ToyArena):
        def step(self, action: np.ndarray) -> StepResult:
            executed.append(action)
            return super().step(action)

    trial = Trial("push", seed=0, action_noise=0.2, longest=20, noise_on=("dy",))
    assert attempt(NotedArena(), trial, 0)
    noise = np.stack(executed) - NotedArena().expert_action()
    assert (noise[:, 0] == 0).all()
    assert (noise[:, 1] != 0).all()
    with pytest.raises(DataError, match="point: no 'dz' in an action; it has dx, dy"):
        record(AttemptsHere(ToyArena()), {"push": 1}, output=tmp_path / "demos", noise_on=["dz"])
    assert list(tmp_path.iterdir()) == []


def test_between_bursts_of_noise_what_is_recorded_was_executed() -> None:
    environment = PointOnALine()
    recorded, told = record_points(environment, noise_steps=3, clean_steps=4)
    assert (told.episodes, told.stretches) == (3, len(recorded))
    assert len(recorded) > 3
    for stretch in recorded:
        moved = np.diff(stretch.states[:, 0])
        assert moved == pytest.approx(STRIDE * stretch.actions[:-1, 0], abs=1e-6)
    of_the_first = [
        len(stretch.actions) for stretch in record_points(PointOnALine(), episodes=1, noise_steps=3, clean_steps=4)[0]
    ]
    assert all(2 <= length <= 6 for length in of_the_first[:-1])
    assert told.frames < len(environment.executed)


def test_a_burst_of_noise_carries_the_robot_off() -> None:
    def carried_off(seed: int) -> float:
        recorded, _ = record_points(
            PointOnALine(), episodes=1, seed=seed, action_noise=0.5, noise_steps=3, clean_steps=4
        )
        before, after = recorded[:2]
        without_noise = before.states[-1, 0] + STRIDE * (before.actions[-1, 0] + 3)
        return abs(after.states[0, 0] - min(without_noise, GOAL))

    assert max(map(carried_off, range(4))) > 0.05


def test_images_and_states_are_those_before_the_action() -> None:
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


def test_an_episode_that_the_environment_ends_is_over() -> None:
    recorded, told = record_points(PointOnALine(over_after=11), episodes=2, action_noise=0.0)
    assert [len(demonstration.actions) for demonstration in recorded] == [11, 11]  # achieved, with fewer steps after it
    assert told.attempts == 2
    with pytest.raises(DataError, match="0 of 1 episodes after 8 attempts"):
        record_points(PointOnALine(over_after=5), episodes=1)


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
    assert INSTRUCTIONS["window-open-v3"] == "open the window"


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ({"window-opn": 1}, "no task 'window-opn'; did you mean 'window-open-v3'"),
        ({"12345": 1}, "no task '12345'; tasks: assembly-v3, "),
        ({"window-open-v3": 0}, "window-open-v3: 0 episodes; record at least one"),
        ({"window-open-v3": 40_000}, "window-open-v3: 40000 episodes; record at least one, and at most 33331"),
    ],
)
def test_an_unknown_task_is_told_before_anything_is_started(tasks: dict[str, int], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        record(AttemptsHere(MetaWorld()), tasks, output=tmp_path / "demos")
    assert list(tmp_path.iterdir()) == []


@without_mujoco
def test_a_missing_simulator_is_told_with_the_pip_line(tmp_path: Path) -> None:
    for environment in (MetaWorld(), MetaWorld(cameras=())):
        with pytest.raises(MissingPackageError, match=r"pip install 'vlatrack\[metaworld\]'"):
            record(AttemptsHere(environment), {"window-open-v3": 1}, output=tmp_path / "demos")
        environment.close()
    assert list(tmp_path.iterdir()) == []


@needs_metaworld
def test_a_users_choice_of_opengl_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(MissingPackageError, match="tried MUJOCO_GL=disable; install one: apt-get install libegl1"):
        choose_opengl(extra="metaworld")
    assert os.environ["MUJOCO_GL"] == "disable"


@needs_metaworld
@pytest.mark.skipif(not wheel_libraries(), reason=f"needs pip install --no-deps {OSMESA_WHEEL}")
@pytest.mark.skipif(find_library("OSMesa") is not None, reason="the system has an OSMesa")
def test_where_the_system_has_no_osmesa_that_of_a_wheel_draws() -> None:
    """In a process of its own, in which MuJoCo and PyOpenGL have not been imported."""
    program = """
from vlatrack.envs.opengl import choose_opengl
choose_opengl(extra="metaworld")
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='.3' rgba='1 0 0 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    red, green, _ = renderer.render().mean(axis=(0, 1))
assert red > 50 > 10 > green, (red, green)
assert "lavavu_osmesa.libs/libOSMesa" in open("/proc/self/maps").read()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"MUJOCO_GL": "osmesa"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@needs_metaworld
def test_the_table_of_instructions_covers_metaworlds_tasks() -> None:
    from metaworld import ALL_V3_ENVIRONMENTS

    assert sorted(INSTRUCTIONS) == sorted(ALL_V3_ENVIRONMENTS)


@needs_metaworld
def test_metaworld_without_images_is_the_same_bit_for_bit_for_a_seed() -> None:
    def run(seed: int) -> list[Demonstration]:
        kept: list[Demonstration] = []
        with closing(MetaWorld(cameras=())) as environment:
            trial = Trial("coffee-button-v3", seed, action_noise=0.2, longest=500)
            demonstrate(AttemptsHere(environment), trial, kept.append, episodes=2)
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
    with (
        closing(MetaWorld(cameras=("front",), resolution=64)) as environment,
        pytest.raises(DataError, match="no camera 'front'; cameras: topview, corner"),
    ):
        environment.reset("reach-v3", seed=0)


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
        timeout=250,
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
