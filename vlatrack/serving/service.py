"""What all conversations of a server share, and what each remembers."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from vlatrack.inference.observation import Interface
from vlatrack.serving.cameras import ObservationReader, Seen
from vlatrack.serving.latency import Latencies
from vlatrack.serving.worker import Frame, InferenceWorker


@dataclass(frozen=True)
class Service:
    """A policy in the shape in which conversations use it."""

    interface: Interface
    reader: ObservationReader
    worker: InferenceWorker
    latencies: Latencies
    metadata: dict[str, Any]
    """What clients of openpi get first."""
    hello: dict[str, Any]
    """What clients of vla-eval get first."""
    replan_every: int
    """Actions of a chunk that a client of vla-eval gets before the policy is asked again."""


class Memory:
    """The frames of one connection that the policy still sees: those of the last steps of the environment."""

    def __init__(self, history: int) -> None:
        self._frames: deque[Frame] = deque(maxlen=history)

    def add(self, seen: Seen) -> bool:
        """What is seen in this step.

        Returns:
            whether a new episode begins, because the instruction is another one.
        """
        begins = bool(self._frames) and self._frames[-1].observation.instruction != seen.instruction
        if begins or seen.complete:
            self._frames.clear()
        self._frames.extend(map(Frame, seen.moments))
        return begins

    @property
    def frames(self) -> list[Frame]:
        """The oldest first."""
        return list(self._frames)

    def forget(self) -> None:
        """A new episode begins."""
        self._frames.clear()
