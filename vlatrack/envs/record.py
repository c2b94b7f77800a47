"""Records demonstrations of scripted experts in Meta-World as a LeRobot dataset.

The expert's clean action is the label; what is carried out has noise on it, so the data also shows
how to come back to the path. Only successful episodes are kept. Everything follows from the seed.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.formats.lerobot.writer import LeRobotWriter
from vlatrack.envs.metaworld_tasks import instruction_for
from vlatrack.envs.opengl import choose_opengl
from vlatrack.errors import DataError

STEPS_AFTER_SUCCESS = 4
LONGEST_EPISODE = 500  # steps; more than Meta-World's experts need, and all it allows
ATTEMPTS_PER_EPISODE = 3
EXTRA_ATTEMPTS = 5


class Scene(Protocol):
    """A simulator of one task with an expert in it."""

    def reset(self) -> None:
        """Begin an episode in the next layout."""

    def state(self) -> NDArray[np.float32]:
        """Proprioceptive state, [N]."""

    def pictures(self) -> Mapping[str, NDArray[np.uint8]]:
        """What each camera sees, [height, width, 3], RGB, upright."""

    def expert_action(self) -> NDArray[np.float32]:
        """The expert's choice, [A], in [-1, 1]."""

    def step(self, action: NDArray[np.float32]) -> bool:
        """Carry out an action, [A], in [-1, 1]; whether the task is achieved now."""


@dataclass(frozen=True)
class Demonstration:
    """One successful episode; state and pictures of a step are those before its action."""

    actions: NDArray[np.float32]  # [T, A], the expert's, without noise
    states: NDArray[np.float32]  # [T, N]
    frames: Mapping[str, NDArray[np.uint8]]  # camera → [T, height, width, 3]


@dataclass(frozen=True)
class TaskRecord:
    """How far the recording of one task is."""

    task: str
    wanted: int  # episodes
    episodes: int
    attempts: int
    frames: int

    @property
    def success_rate(self) -> float:
        """Successful attempts / attempts, 0 before the first."""
        return self.episodes / self.attempts if self.attempts else 0.0

    def after(self, found: Demonstration | None) -> "TaskRecord":
        """This record with one more attempt."""
        kept, frames = (0, 0) if found is None else (1, len(found.actions))
        return replace(self, attempts=self.attempts + 1, episodes=self.episodes + kept, frames=self.frames + frames)


Progress = Callable[[TaskRecord], None]


def record(
    tasks: Mapping[str, int],
    *,
    output: Path | str,
    cameras: Sequence[str] = ("corner4",),
    resolution: int = 128,
    seed: int = 0,
    action_noise: float = 0.2,
    storage: Literal["video", "png"] = "video",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[TaskRecord]:
    """Record demonstrations of Meta-World's scripted experts into a LeRobot v3.0 dataset.

    Args:
        tasks: name (`window-open-v3`) → number of successful episodes.
        output: the folder of the new dataset.
        cameras: Meta-World's camera names; corner4 is the closest third-person view.
        resolution: pixels of both sides of a picture.
        seed: decides layouts and noise; the episodes of a task do not depend on the other tasks.
        action_noise: standard deviation of the noise on the executed action, in its units (-1..1).
        storage: mp4, or PNG embedded in the parquet files.
        overwrite: replace the dataset that is there.
        progress: called after every attempt.

    Returns:
        What was recorded of each task, in the order of `tasks`.

    Raises:
        DataError: an unknown task or camera, a task that succeeds too seldom, a folder that is taken.
        MissingPackageError: metaworld or an off-screen OpenGL is missing.
    """
    for task, episodes in tasks.items():
        instruction_for(task)
        if episodes < 1:
            raise DataError(f"{task}: {episodes} episodes; record at least one")
    choose_opengl()
    from vlatrack.envs import metaworld as simulator

    with LeRobotWriter(
        output,
        fps=simulator.FPS,
        robot_type=simulator.ROBOT,
        cameras=dict.fromkeys(cameras, (resolution, resolution)),
        action_names=simulator.ACTION_NAMES,
        state_names=simulator.STATE_NAMES,
        storage=storage,
        overwrite=overwrite,
    ) as writer:
        records = []
        for task, episodes in tasks.items():
            scene = simulator.MetaWorldScene(task, cameras=cameras, resolution=resolution, seed=seed)
            with closing(scene):
                keep = partial(_keep, writer, scene.instruction)
                records.append(
                    demonstrate(
                        scene,
                        keep,
                        task=task,
                        episodes=episodes,
                        seed=seed,
                        action_noise=action_noise,
                        progress=progress,
                    )
                )
    return records


def _keep(writer: LeRobotWriter, instruction: str, found: Demonstration) -> None:
    writer.add_episode(task=instruction, actions=found.actions, states=found.states, frames=found.frames)


def demonstrate(
    scene: Scene,
    keep: Callable[[Demonstration], None],
    *,
    task: str,
    episodes: int,
    seed: int,
    action_noise: float,
    longest: int = LONGEST_EPISODE,
    progress: Progress | None = None,
) -> TaskRecord:
    """Let the expert try until `episodes` of its attempts succeeded; `keep` gets each of these.

    Raises:
        DataError: three attempts for each episode, and five more, were not enough.
    """
    so_far = TaskRecord(task=task, wanted=episodes, episodes=0, attempts=0, frames=0)
    while so_far.episodes < episodes:
        if so_far.attempts == ATTEMPTS_PER_EPISODE * episodes + EXTRA_ATTEMPTS:
            raise DataError(
                f"{task}: {so_far.episodes} of {episodes} episodes after {so_far.attempts} attempts; "
                f"lower the action noise ({action_noise:g}) or leave the task out"
            )
        noise = np.random.default_rng([seed, zlib.crc32(task.encode()), so_far.attempts])
        found = _attempt(scene, noise=noise, action_noise=action_noise, longest=longest)
        if found is not None:
            keep(found)
        so_far = so_far.after(found)
        if progress is not None:
            progress(so_far)
    return so_far


def _attempt(scene: Scene, *, noise: np.random.Generator, action_noise: float, longest: int) -> Demonstration | None:
    """One episode until a few steps after its success; None without success."""
    scene.reset()
    actions, states, pictures = [], [], []
    remaining = longest
    achieved = False
    while remaining > 0:
        action = scene.expert_action()
        actions.append(action)
        states.append(scene.state())
        pictures.append(scene.pictures())
        executed = action + action_noise * noise.standard_normal(len(action))
        success = scene.step(np.clip(executed, -1, 1).astype(np.float32))
        remaining -= 1
        if success and not achieved:
            achieved, remaining = True, min(remaining, STEPS_AFTER_SUCCESS)
    if not achieved:
        return None
    frames = {camera: np.stack([views[camera] for views in pictures]) for camera in pictures[0]}
    return Demonstration(np.stack(actions), np.stack(states), frames)
