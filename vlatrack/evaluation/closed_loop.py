"""Runs the episodes of an evaluation on parallel simulators, each in a watched worker process.

An episode whose worker dies, hangs or raises says nothing about the policy: it is begun again, with the same identity,
in a new worker, and is an error if that happens to it too often.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.envs.base import Observation
from vlatrack.envs.watched import (
    ATTEMPTS,
    EPISODES_PER_WORKER,
    Simulator,
    WatchedWorker,
    raise_refused,
    wait_for_answers,
)
from vlatrack.envs.worker import Act, Answer, Begin, Failed, Opened, Stretch
from vlatrack.evaluation.actors import Actor, Decision, Turn, Undecided
from vlatrack.evaluation.episodes import EpisodeId, Outcome


@dataclass(frozen=True)
class PlannedEpisode:
    """An episode that is to be run."""

    number: int  # its place in the set
    id: EpisodeId
    begin: Begin


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode ended."""

    episode: PlannedEpisode
    outcome: Outcome
    steps: int  # env steps in which the policy acted
    reward: float  # their sum
    latencies: tuple[float, ...]  # seconds of each decision
    frames: tuple[NDArray[np.uint8], ...]  # what the first camera showed before each decision
    reason: str = ""  # of an error


@dataclass
class TimeSpent:
    """Where the wall-clock time of episodes went, in seconds."""

    total: float = 0.0
    simulating: float = 0.0  # while no episode waited for the policy


@dataclass
class _Progress:
    """One attempt at an episode."""

    turn: Turn
    steps: int = 0
    reward: float = 0.0
    latencies: list[float] = field(default_factory=list)
    frames: list[NDArray[np.uint8]] = field(default_factory=list)


