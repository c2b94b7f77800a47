"""Meta-World v3: its 50 tasks for the Sawyer arm, its cameras, and its scripted experts.

The packages of `vlatrack[metaworld]` are imported when the first episode starts, not with this module.
"""

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlatrack.envs.base import EnvironmentInfo, Observation, StepResult
from vlatrack.envs.opengl import choose_opengl
from vlatrack.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    import metaworld
    import mujoco

SEEDS_PER_DRAW = 100_000
"""Seeds with the same quotient by it share the draws of MT1, which takes a second to draw 50 layouts."""
_LAYOUTS_PER_DRAW = 50
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")

INSTRUCTIONS = {
    "assembly-v3": "pick up the ring and put it on the peg",
    "basketball-v3": "put the basketball into the basket",
    "bin-picking-v3": "move the block from one bin to the other",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "press the button from above, behind the wall",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "reach around the wall and press the button",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "lift the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "close the faucet",
    "faucet-open-v3": "open the faucet",
    "hammer-v3": "hammer the nail into the wall",
    "hand-insert-v3": "reach into the hole with the block",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "insert the peg into the hole in the side",
    "peg-unplug-side-v3": "pull the peg out of the hole in the side",
    "pick-out-of-hole-v3": "take the block out of the hole",
    "pick-place-v3": "pick up the block and bring it to the goal",
    "pick-place-wall-v3": "pick up the block and bring it over the wall to the goal",
    "plate-slide-back-side-v3": "slide the plate out of the goal to the side",
    "plate-slide-back-v3": "slide the plate back out of the goal",
    "plate-slide-side-v3": "slide the plate into the goal at the side",
    "plate-slide-v3": "slide the plate into the goal",
    "push-back-v3": "push the block back to the goal",
    "push-v3": "push the block to the goal",
    "push-wall-v3": "push the block around the wall to the goal",
    "reach-v3": "reach the goal",
    "reach-wall-v3": "reach over the wall to the goal",
    "shelf-place-v3": "put the block on the shelf",
    "soccer-v3": "push the ball into the soccer goal",
    "stick-pull-v3": "pull the container with the stick",
    "stick-push-v3": "push the container with the stick",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}


class MetaWorld:
    """All tasks of Meta-World as an `ExpertEnvironment`.

    An action is the displacement of the hand's target (1 is 1 cm) and the gripper, 4 numbers. The state is the
    position of the hand in metres and the opening of the gripper (0 to 1), 4 numbers; the positions of the objects are
    only in the images. An episode is over after 500 steps.

    Args:
        cameras: names of Meta-World's cameras; corner4 is the closest third-person view. Without any, no OpenGL is
            needed.
        resolution: height and width of an image in pixels.
    """

    tasks = tuple(INSTRUCTIONS)

    def __init__(self, *, cameras: Sequence[str] = ("corner4",), resolution: int = 128) -> None:
        self.info = EnvironmentInfo(
            robot="sawyer",
            fps=80,
            cameras=dict.fromkeys(cameras, (resolution, resolution)),
            action_names=("dx", "dy", "dz", "gripper"),
            state_names=("x", "y", "z", "gripper"),
        )
        self._resolution = resolution
        self._task = ""
        self._layouts: dict[tuple[str, int, int], list[metaworld.Task]] = {}
        self._renderer: mujoco.Renderer | None = None

    def reset(self, task: str, *, seed: int) -> Observation:
        """Start an episode with the layout of objects that the seed draws.

        Raises:
            DataError: an unknown camera.
            MissingPackageError: metaworld, or an off-screen OpenGL, is missing.
        """
        if task != self._task:
            self._open(task)
        self._env.set_task(self._layout(seed))
        self._numbers, _ = self._env.reset()
        return self._observation()

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action; success is Meta-World's own criterion, and so is the reward."""
        result = self.step_unseen(action)
        return replace(result, observation=self._observation())

    def step_unseen(self, action: NDArray[np.float32]) -> StepResult:
        """As `step`, without images: 1 ms instead of 10 or 20."""
        self._numbers, reward, terminated, truncated, info = self._env.step(action)
        observation = Observation({}, self._state(), INSTRUCTIONS[self._task])
        return StepResult(observation, bool(info["success"]), bool(terminated or truncated), float(reward))

    def expert_action(self) -> NDArray[np.float32]:
        """The action of Meta-World's scripted policy for this task, clipped to [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # at every step it warns that it clips
            action = self._expert.get_action(self._numbers)
        clipped: NDArray[np.float32] = np.clip(action, -1, 1).astype(np.float32)
        return clipped

    def close(self) -> None:
        """Free the simulator and its OpenGL context, which prints errors if the interpreter has to do it at exit."""
        if self._renderer is not None:
            self._renderer.close()
        if self._task:
            self._env.close()
        self._renderer, self._task = None, ""

    def _open(self, task: str) -> None:
        """Make the simulator of another task."""
        if self.info.cameras and not self._task:
            choose_opengl(extra="metaworld")  # before mujoco is imported, which reads the choice then
        try:
            from metaworld import ALL_V3_ENVIRONMENTS
            from metaworld.policies import ENV_POLICY_MAP
        except ModuleNotFoundError as missing:
            raise MissingPackageError(
                f"Meta-World needs the package {missing.name}: pip install 'vlatrack[metaworld]'"
            ) from missing
        self.close()
        self._env, self._expert, self._task = ALL_V3_ENVIRONMENTS[task](), ENV_POLICY_MAP[task](), task
        known = [self._env.model.camera(number).name for number in range(self._env.model.ncam)]
        for camera in self.info.cameras:
            if camera not in known:
                raise DataError(f"Meta-World has no camera {camera!r}; cameras: {', '.join(known)}")
        if self.info.cameras:
            self._renderer = _fast_renderer(self._env.model, self._resolution)

    def _layout(self, seed: int) -> "metaworld.Task":
        from metaworld import MT1

        draw_seed, number = divmod(seed, SEEDS_PER_DRAW)
        draw, index = divmod(number, _LAYOUTS_PER_DRAW)
        key = (self._task, draw_seed, draw)
        if key not in self._layouts:
            words = [draw_seed, zlib.crc32(self._task.encode()), draw * _LAYOUTS_PER_DRAW]
            mixed = int(np.random.SeedSequence(words).generate_state(1)[0])
            self._layouts = {key: list(MT1(self._task, seed=mixed).train_tasks)}
        return self._layouts[key][index]

    def _observation(self) -> Observation:
        images = {camera: self._image(camera) for camera in self.info.cameras}
        return Observation(images, self._state(), INSTRUCTIONS[self._task])

    def _state(self) -> NDArray[np.float32]:
        state: NDArray[np.float32] = self._numbers[: self.info.state_dim].astype(np.float32)
        return state

    def _image(self, camera: str) -> NDArray[np.uint8]:
        assert self._renderer is not None, "there are cameras, so there is a renderer"
        self._renderer.update_scene(self._env.data, camera=camera)
        image: NDArray[np.uint8] = self._renderer.render()
        return image[::-1, ::-1] if camera in _UPSIDE_DOWN else image


def _fast_renderer(model: "mujoco.MjModel", resolution: int) -> "mujoco.Renderer":
    """Without multisampling, shadows and reflections: ten times as fast in software rendering."""
    import mujoco

    model.vis.quality.offsamples = 0
    model.vis.global_.offwidth = model.vis.global_.offheight = resolution
    renderer = mujoco.Renderer(model, resolution, resolution)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return renderer
