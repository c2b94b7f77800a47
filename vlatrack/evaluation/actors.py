"""Who acts in the episodes of an evaluation: a policy, or the simulator's scripted expert.

Legend: A = numbers in an action, k = env steps until the next decision.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlatrack.envs.base import Observation as Seen
from vlatrack.errors import NoAnswerError, ObservationError
from vlatrack.evaluation.conventions import AS_RENDERED, Gripper, ImageSteps, gripper_command
from vlatrack.inference.observation import Interface, Observation
from vlatrack.inference.policy import ChunkPolicy, Route
from vlatrack.inference.session import Execution, Session

EXPERT_STRETCH = 20
"""Env steps for which the expert is asked at once."""


@dataclass(frozen=True)
class Decision:
    """What to do next in one episode."""

    actions: NDArray[np.float32] | int  # [k, A]; or the steps in which the scripted expert acts
    seconds: float | None  # that it took, for all that decided together; None: nobody had to wait for it


@dataclass(frozen=True)
class Undecided:
    """No fault of the policy: the simulator shows what cannot be, such as a state that is not finite, or a server has
    not answered."""

    reason: str


@dataclass
class Turn:
    """An episode that waits for a decision."""

    session: Session | None
    observations: Sequence[Seen]  # that are new since its last decision, the oldest first


class Actor(Protocol):
    """Decides what to do; several episodes are going on at the same time."""

    seen: int
    """The observations before a decision whose images it looks at."""

    def session(self) -> Session | None:
        """What it remembers of one episode, which begins now."""

    def decide(self, turns: Sequence[Turn]) -> Sequence[Decision | Undecided]:
        """What to do in each."""


class Expert:
    """The scripted expert, which acts inside the simulator."""

    seen = 1  # for the videos

    def session(self) -> None:
        """It remembers nothing here."""

    def decide(self, turns: Sequence[Turn]) -> list[Decision]:
        """Let it go on."""
        return [Decision(EXPERT_STRETCH, None) for _ in turns]


@dataclass(frozen=True)
class View:
    """How the policy sees the simulator."""

    cameras: Mapping[str, str]  # camera of the simulator: camera of the policy
    rotated: bool  # by 180 degrees
    blind: bool  # black images
    images: ImageSteps = AS_RENDERED

    def of(self, seen: Seen, interface: Interface) -> Observation:
        """The observation in the policy's terms. What it lacks altogether is filled with zeros: `misfits` has told."""
        images = {}
        for camera, name in self.cameras.items():
            if camera not in seen.images:
                continue
            image = self.images(seen.images[camera][::-1, ::-1] if self.rotated else seen.images[camera])
            images[name] = np.zeros_like(image) if self.blind else image
        for name in interface.cameras:
            images.setdefault(name, np.zeros((64, 64, 3), np.uint8))
        state = None if interface.state_dim is None else fitted(seen.state, interface.state_dim)
        return Observation(images, seen.instruction, state)


class PolicyActor:
    """A policy.

    Args:
        gripper: see `gripper_command`.
        fps: env steps in a second, which a policy needs that was trained with `data.history_deltas`.
        together: decide for all waiting episodes in one forward pass. One after another, a decision does not depend in
            its last bits on which episodes wait at the same time.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        view: View,
        *,
        action_dim: int,
        route: Route,
        execution: Execution,
        together: bool,
        gripper: Gripper = "raw",
        fps: float | None = None,
    ) -> None:
        self._fps = fps
        self.seen = policy.interface.steps_back(fps)[0] + 1
        self._policy, self._view, self._action_dim = policy, view, action_dim
        self._route, self._execution, self._together, self._gripper = route, execution, together, gripper

    def session(self) -> Session:
        """A session of the policy."""
        return Session(self._policy, route=self._route, execution=self._execution, fps=self._fps)

    def decide(self, turns: Sequence[Turn]) -> list[Decision | Undecided]:
        """The actions until the next chunk is due."""
        batches = [list(turns)] if self._together else [[turn] for turn in turns]
        return [decision for batch in batches for decision in self._decide(batch)]

    def _decide(self, turns: Sequence[Turn]) -> list[Decision | Undecided]:
        start = time.perf_counter()
        seeing = [self._see(turn) for turn in turns]
        sessions = [session for session in seeing if isinstance(session, Session)]
        if not sessions:
            return [session for session in seeing if isinstance(session, Undecided)]
        try:
            chunks = self._policy.act_on([session.moments for session in sessions], route=self._route)
        except NoAnswerError as error:
            return [Undecided(str(error)) for _ in turns]
        seconds = time.perf_counter() - start
        for session, chunk in zip(sessions, chunks, strict=True):
            session.take(chunk.actions)
        return [self._planned(session, seconds) if isinstance(session, Session) else session for session in seeing]

    def _see(self, turn: Turn) -> Session | Undecided:
        assert turn.session is not None, "of this actor, each episode has a session"
        try:
            for seen in turn.observations:
                turn.session.see(self._view.of(seen, self._policy.interface))
        except ObservationError as error:
            return Undecided(str(error))
        return turn.session

    def _planned(self, session: Session, seconds: float) -> Decision:
        actions = gripper_command(fitted(session.planned(), self._action_dim), self._gripper)
        return Decision(actions.astype(np.float32), seconds)


def fitted(values: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    """Values [..., n] cut, or filled with zeros, to [..., size]; as they are if they fit."""
    if values.shape[-1] >= size:
        return values[..., :size]
    missing = [(0, 0)] * (values.ndim - 1) + [(0, size - values.shape[-1])]
    return np.pad(values, missing)
