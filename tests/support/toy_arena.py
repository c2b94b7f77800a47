"""A simulator of a point in a square, which breaks on command."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from vlatrack.envs.base import EnvironmentInfo, Observation, StepResult

STEPS_TO_SUCCESS = 4


class ToyArena:
    """Every third seed is a failure; others succeed after four steps, whatever the policy does.

    Args:
        trouble: crash, hang, raise, stop (the process is stopped) or nan (of the state), in the second step.
        seeds: of the episodes that have the trouble, separated by spaces.
        times: how often each of them has it.
        notes: a folder in which each begin of an episode is noted.
        pause_s: of each step.
    """

    tasks = ("push", "pull")
    info = EnvironmentInfo(
        robot="point", fps=10, cameras={"top": (32, 32)}, action_names=("dx", "dy"), state_names=("x", "y")
    )

    def __init__(self, *, trouble="", seeds="", times=100, notes="", pause_s=0.0):
        self._trouble, self._seeds, self._times = trouble, [int(seed) for seed in str(seeds).split()], times
        self._notes, self._pause_s = Path(notes) if notes else None, pause_s
        self.rendered = 0

    def reset(self, task, *, seed):
        self._task, self._seed, self._steps = task, seed, 0
        self._point = np.random.default_rng([self.tasks.index(task), seed]).uniform(-0.5, 0.5, 2)
        self._breaks = self._trouble and seed in self._seeds
        if self._notes is not None:
            file = self._notes / f"{task}-{seed}"
            with file.open("a") as stream:
                stream.write(f"{os.getpid()}\n")
            self._breaks = self._breaks and len(file.read_text().splitlines()) <= self._times
        return self._look()

    def step(self, action):
        moved = self._move(action)
        return StepResult(self._look(), *moved)

    def step_unseen(self, action):
        moved = self._move(action)
        return StepResult(Observation({}, self._state(), self._task), *moved)

    def expert_action(self):
        return np.array([1, 0], np.float32)

    def close(self):
        """Nothing is held."""

    def _move(self, action):
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        time.sleep(self._pause_s)
        self._steps += 1
        self._point = np.clip(self._point + 0.1 * action, -1, 1)
        if self._breaks and self._steps == 2:
            self._break()
        success = self._seed % 3 != 2 and self._steps >= STEPS_TO_SUCCESS
        return success, False, float(action[0])

    def _break(self):
        match self._trouble:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":
                time.sleep(1000)
            case "raise":
                raise RuntimeError("the point fell off the table")
            case "nan":
                self._point = np.array([np.nan, 0])

    def _state(self):
        return self._point.astype(np.float32)

    def _look(self):
        self.rendered += 1
        image = np.full((32, 32, 3), 30, np.uint8)
        x, y = ((np.nan_to_num(self._point) + 1) / 2 * 28).astype(int)
        image[y : y + 4, x : x + 4] = 200
        return Observation({"top": image}, self._state(), self._task)


class WrongShapes(ToyArena):
    """Shows something else than it says.

    Args:
        what: grey, float or state.
    """

    def __init__(self, *, what, notes=""):
        super().__init__(notes=notes)
        self._what = what

    def _look(self):
        seen = super()._look()
        image, state = seen.images["top"], seen.state
        match self._what:
            case "grey":
                image = image[..., 0]
            case "float":
                image = image / np.float32(255)
            case "state":
                state = np.append(state, np.float32(0))
        return Observation({"top": image}, state, seen.instruction)


class Unready(ToyArena):
    """Cannot be made."""

    def __init__(self, *, notes):
        raise RuntimeError("no table")


class Slippery(ToyArena):
    """Finds that its installation moves things."""

    def check(self):
        return ["physics 2 moves the point"]
