"""Meta-World as a source of demonstrations: its simulator, its scripted experts and its cameras.

Needs the extra `vlatrack[metaworld]` and is imported only where a simulator runs. MuJoCo reads
MUJOCO_GL while it is imported, so `choose_opengl` comes before this module if pictures are wanted.
"""

import warnings
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlatrack.envs.metaworld_tasks import instruction_for
from vlatrack.errors import DataError, MissingPackageError

try:
    import metaworld
    import mujoco
    from metaworld.policies import ENV_POLICY_MAP
except ModuleNotFoundError as missing:
    raise MissingPackageError(
        f"Meta-World needs the package {missing.name}: pip install 'vlatrack[metaworld]'"
    ) from missing

ROBOT = "sawyer"
ACTION_NAMES = ("dx", "dy", "dz", "gripper")  # each -1..1; 1 moves the hand's target by 1 cm
STATE_NAMES = ("x", "y", "z", "gripper")  # metres; opening of the gripper, 0..1
FPS = 80

_HUNG_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")


class MetaWorldScene:
    """One task's simulator with its scripted expert, in layouts that a seed decides.

    Args:
        task: a name such as `window-open-v3`.
        cameras: which cameras `pictures` draws; none: no OpenGL is needed.
        resolution: pixels of both sides of a picture.
        seed: decides the layouts; the n-th `reset` of a seed always gives the same one.

    Raises:
        DataError: an unknown task or camera.
    """

    def __init__(self, task: str, *, cameras: Sequence[str], resolution: int, seed: int) -> None:
        self.instruction = instruction_for(task)
        self._task, self._seed = task, seed
        self._layouts: list[metaworld.Task] = []
        self._resets = 0
        self._env = metaworld.ALL_V3_ENVIRONMENTS[task]()
        self._expert = ENV_POLICY_MAP[task]()
        self._observation = np.zeros(0)
        self._cameras = tuple(cameras)
        self._check_cameras()
        self._renderer = _fast_renderer(self._env.model, resolution) if cameras else None

    def reset(self) -> None:
        """Begin an episode in the next layout."""
        if self._resets == len(self._layouts):
            self._layouts += self._more_layouts()
        self._env.set_task(self._layouts[self._resets])
        self._resets += 1
        self._observation, _ = self._env.reset()

    def state(self) -> NDArray[np.float32]:
        """Hand position and gripper opening, [4]; where the objects are is for the cameras to tell."""
        return self._observation[: len(STATE_NAMES)].astype(np.float32)

    def pictures(self) -> Mapping[str, NDArray[np.uint8]]:
        """What each camera sees now, [resolution, resolution, 3], RGB, upright."""
        return {camera: self._picture(camera) for camera in self._cameras}

    def expert_action(self) -> NDArray[np.float32]:
        """What the scripted expert would do now, [4], in [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns that it needs the clipping, every step
            action = self._expert.get_action(self._observation)
        clipped: NDArray[np.float32] = np.clip(action, -1, 1).astype(np.float32)
        return clipped

    def step(self, action: NDArray[np.float32]) -> bool:
        """Carry out one action, [4], in [-1, 1]; whether the task is achieved now."""
        self._observation, _, _, _, info = self._env.step(action)
        return bool(info["success"])

    def close(self) -> None:
        """Free the simulator and its OpenGL context, which complains if the interpreter has to do it."""
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()

    def _more_layouts(self) -> "list[metaworld.Task]":
        words = [self._seed, zlib.crc32(self._task.encode()), len(self._layouts)]
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        return list(metaworld.MT1(self._task, seed=seed).train_tasks)

    def _check_cameras(self) -> None:
        model = self._env.model
        known = [model.camera(number).name for number in range(model.ncam)]
        for camera in self._cameras:
            if camera not in known:
                raise DataError(f"Meta-World has no camera {camera!r}; cameras: {', '.join(known)}")

    def _picture(self, camera: str) -> NDArray[np.uint8]:
        assert self._renderer is not None, "this scene was made without cameras"
        self._renderer.update_scene(self._env.data, camera=camera)
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture[::-1, ::-1] if camera in _HUNG_UPSIDE_DOWN else picture


def _fast_renderer(model: "mujoco.MjModel", resolution: int) -> "mujoco.Renderer":
    """Without multisampling, shadows and reflections: ten times as fast in software, and enough to see."""
    model.vis.quality.offsamples = 0
    model.vis.global_.offwidth = model.vis.global_.offheight = resolution
    renderer = mujoco.Renderer(model, resolution, resolution)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return renderer