class _Place:
    """A place for one worker, and the episode that runs in it."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self.worker: WatchedWorker | None = None
        self.episode: PlannedEpisode | None = None
        self.progress: _Progress | None = None  # None until the episode's first observation is there
        self._attempts = self._episodes = 0

    def begin(self, episode: PlannedEpisode) -> None:
        """Ask for a new episode."""
        self.episode, self.progress, self._attempts = episode, None, 1
        self._start()

    def begin_again(self) -> bool:
        """Ask for the same episode in a new worker; false if that was done too often."""
        self.end()
        if self._attempts == ATTEMPTS:
            return False
        self._attempts, self.progress = self._attempts + 1, None
        self._start()
        return True

    def end(self) -> None:
        """End the worker at once."""
        if self.worker is not None:
            self.worker.kill()
        self.worker = None

    def close(self) -> None:
        """Let a worker that is not in the middle of something close its simulator."""
        if self.worker is not None and not self.worker.is_asked:
            self.worker.close()
            self.worker = None
        self.end()

    def _start(self) -> None:
        """A new worker answers to its start first, and is asked for the episode then."""
        if self.worker is not None and self._episodes == EPISODES_PER_WORKER:
            self.close()
        if self.worker is None:
            self.worker, self._episodes = WatchedWorker(self._simulator), 0
        else:
            self.ask_for_episode()

    def ask_for_episode(self) -> None:
        assert self.worker is not None, "somebody has to be asked"
        assert self.episode is not None, "for something"
        self._episodes += 1
        self.worker.ask(self.episode.begin)


class ClosedLoop:
    """The episodes of an evaluation, one after another in each of several workers."""

    def __init__(
        self,
        simulator: Simulator,
        actor: Actor,
        *,
        max_steps: int,
        camera: str | None,
        rotated: bool = False,
        workers: int = 1,
    ) -> None:
        """
        Args:
            max_steps: env steps without success after which an episode is a failure.
            camera: of the simulator, whose images are kept for a video.
            rotated: by 180 degrees, which the video has as the policy.
        """
        self._actor, self._max_steps, self._camera, self._rotated = actor, max_steps, camera, rotated
        self._places = [_Place(simulator) for _ in range(workers)]
        self._waiting: Iterator[PlannedEpisode] = iter(())
        self.spent = TimeSpent()
        self._on_result: Callable[[EpisodeResult], None] = lambda result: None

    def run(self, episodes: Iterable[PlannedEpisode], on_result: Callable[[EpisodeResult], None]) -> None:
        """Run all episodes, and tell of each when it has ended; ends the workers whatever happens.

        The next episode is only looked for when a worker is free.

        Raises:
            VlatrackError: a mistake of the user that the simulator finds, such as an unknown camera.
        """
        self._waiting, self._on_result = iter(episodes), on_result
        began = time.perf_counter()
        try:
            self._fill()
            while busy := [place.worker for place in self._places if place.worker and place.worker.is_asked]:
                asked = time.perf_counter()
                answered = wait_for_answers(busy)
                self.spent.simulating += time.perf_counter() - asked
                heard = [place for place in self._places if place.worker in answered]
                deciding = [place for place in heard if self._hear(place)]
                self._decide(deciding)
                self._fill()
            for place in self._places:
                place.close()
        finally:
            for place in self._places:
                place.end()
            self.spent.total += time.perf_counter() - began

    def _fill(self) -> None:
        for place in self._places:
            if place.episode is None and (episode := next(self._waiting, None)) is not None:
                place.begin(episode)

    def _hear(self, place: _Place) -> bool:
        """Take a worker's answer; whether its episode goes on and needs a decision."""
        assert place.worker is not None, "who answers is there"
        answer: Answer = place.worker.answer()
        raise_refused(answer)
        if isinstance(answer, Opened):
            place.ask_for_episode()
            return False
        if isinstance(answer, Failed):
            self._broken(place, answer.text)
            return False
        assert isinstance(answer, Stretch), answer
        if place.progress is None:
            place.progress = _Progress(Turn(self._actor.session(), answer.observations))
        progress = place.progress
        progress.steps += answer.steps
        progress.reward += answer.reward
        progress.turn.observations = answer.observations
        if answer.success or answer.done or progress.steps >= self._max_steps:
            self._ended(place, "success" if answer.success else "failure")
            return False
        self._keep_frame(progress, answer.observations[-1])
        return True

    def _decide(self, places: Sequence[_Place]) -> None:
        """Ask for the next stretch of each episode that goes on."""
        if not places:
            return
        turns = [place.progress.turn for place in places if place.progress is not None]
        for place, decision in zip(places, self._actor.decide(turns), strict=True):
            if isinstance(decision, Undecided):
                self._broken(place, decision.reason)
            else:
                self._carry_out(place, decision)

    def _carry_out(self, place: _Place, decision: Decision) -> None:
        assert place.worker is not None, "an episode that goes on has a worker"
        assert place.progress is not None, "and a beginning"
        left, actions = self._max_steps - place.progress.steps, decision.actions
        if decision.seconds is not None:
            place.progress.latencies.append(decision.seconds)
        if isinstance(actions, int):
            place.worker.ask(Act(min(actions, left), seen=self._actor.seen))
        elif np.isfinite(actions).all():
            place.worker.ask(Act(actions[:left], seen=self._actor.seen))
        else:
            self._ended(place, "failure")  # a policy without an action has failed

    def _keep_frame(self, progress: _Progress, observation: Observation) -> None:
        if self._camera is not None and self._camera in observation.images:
            image = observation.images[self._camera]
            progress.frames.append(image[::-1, ::-1] if self._rotated else image)

    def _broken(self, place: _Place, reason: str) -> None:
        if not place.begin_again():
            self._ended(place, "error", reason)

    def _ended(self, place: _Place, outcome: Outcome, reason: str = "") -> None:
        episode, progress = place.episode, place.progress
        assert episode is not None, "only an episode ends"
        place.episode = place.progress = None
        kept: dict[str, Any] = {"steps": 0, "reward": 0.0, "latencies": (), "frames": ()}
        if progress is not None and outcome != "error":
            kept = {
                "steps": progress.steps,
                "reward": progress.reward,
                "latencies": tuple(progress.latencies),
                "frames": tuple(progress.frames),
            }
        self._on_result(EpisodeResult(episode, outcome, **kept, reason=reason))
