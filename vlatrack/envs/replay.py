"""Repeats demonstrations of HDF5 files in their simulator, to record them anew: larger images, without no-ops."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import h5py
import numpy as np
from numpy.typing import NDArray

from vlatrack.data.formats.hdf5.reading import open_file, path_of, read_numbers
from vlatrack.data.formats.libero import moving_steps
from vlatrack.envs.base import Environment, Observation, stepped
from vlatrack.envs.record import Demonstration, demonstration_of
from vlatrack.errors import DataError


@runtime_checkable
class RestoresStates(Protocol):
    """An environment that can begin in a state that was stored before; a part of it."""

    def reset_to_state(self, task: str, *, seed: int, number: int, state: NDArray[np.float64]) -> Observation:
        """Start an episode in a state; what it does not determine is as at the reset of a number after the seed."""


@dataclass(frozen=True)
class Stored:
    """A demonstration in its file."""

    group: str  # such as data/demo_0
    number: int  # of the reset of the simulator before it
    steps: int  # that are stored


@dataclass(frozen=True)
class Replays:
    """The demonstrations of a task, each of which is repeated once."""

    task: str
    file: str
    sha256: str  # of the file
    demonstrations: tuple[Stored, ...]
    seed: int  # of the simulator
    waits: int  # env steps with `no_op` before the first action
    no_op: tuple[float, ...]
    skip_no_ops: bool  # neither execute nor record steps that do nothing

    def numbers(self, first: int) -> Iterator[int]:
        """Of the demonstrations from `first` on."""
        return iter(range(first, len(self.demonstrations)))

    def attempt(self, environment: Environment, number: int) -> list[Demonstration]:
        """Repeat one; it is kept if the task is achieved after its last action, as OpenVLA and RynnVLA-002 have it."""
        assert isinstance(environment, RestoresStates), "only LIBERO's demonstrations are repeated"
        stored = self.demonstrations[number]
        with open_file(Path(self.file)) as file:
            state, actions = stored_state(file, stored.group), stored_actions(file, stored.group, len(self.no_op))
        try:
            observation = environment.reset_to_state(self.task, seed=self.seed, number=stored.number, state=state)
        except DataError as error:
            raise DataError(f"{self.file}: {stored.group}: {error}") from None
        for left in range(self.waits, 0, -1):
            observation = stepped(environment, np.array(self.no_op, np.float32), seen=left == 1).observation
        recorded, achieved = list[tuple[Observation, NDArray[np.float32]]](), False
        steps = executed_steps(actions, skip_no_ops=self.skip_no_ops)
        for step in steps:
            recorded.append((observation, actions[step].astype(np.float32)))
            result = stepped(environment, actions[step], seen=step != steps[-1])
            observation, achieved = result.observation, result.success
        return [demonstration_of(recorded)] if achieved else []


def stored_state(file: h5py.File, group: str) -> NDArray[np.float64]:
    """The state in which a demonstration begins; raises DataError."""
    states = read_numbers(file, f"{group}/states", steps=1)
    if len(states) == 0:
        raise DataError(f"{path_of(file)}: {group}/states is empty; restore the file")
    return states[0]


def stored_actions(file: h5py.File, group: str, size: int) -> NDArray[np.float64]:
    """The actions of a demonstration, [T, size]; raises DataError."""
    return read_numbers(file, f"{group}/actions", size)


def executed_steps(actions: NDArray[np.float64], *, skip_no_ops: bool) -> NDArray[np.int64]:
    """The steps whose actions are executed."""
    return moving_steps(actions) if skip_no_ops else np.arange(len(actions))
