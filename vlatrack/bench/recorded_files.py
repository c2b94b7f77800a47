"""A dataset as a robot leaves it, in files: smooth movements, and a camera that sees an object move.

The movements are synthetic, and the files what `vlatrack data record` writes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.formats.lerobot.writer import LeRobotWriter

ACTIONS, STATES = 7, 8
FPS = 10
CAMERA = "observation.images.front"
_OBJECT = 8
"""The side of an image has so many times that of the object."""


def write_dataset(folder: Path, *, episodes: int, steps: int, image_size: int | None = None) -> None:
    """Write a LeRobot v3.0 dataset.

    Args:
        episodes, steps: how many, and how many each has.
        image_size: pixels on a side of the video of a camera; None: there is no camera.
    """
    with LeRobotWriter(
        folder,
        fps=FPS,
        robot_type="synthetic",
        cameras={} if image_size is None else {"front": (image_size, image_size)},
        action_names=[f"action {number}" for number in range(ACTIONS)],
        state_names=[f"state {number}" for number in range(STATES)],
    ) as writer:
        for index in range(episodes):
            moves = np.random.default_rng(index).normal(0, 0.02, (steps, ACTIONS + STATES)).cumsum(axis=0)
            values = np.sin(moves).astype(np.float32)
            seen = {} if image_size is None else {"front": _frames(values[:, :2], image_size)}
            task = f"put the bowl on plate number {index % 10}"
            writer.add_episode(task=task, actions=values[:, :ACTIONS], states=values[:, ACTIONS:], frames=seen)


def _frames(places: NDArray[np.float32], size: int) -> Iterator[NDArray[np.uint8]]:
    """A piece [1, size, size, 3] for each place [T, 2] of the object, which is in [-1, 1]."""
    rng, side = np.random.default_rng(0), size // _OBJECT
    coarse = rng.integers(40, 200, (_OBJECT, _OBJECT, 3)).astype(np.uint8)
    background = coarse.repeat(side, axis=0).repeat(side, axis=1)
    background = background + rng.integers(0, 24, background.shape, dtype=np.uint8)  # what no camera is without
    for row, column in ((places + 1) / 2 * (size - side)).astype(int).tolist():
        frame = background.copy()
        frame[row : row + side, column : column + side] = (220, 40, 40)
        yield frame[None]


@dataclass(frozen=True)
class Cost:
    """Of something that was done once."""

    wall_s: float
    cpu_s: float  # of all threads of this process

    @classmethod
    def of(cls, task: Callable[[], object]) -> "Cost":
        """Do it."""
        cpu, wall = time.process_time(), time.perf_counter()
        task()
        return cls(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class PairedCosts:
    """Of a task and of what it is compared with, measured in turns; before them each was done once."""

    own: tuple[Cost, ...]
    other: tuple[Cost, ...]

    @classmethod
    def measure(cls, own: Callable[[], object], other: Callable[[], object], *, rounds: int) -> "PairedCosts":
        """Do both, first without looking at the clock."""
        own(), other()
        pairs = [(Cost.of(own), Cost.of(other)) for _ in range(rounds)]
        return cls(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))

    @property
    def wall_ratio(self) -> float:
        """How many times as long the task takes: the median of the rounds."""
        return float(np.median([a.wall_s / b.wall_s for a, b in zip(self.own, self.other, strict=True)]))

    @property
    def cpu_ratio(self) -> float:
        """The same of the time that processors work."""
        return float(np.median([a.cpu_s / b.cpu_s for a, b in zip(self.own, self.other, strict=True)]))

    @property
    def own_s(self) -> float:
        """Seconds of the task: the median."""
        return float(np.median([cost.wall_s for cost in self.own]))
