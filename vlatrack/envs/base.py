"""The protocol of a simulator: tasks, episodes determined by a seed, observations, and optionally a scripted expert.

Legend: A = numbers in an action, N = numbers in a state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vlatrack.plugins import make_plugin

BUILT_IN = {"metaworld": "vlatrack.envs.metaworld:MetaWorld", "libero": "vlatrack.envs.libero:Libero"}
GROUP = "vlatrack.environments"
"""The group of entry points under which a package offers environments."""


@dataclass(frozen=True)
class EnvironmentInfo:
    """What is the same for all episodes of an environment."""

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
    """What a policy sees before an action."""

    images: Mapping[str, NDArray[np.uint8]]  # camera → [height, width, 3], RGB, upright
    state: NDArray[np.float32]  # [N], raw units
    instruction: str  # what the robot is asked to do, e.g. "open the window"


@dataclass(frozen=True)
class StepResult:
    """The result of one env step."""

    observation: Observation
    success: bool  # the task is achieved now
    done: bool  # the episode is over: the next call is `reset`
    reward: float = 0.0  # of this step, for simulators that have one


class Environment(Protocol):
    """A simulator with one or more tasks. It runs one episode at a time and is not shared between threads."""

    @property
    def info(self) -> EnvironmentInfo:
        """Robot, cameras and dimensions."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names that `reset` takes, e.g. `window-open-v3`."""

    def reset(self, task: str, *, seed: int) -> Observation:
        """Start an episode of a task; the same seed, at least 0, starts the same episode, whatever came before."""

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action, [A], each number in [-1, 1]."""

    def close(self) -> None:
        """Free the simulator's resources; nothing else is called after this."""


@runtime_checkable
class ScriptedExpert(Protocol):
    """A scripted policy that knows the simulator's full state; part of the environment that it acts in."""

    def expert_action(self) -> NDArray[np.float32]:
        """The expert's action for the current state, [A], in [-1, 1]."""


@runtime_checkable
class SkipsImages(Protocol):
    """An environment that can execute a step without rendering, which takes most of the time; a part of it."""

    def step_unseen(self, action: NDArray[np.float32]) -> StepResult:
        """As `step`, but the observation has no images."""


@runtime_checkable
class StoredStates(Protocol):
    """An environment with initial states that come with its tasks; a part of it."""

    def reset_to(self, task: str, *, seed: int, initial_state: int) -> Observation:
        """Start an episode in the stored state of a number; the same arguments start the same episode."""


@runtime_checkable
class ChecksItself(Protocol):
    """An environment whose physics depends on the version of a package so much that it has to be looked at."""

    def check(self) -> list[str]:
        """What is wrong with this installation, a sentence for each; it may take seconds."""


class ExpertEnvironment(Environment, ScriptedExpert, Protocol):
    """An environment that demonstrations can be recorded in."""


def stepped(environment: Environment, action: NDArray[np.float32], *, seen: bool) -> StepResult:
    """Execute one action; without images, where the environment can, if nobody will look at them."""
    if not seen and isinstance(environment, SkipsImages):
        return environment.step_unseen(action)
    return environment.step(action)


def make_environment(name: str, options: Mapping[str, object]) -> Environment:
    """An environment of `BUILT_IN`, or of a third party.

    Args:
        name: `metaworld`, `libero`, `package.module:Class`, or the name of an entry point of `GROUP`.
        options: keyword arguments of the class.

    Raises:
        SpecError: there is no such class, or it does not take these options.
        MissingPackageError: the simulator is not installed.
    """
    return cast(Environment, make_plugin(BUILT_IN.get(name, name), group=GROUP, options=options))
