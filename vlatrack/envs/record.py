"""Records demonstrations of a simulator's scripted expert as a LeRobot dataset.

The expert's clean action is the label; the executed action has noise on it, so the data also shows
how to recover. With `Trial.clean_steps` noise comes in bursts, and only what lies between them is recorded: what was
executed is then what is recorded, and what follows does not depend on a noise that nobody can foresee. Only successful
attempts are kept. Everything is determined by the seed.
"""

import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import count, pairwise, repeat
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vlatrack.envs.base import Environment, EnvironmentInfo, ExpertEnvironment, Observation, ScriptedExpert, stepped
from vlatrack.errors import DataError

STEPS_AFTER_SUCCESS = 4
LONGEST_EPISODE = 500  # steps; an environment may end earlier
ATTEMPTS_PER_EPISODE = 3
EXTRA_ATTEMPTS = 5
SEEDS_PER_RECORDING = 100_000  # the n-th attempt of a task begins at the seed of the recording * this + n


@dataclass(frozen=True)
class Demonstration:
    """A stretch of a successful attempt; state and images of a step are those before its action."""

    instruction: str
    actions: NDArray[np.float32]  # [T, A], the expert's, without noise
    states: NDArray[np.float32]  # [T, N]
    frames: Mapping[str, NDArray[np.uint8]]  # camera → [T, height, width, 3]


@dataclass(frozen=True)
class TaskProgress:
    """The progress of recording one task."""

    task: str
    wanted: int  # episodes
    episodes: int = 0
    attempts: int = 0
    stretches: int = 0  # episodes of the dataset; one of each attempt that succeeded, unless noise came in bursts
    frames: int = 0

    @property
    def success_rate(self) -> float:
        """Successful attempts / attempts, 0 before the first."""
        return self.episodes / self.attempts if self.attempts else 0.0

    def after(self, found: Sequence[Demonstration]) -> "TaskProgress":
        """This progress with one more attempt."""
        return replace(
            self,
            attempts=self.attempts + 1,
            episodes=self.episodes + bool(found),
            stretches=self.stretches + len(found),
            frames=self.frames + sum(len(stretch.actions) for stretch in found),
        )


ProgressCallback = Callable[[TaskProgress], None]
_Step = tuple[Observation, NDArray[np.float32]]


@dataclass(frozen=True)
class Trial:
    """What an attempt at a task is determined by, but for its number."""

    task: str
    seed: int  # of the recording
    action_noise: float  # standard deviation of the noise on executed actions
    longest: int  # steps of an attempt; one that takes more has failed
    noise_steps: int = 1  # for how many steps a noise stays, before another is drawn
    clean_steps: int = 0  # without noise, on average, before each such burst; only these are recorded. 0: no bursts
    noise_on: tuple[str, ...] | None = None  # names of the numbers of an action that get noise; None: all

    def numbers(self, first: int) -> Iterator[int]:
        """Of the attempts from `first` on, without end."""
        return count(first)

    def attempt(self, environment: Environment, number: int) -> "list[Demonstration]":
        """Let the scripted expert try once."""
        assert isinstance(environment, ScriptedExpert), "whoever asks has read `Opened.has_expert`"
        return attempt(environment, self, number)


class Trials(Protocol):
    """What attempts are determined by, beside their number: a `Trial`, or `vlatrack.envs.replay.Replays`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def task(self) -> str:
        """That is attempted."""

    def numbers(self, first: int) -> Iterator[int]:
        """Of the attempts from `first` on."""

    def attempt(self, environment: Environment, number: int) -> "list[Demonstration]":
        """Make one, and return its stretches that are recorded; none if it failed."""


class Attempts(Protocol):
    """Attempts at the tasks of a simulator: in one in this process, or in several in processes of their own."""

    @property
    def info(self) -> EnvironmentInfo:
        """Of the simulator."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of its tasks."""

    def of(self, trial: Trials, first: int = 0) -> Generator[Sequence[Demonstration]]:
        """The attempts in the order of their numbers, from the number `first` on: the stretches of each, none of one
        that failed."""


