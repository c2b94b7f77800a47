"""What all conversations of a server share, and what each remembers."""

from dataclasses import dataclass
from typing import Any

from vlatrack.inference.lookback import Lookback
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
    fps: float | None = None
    """Env steps of the clients in a second; None: not known, and not needed."""


class Memory:
    """The frames of one connection that the policy still sees: those of the last steps of the environment."""

    def __init__(self, interface: Interface, fps: float | None = None) -> None:
        """
        Args:
            fps: env steps in a second, as of `Lookback`.
        """
        self._past: Lookback[Frame] = Lookback(interface, fps)
        self._counts_steps = interface.deltas is None
        self._given: list[Frame] = []  # all that is to be seen, where a request has it

    def add(self, seen: Seen) -> bool:
        """What is seen in this step.

        Returns:
            whether a new episode begins, because the instruction is another one.
        """
        now, frames = self._past.now, list(map(Frame, seen.moments))
        begins = now is not None and now.observation.instruction != seen.instruction
        if begins or seen.complete:
            self.forget()
        self._given = frames if seen.complete else []
        self._past.add(frames if self._counts_steps else frames[-1:])
        return begins

    @property
    def frames(self) -> list[Frame]:
        """The oldest first."""
        return self._given or self._past.shown()

    def forget(self) -> None:
        """A new episode begins."""
        self._past.clear()
        self._given = []
