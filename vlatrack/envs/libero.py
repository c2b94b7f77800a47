"""LIBERO: its five suites for the Panda arm, with their stored initial states.

The packages of `vlatrack[libero]` are imported when the first episode starts, not with this module.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.formats.libero import ACTION_DIM, FPS, words_of_task
from vlatrack.envs.base import EnvironmentInfo, Observation, StepResult
from vlatrack.envs.libero_expert import Expert
from vlatrack.envs.libero_simulator import LiberoSimulator, Numbers, import_libero
from vlatrack.errors import DataError

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
CAMERAS = ("agentview", "robot0_eye_in_hand")

_PROBED = ("libero_spatial", "pick_up_the_black_bowl_on_the_ramekin_and_place_it_on_the_plate")
_SETTLED = (
    (-0.2114, 0.2022, 0.9344),
    (-0.2276, 0.1896, 0.9344),
    (-0.2221, 0.1968, 0.9344),
    (-0.2113, 0.1887, 0.9344),
    (-0.2116, 0.1898, 0.9344),
    (-0.2220, 0.2088, 0.9344),
    (-0.2097, 0.2136, 0.9344),
    (-0.2033, 0.2115, 0.9344),
    (-0.2214, 0.1989, 0.9344),
    (-0.2074, 0.2058, 0.9344),
)
"""Where the bowl stands after the waits in the first initial states of that task, in metres, with MuJoCo 3.3.0."""
_TOLERANCE = 0.01
"""Metres. Where the bowl stays on its ramekin, versions of MuJoCo differ by less than one mm; where it falls, by 50."""
_WAITS = 10
_WAIT = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


class Libero:
    """One of LIBERO's suites.

    An action is the change of the hand's position and orientation (axis-angle) and the gripper (-1 opens, 1 closes), 7
    numbers. The state is the hand's position in metres, its orientation as an axis-angle in radians and the positions
    of the two fingers in metres, 8 numbers. An episode ends with success only.

    Args:
        benchmark: one of `SUITES`.
        cameras: names of LIBERO's cameras. Without any, no OpenGL is needed.
        resolution: height and width of an image in pixels.
        images: ``raw`` as LIBERO gives them, upside down; ``rotated`` by 180 degrees, which most policies are trained
            with; ``upright``, of which the rotated ones are the mirror image.
        prompt: the instruction is the task's ``language``, or its ``name`` with the scene in front.
        rendering: ``original``, the same pixels as LIBERO's; ``fast``, without multisampling, shadows and reflections.
        arm_noise: standard deviation of the arm's joint angles at `reset`, in radians. LIBERO's own resets have none;
            its stored initial states vary as with 0.02, robosuite's default.
    """

    def __init__(
        self,
        *,
        benchmark: str,
        cameras: Sequence[str] = CAMERAS,
        resolution: int = 128,
        images: Literal["raw", "rotated", "upright"] = "raw",
        prompt: Literal["language", "name"] = "language",
        rendering: Literal["original", "fast"] = "original",
        arm_noise: float = 0.0,
    ) -> None:
        if benchmark not in SUITES:
            raise DataError(f"LIBERO has no suite {benchmark!r}; suites: {', '.join(SUITES)}")
        if not (isinstance(arm_noise, int | float) and 0 <= arm_noise < 1):
            raise DataError(f"arm_noise: {arm_noise!r}; give radians from 0 to below 1, such as 0.02")
        self.info = EnvironmentInfo(
            robot="panda",
            fps=round(FPS),
            cameras=dict.fromkeys(cameras, (resolution, resolution)),
            action_names=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
            state_names=("x", "y", "z", "rx", "ry", "rz", "finger1", "finger2"),
        )
        assert self.info.action_dim == ACTION_DIM, "as in LIBERO's files"
        self._benchmark, self._resolution = benchmark, resolution
        self._images, self._prompt, self._rendering, self._arm_noise = images, prompt, rendering, arm_noise
        self._simulator: LiberoSimulator | None = None

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Names of the suite's tasks, in the order of their numbers."""
        import_libero(renders=bool(self.info.cameras))
        from libero.libero.benchmark.libero_suite_task_map import libero_task_map

        return tuple(libero_task_map[self._benchmark])

    def reset(self, task: str, *, seed: int) -> Observation:
        """Start an episode with the layout that the seed draws.

        Raises:
            DataError: an unknown task or camera.
            MissingPackageError: LIBERO, or an off-screen OpenGL, is missing.
        """
        simulator = self._of_task(task)
        return self._begun(simulator, simulator.reset(seed))

    def reset_to(self, task: str, *, seed: int, initial_state: int) -> Observation:
        """Start an episode in a stored initial state.

        Args:
            seed: of the simulator in which the episodes of the task run one after another, as LIBERO's ``env.seed``.
            initial_state: its number, which is also that of the episode.

        Raises:
            DataError: an unknown task or camera, or there is no such state.
            MissingPackageError: LIBERO, or an off-screen OpenGL, is missing.
        """
        simulator = self._of_task(task)
        if initial_state >= len(simulator.states):
            raise DataError(
                f"{task}: initial state {initial_state}, but the last of those stored is "
                f"{len(simulator.states) - 1}; lower `episodes`"
            )
        return self._begun(simulator, simulator.reset_to(seed, initial_state))

    def reset_to_state(self, task: str, *, seed: int, number: int, state: NDArray[np.float64]) -> Observation:
        """Start an episode in a state of the simulator, as LIBERO's files have it.

        Args:
            seed: of the simulator, as LIBERO's ``env.seed``; with the number it determines where cabinets and stoves
                stand, which a state does not have.
            number: of the reset, from 0, after that.
            state: time, positions and velocities, as MuJoCo's.

        Raises:
            DataError: an unknown task or camera, or a state of another one.
            MissingPackageError: LIBERO, or an off-screen OpenGL, is missing.
        """
        simulator = self._of_task(task)
        return self._begun(simulator, simulator.reset_to_state(seed, number, state))

    def step(self, action: NDArray[np.floating]) -> StepResult:
        """Execute one action; success is LIBERO's own criterion, and the reward is 1 then."""
        result = self.step_unseen(action)
        return replace(result, observation=replace(result.observation, images=self._seen()))

    def step_unseen(self, action: NDArray[np.floating]) -> StepResult:
        """As `step`, without images: 11 ms instead of 40 to 250."""
        self._numbers, reward, success = self._running.step(action)
        return StepResult(self._observation({}), success, False, reward)

    def expert_action(self) -> NDArray[np.float32]:
        """The action of a scripted expert, which knows where everything is, in [-1, 1].

        Raises:
            DataError: this task has none.
        """
        return self._expert.action(self._numbers)

    def check(self) -> list[str]:
        """Whether objects settle where they do in the version of MuJoCo that this was made for; takes seconds.

        LIBERO's initial states let them fall a little. In some versions one slips that stands in others, and with it
        the success rate of its task.
        """
        import_libero(renders=bool(self.info.cameras))  # the choice of OpenGL is this one's, not that of the next
        benchmark, task = _PROBED
        probe = Libero(benchmark=benchmark, cameras=())
        try:
            furthest = max(probe._distance(task, state, place) for state, place in enumerate(_SETTLED))
        finally:
            probe.close()
        if furthest <= _TOLERANCE:
            return []
        import mujoco

        return [
            f"mujoco {mujoco.__version__} moves objects: after {_WAITS} waits a bowl of {benchmark} is "
            f"{1000 * furthest:.0f} mm from where mujoco 3.3.0 lets it stand"
        ]

    def close(self) -> None:
        """Free the simulator."""
        if self._simulator is not None:
            self._simulator.close()
        self._simulator = None

    @property
    def _running(self) -> LiberoSimulator:
        assert self._simulator is not None, "an episode begins with a reset"
        return self._simulator

    def _of_task(self, task: str) -> LiberoSimulator:
        if self._simulator is not None and self._simulator.task == task:
            return self._simulator
        if task not in self.tasks:
            raise DataError(f"{self._benchmark} has no task {task!r}; tasks: {', '.join(self.tasks)}")
        self.close()
        self._simulator = LiberoSimulator(
            self._benchmark,
            task,
            cameras=tuple(self.info.cameras),
            resolution=self._resolution,
            fast=self._rendering == "fast",
            arm_noise=self._arm_noise,
        )
        return self._simulator

    def _begun(self, simulator: LiberoSimulator, numbers: Numbers) -> Observation:
        self._numbers, self._expert = numbers, Expert(simulator.task, simulator.problem)
        return self._observation(self._seen())

    def _observation(self, images: dict[str, NDArray[np.uint8]]) -> Observation:
        seen = self._numbers
        parts = [seen["robot0_eef_pos"], axis_angle(seen["robot0_eef_quat"]), seen["robot0_gripper_qpos"]]
        instruction = words_of_task(self._running.task, scene=self._prompt == "name")
        return Observation(images, np.concatenate(parts).astype(np.float32), instruction)

    def _seen(self) -> dict[str, NDArray[np.uint8]]:
        images = self._running.images()
        if self._images == "upright":
            return images
        turned = (slice(None, None, -1),) if self._images == "raw" else (slice(None), slice(None, None, -1))
        return {camera: np.ascontiguousarray(image[turned]) for camera, image in images.items()}

    def _distance(self, task: str, state: int, place: Sequence[float]) -> float:
        """How far from a place the bowl settles."""
        self.reset_to(task, seed=0, initial_state=state)
        for _ in range(_WAITS):
            self.step_unseen(_WAIT)
        return float(np.linalg.norm(self._numbers["akita_black_bowl_1_pos"] - place))


def axis_angle(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axis times angle in radians, [3], of a unit quaternion (x, y, z, w), [4].

    The angle is 0 to 2π, so a quaternion and its negative, the same orientation, have different ones: that is how
    LIBERO's demonstrations and RynnVLA-002's evaluation have it.
    """
    w = min(1.0, max(-1.0, float(quaternion[3])))
    sine = np.sqrt(1 - w * w)
    if np.isclose(sine, 0):
        return np.zeros(3)
    axis: NDArray[np.float64] = quaternion[:3] / sine
    return axis * 2 * np.arccos(w)