class AttemptsHere:
    """One attempt after another, in a simulator in this process, which the caller closes."""

    def __init__(self, environment: ExpertEnvironment) -> None:
        self._environment = environment

    @property
    def info(self) -> EnvironmentInfo:
        return self._environment.info

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._environment.tasks

    def of(self, trial: Trials, first: int = 0) -> Generator[Sequence[Demonstration]]:
        return (trial.attempt(self._environment, number) for number in trial.numbers(first))


def record(
    attempts: Attempts,
    tasks: Mapping[str, int],
    *,
    output: Path | str,
    seed: int = 0,
    action_noise: float = 0.2,
    noise_steps: int = 1,
    clean_steps: int = 0,
    noise_on: Sequence[str] | None = None,
    longest: int = LONGEST_EPISODE,
    storage: Literal["video", "png"] = "video",
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> list[TaskProgress]:
    """Record demonstrations of an environment's scripted expert into a LeRobot v3.0 dataset.

    Args:
        attempts: at the tasks, with a simulator that has a scripted expert.
        tasks: name (`window-open-v3`) → number of successful episodes.
        output: the folder of the new dataset.
        seed: determines layouts and noise; the episodes of a task do not depend on the other tasks.
        action_noise: standard deviation of the noise on the executed action, in its units (-1..1).
        noise_steps: for how many steps a noise stays. Noise of one step averages out; one that stays carries the robot
            off as the errors of a policy do, which does not notice them before its chunk is over.
        clean_steps: noise comes in bursts of `noise_steps`, with so many steps between them on average, from half to
            one and a half of it. Only these are recorded, each stretch as an episode. 0: there always is noise.
        noise_on: names of the numbers of an action that get noise, as the environment has them (`dx`); None: all.
        longest: steps of an attempt; one that takes more is not kept.
        storage: mp4, or PNG embedded in the parquet files.
        overwrite: replace the dataset that is there.
        progress: called after every attempt.

    Returns:
        What was recorded of each task, in the order of `tasks`.

    Raises:
        DataError: an unknown task or number of an action, a task that succeeds too rarely, or a folder that is in use
            or cannot be written.
        ValueError: no steps.
        SimulatorError: an attempt that is needed broke its worker again and again.
    """
    from vlatrack.data.formats.lerobot.writer import LeRobotWriter  # which workers, who make attempts, do not wait for

    if min(noise_steps, longest) < 1 or clean_steps < 0:
        raise ValueError(
            f"noise_steps={noise_steps}, longest={longest}, clean_steps={clean_steps}: at least 1, 1 and 0 are needed"
        )
    _check_tasks(attempts, tasks)
    info = attempts.info
    for name in noise_on or ():
        if name not in info.action_names:
            raise DataError(f"{info.robot}: no {name!r} in an action; it has {', '.join(info.action_names)}")
    noisy = None if noise_on is None else tuple(noise_on)
    with LeRobotWriter(
        output,
        fps=info.fps,
        robot_type=info.robot,
        cameras=info.cameras,
        action_names=info.action_names,
        state_names=info.state_names,
        storage=storage,
        overwrite=overwrite,
    ) as writer:

        def keep(found: Demonstration) -> None:
            states = found.states if info.state_names else None
            writer.add_episode(task=found.instruction, actions=found.actions, states=states, frames=found.frames)

        return [
            demonstrate(
                attempts,
                Trial(task, seed, action_noise, longest, noise_steps, clean_steps, noisy),
                keep,
                episodes=episodes,
                progress=progress,
            )
            for task, episodes in tasks.items()
        ]


def _check_tasks(attempts: Attempts, tasks: Mapping[str, int]) -> None:
    """Raise DataError for a task that the environment does not have, or a number of episodes out of bounds."""
    most = (SEEDS_PER_RECORDING - EXTRA_ATTEMPTS) // ATTEMPTS_PER_EPISODE
    for task, episodes in tasks.items():
        if task not in attempts.tasks:
            close = get_close_matches(task, attempts.tasks, n=1, cutoff=0.4)
            remedy = f"did you mean {close[0]!r}?" if close else f"tasks: {', '.join(attempts.tasks)}"
            raise DataError(f"{attempts.info.robot}: no task {task!r}; {remedy}")
        if not 1 <= episodes <= most:
            raise DataError(f"{task}: {episodes} episodes; record at least one, and at most {most}")


def demonstrate(
    attempts: Attempts,
    trial: Trial,
    keep: Callable[[Demonstration], None],
    *,
    episodes: int,
    progress: ProgressCallback | None = None,
) -> TaskProgress:
    """Let the expert try until `episodes` of its attempts succeeded, and pass what these recorded to `keep`.

    Raises:
        DataError: three attempts for each episode, and five more, were not enough.
    """
    so_far, most = TaskProgress(trial.task, wanted=episodes), ATTEMPTS_PER_EPISODE * episodes + EXTRA_ATTEMPTS
    with closing(attempts.of(trial)) as found:
        while so_far.episodes < episodes:
            if so_far.attempts == most:
                raise DataError(
                    f"{trial.task}: {so_far.episodes} of {episodes} episodes after {so_far.attempts} attempts; "
                    f"lower the action noise ({trial.action_noise:g}) or omit the task"
                )
            stretches = next(found)
            for stretch in stretches:
                keep(stretch)
            so_far = so_far.after(stretches)
            if progress is not None:
                progress(so_far)
    return so_far


def attempt(environment: ExpertEnvironment, trial: Trial, number: int) -> list[Demonstration]:
    """One episode until a few steps after success, in its recorded stretches; none if it did not succeed."""
    observation = environment.reset(trial.task, seed=trial.seed * SEEDS_PER_RECORDING + number)
    stretches: list[list[_Step]] = []
    remaining, achieved, was_recorded = trial.longest, False, False
    for (push, is_recorded), (_, will_be) in pairwise(_pushes(trial, number, environment.info.action_names)):
        action = environment.expert_action()
        if is_recorded and not was_recorded:
            stretches.append([])
        if is_recorded:
            stretches[-1].append((observation, action))
        was_recorded = is_recorded
        result = stepped(environment, np.clip(action + push, -1, 1).astype(np.float32), seen=will_be)
        observation = result.observation
        remaining = 0 if result.done else remaining - 1
        if result.success and not achieved:
            achieved, remaining = True, min(remaining, STEPS_AFTER_SUCCESS)
        if remaining == 0:
            break
    return [demonstration_of(steps) for steps in stretches] if achieved else []


def _pushes(trial: Trial, number: int, names: Sequence[str]) -> Iterator[tuple[NDArray[np.float64], bool]]:
    """What is added to the action of each step, and whether the step is recorded."""
    random = np.random.default_rng([trial.seed, zlib.crc32(trial.task.encode()), number])
    deviation = trial.action_noise * np.array([trial.noise_on is None or name in trial.noise_on for name in names])
    shortest, longest = trial.clean_steps // 2, trial.clean_steps + trial.clean_steps // 2
    while True:
        if trial.clean_steps:
            yield from repeat((np.zeros(len(names)), True), int(random.integers(shortest, longest, endpoint=True)))
        yield from repeat((deviation * random.standard_normal(len(names)), not trial.clean_steps), trial.noise_steps)


def demonstration_of(steps: Sequence[tuple[Observation, NDArray[np.float32]]]) -> Demonstration:
    """A stretch of observations, all with images, and the actions that followed them."""
    observations = [observation for observation, _ in steps]
    return Demonstration(
        observations[0].instruction,
        np.stack([action for _, action in steps]),
        np.stack([seen.state for seen in observations]),
        {camera: np.stack([seen.images[camera] for seen in observations]) for camera in observations[0].images},
    )
