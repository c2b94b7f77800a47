"""What a simulator offers: tasks, episodes that a seed decides, images and states, and perhaps a scripted expert.

Legend: A = numbers in an action, N = numbers in a state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vlatrack.plugins import make_plugin

BUILT_IN = {"metaworld": "vlatrack.envs.metaworld:MetaWorld"}
GROUP = "vlatrack.environments"
"""The group of entry points under which a package offers environments."""


@dataclass(frozen=True)
class EnvironmentInfo:
    """What stays the same over all episodes of an environment."""

    robot: str
    fps: int  # env steps in a second
    cameras: Mapping[str, tuple[int, int]]  # name → height and width of its images in pixels
    action_names: tuple[str, ...]  # one for each number of an action
    state_names: tuple[str, ...]  # one for each number of a state

    @property
    def action_dim(self) -> int:
        """Numbers in one action, A."""
        return len(self.action_names)

    @property
    def state_dim(self) -> int:
        """Numbers in one state, N."""
        return len(self.state_names)


@dataclass(frozen=True)
class Observation:
    """What there is to see before an action."""

    images: Mapping[str, NDArray[np.uint8]]  # camera → [height, width, 3], RGB, upright
    state: NDArray[np.float32]  # [N], raw units
    instruction: str  # what the robot is asked to do, e.g. "open the window"


@dataclass(frozen=True)
class StepResult:
    """What an action led to."""

    observation: Observation
    success: bool  # the task is achieved now
    done: bool  # the episode is over: the next call is `reset`


class Environment(Protocol):
    """A simulator with some tasks. It holds one episode at a time and is not shared between threads."""

    @property
    def info(self) -> EnvironmentInfo:
        """Robot, cameras and dimensions."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names that `reset` takes, e.g. `window-open-v3`."""

    def reset(self, task: str, *, seed: int) -> Observation:
        """Begin an episode of a task; the same seed, 0 or above, begins the same episode, whatever came before."""

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Carry out one action, [A], each number in [-1, 1]."""

    def close(self) -> None:
        """Free what the simulator holds; it is not used after that."""


@runtime_checkable
class ScriptedExpert(Protocol):
    """Knows the simulator from inside, and so what to do; a part of the environment that it acts in."""

    def expert_action(self) -> NDArray[np.float32]:
        """What the expert would do now, [A], in [-1, 1]."""


class ExpertEnvironment(Environment, ScriptedExpert, Protocol):
    """An environment that demonstrations can be recorded in."""


def make_environment(name: str, options: Mapping[str, object]) -> Environment:
    """An environment of `BUILT_IN`, or a class of yours.

    Args:
        name: `metaworld`, `package.module:Class`, or the name of an entry point of `GROUP`.
        options: keyword arguments of the class.

    Raises:
        SpecError: there is no such class, or it does not take these options.
        MissingPackageError: the simulator is not installed.
    """
    return cast(Environment, make_plugin(BUILT_IN.get(name, name), group=GROUP, options=options))
