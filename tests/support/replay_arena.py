"""A simulator of a point on a line that can begin in stored states; a state may say that it breaks."""

import os
import signal
from pathlib import Path

import numpy as np

from vlatrack.envs.base import EnvironmentInfo, Observation, StepResult
from vlatrack.errors import DataError

GOAL = 1.0
BREAKS = 99.0
"""As the second number of a state: the process dies in the second step."""


class ReplayArena:
    """The task is achieved while the point is beyond `GOAL`. Waits do not move it, but they are counted.

    Args:
        notes: a folder in which each begin of an episode is noted.
    """

    tasks = ("push", "pull")
    info = EnvironmentInfo(
        robot="point",
        fps=10,
        cameras={"top": (32, 32)},
        action_names=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
        state_names=("x", "steps", "number"),
    )

    def __init__(self, *, notes=""):
        self._notes = Path(notes) if notes else None

    def reset_to_state(self, task, *, seed, number, state):
        if len(state) != 2:
            raise DataError(f"{task}: a state of {len(state)} numbers, but this simulator's has 2")
        self._task, self._number, self._steps, self._x = task, number, 0, state[0]
        self._breaks = state[1] == BREAKS
        if self._notes is not None:
            with (self._notes / f"{task}-{number}").open("a") as stream:
                stream.write(f"{os.getpid()} {seed}\n")
        return self._look()

    def step(self, action):
        self._steps += 1
        if self._breaks and self._steps == 12:
            os.kill(os.getpid(), signal.SIGSEGV)
        self._x += float(action[0])
        return StepResult(self._look(), bool(self._x >= GOAL), False)

    def expert_action(self):
        raise AssertionError("nobody asks the expert")

    def close(self):
        """Nothing is held."""

    def _look(self):
        state = np.array([self._x, self._steps, self._number], np.float32)
        return Observation({"top": np.full((32, 32, 3), self._steps, np.uint8)}, state, f"{self._task} it")
