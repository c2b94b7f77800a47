"""One episode of a policy: it remembers what was seen, and turns action chunks into one action for each step."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import SpecError
from vlatrack.inference.lookback import Lookback
from vlatrack.inference.observation import Observation
from vlatrack.inference.policy import ChunkPolicy, Moment, Route


@dataclass(frozen=True)
class Execution:
    """How chunks become actions."""

    replan_every: int | None = None
    """Steps after which a new chunk is asked for; None: when a chunk is used up."""
    ensemble: float | None = None
    """Temporal ensembling (ACT, Zhao et al. 2023): a chunk for each step, and as the action the mean of what all chunks
    say about that step, the oldest with weight 1 and each later one with exp(-ensemble) times the one before."""

    def check(self, horizon: int) -> None:
        """Raise SpecError for what a policy with chunks of ``horizon`` steps cannot do."""
        if self.replan_every is not None and not 1 <= self.replan_every <= horizon:
            raise SpecError(
                f"replan_every: {self.replan_every}, but a chunk has {horizon} steps; choose 1 to {horizon}"
            )
        if self.ensemble is not None and self.replan_every not in (None, 1):
            raise SpecError("ensemble: asks for a chunk in each step; leave out replan_every")
        if self.ensemble is not None and self.ensemble < 0:
            raise SpecError(f"ensemble: {self.ensemble} would weigh newer chunks more without bound; use 0 or more")


WHOLE_CHUNK = Execution()


class Session:
    """A policy in one episode, step by step."""

    def __init__(
        self,
        policy: ChunkPolicy,
        *,
        route: Route = "head",
        execution: Execution = WHOLE_CHUNK,
        fps: float | None = None,
    ) -> None:
        """
        Args:
            fps: env steps in a second, which a policy needs that was trained with `data.history_deltas`.

        Raises:
            SpecError: the policy's chunks cannot be executed that way, or it cannot see what it was trained on.
        """
        execution.check(policy.interface.horizon)
        self._policy, self._route, self._execution = policy, route, execution
        self._moments: Lookback[Moment] = Lookback(policy.interface, fps)
        self._chunks: deque[NDArray[np.float64]] = deque(maxlen=1 if execution.ensemble is None else None)
        self._step = 0  # of the newest chunk

    def reset(self) -> None:
        """Forget everything: a new episode begins."""
        self._moments.clear()
        self._chunks.clear()
        self._step = 0

    def act(self, observation: Observation) -> NDArray[np.float64]:
        """The action [A] of this step, in the units of the training data. Call it once in each step of the environment.

        Raises:
            ObservationError: the observation is not what the policy was trained on.
        """
        self.see(observation)
        if self.wants_chunk:
            (chunk,) = self._policy.act_on([self.moments], route=self._route)
            self.take(chunk.actions)
        return self._next_action()

    def see(self, observation: Observation) -> None:
        """Remember the observation of a step without acting on it yet.

        Raises:
            ObservationError: the observation is not what the policy was trained on.
        """
        self._moments.add([self._policy.see(observation)])

    @property
    def moments(self) -> list[Moment]:
        """What a new chunk is to be based on, the oldest first: one row of `ChunkPolicy.act_on`."""
        return self._moments.shown()

    @property
    def wants_chunk(self) -> bool:
        """Whether the next action needs a new chunk."""
        if not self._chunks or self._execution.ensemble is not None:
            return True
        return self._step >= (self._execution.replan_every or self._policy.interface.horizon)

    def take(self, actions: NDArray[np.float64]) -> None:
        """Go on with a new chunk [H, A], whose first action is that of this step."""
        self._chunks.append(actions)
        self._step = 0

    def planned(self) -> NDArray[np.float64]:
        """The actions [k, A] from this step until the next chunk is wanted; they count as executed."""
        actions = [self._next_action()]
        while not self.wants_chunk:
            actions.append(self._next_action())
        return np.stack(actions)

    def _next_action(self) -> NDArray[np.float64]:
        if self._execution.ensemble is None:
            action: NDArray[np.float64] = self._chunks[-1][self._step]
            self._step += 1
            return action
        if len(self._chunks) > self._policy.interface.horizon:
            self._chunks.popleft()
        ages = range(len(self._chunks) - 1, -1, -1)  # the oldest chunk says its last about this step
        said = np.stack([chunk[age] for age, chunk in zip(ages, self._chunks, strict=True)])
        weights = np.exp(-self._execution.ensemble * np.arange(len(said)))
        mixed: NDArray[np.float64] = np.average(said, axis=0, weights=weights)
        return mixed
