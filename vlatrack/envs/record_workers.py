"""The attempts of a recording in worker processes: side by side, and none is lost where a simulator dies."""

from collections.abc import Generator, Sequence

from vlatrack.envs.base import EnvironmentInfo
from vlatrack.envs.record import Demonstration, Trials
from vlatrack.envs.watched import (
    ATTEMPTS,
    EPISODES_PER_WORKER,
    Simulator,
    WatchedWorker,
    opened,
    raise_refused,
    wait_for_answers,
)
from vlatrack.envs.worker import Failed, Opened, Tried, Try
from vlatrack.errors import DataError, SimulatorError

_AHEAD = 2
"""Attempts for each worker that may wait for an earlier one; they hold their images in memory."""


class AttemptsInWorkers:
    """`Attempts` at the tasks of a simulator. What comes of them does not depend on the number of workers.

    An attempt whose worker dies, hangs or raises is made again in a new one.
    """

    def __init__(self, simulator: Simulator, *, workers: int = 1) -> None:
        """
        Raises:
            VlatrackError: a mistake of the user, the simulator does not start, or it has no scripted expert.
        """
        self._places = [_Place(simulator) for _ in range(workers)]
        try:
            there = self._places[0].open()
            if not there.has_expert:
                raise DataError(
                    f"{simulator.name}: has no scripted expert to record; give the class a method expert_action"
                )
        except BaseException:
            self.close()
            raise
        self._info, self._tasks = there.info, there.tasks
        self.source = there.source
        """See `Opened`: of the simulator's class."""

    @property
    def info(self) -> EnvironmentInfo:
        return self._info

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def of(self, trial: Trials, first: int = 0) -> Generator[Sequence[Demonstration]]:
        """The attempts in the order of their numbers, from the number `first` on.

        Raises:
            VlatrackError: a mistake of the user that the simulator finds, or one attempt broke it again and again.
        """
        ahead, made = trial.numbers(first), dict[int, Tried | SimulatorError]()
        for number in trial.numbers(first):
            while number not in made:
                for place in self._places:
                    free = place.request is None and len(made) < _AHEAD * len(self._places)
                    if free and (following := next(ahead, None)) is not None:
                        place.begin(Try(trial, following))
                made |= self._heard(trial)
            tried = made.pop(number)
            if isinstance(tried, SimulatorError):  # now, as with one worker: an attempt ahead may not be needed
                raise tried
            yield tried.found

    def _heard(self, trial: Trials) -> dict[int, Tried | SimulatorError]:
        """Wait for answers: what came of attempts, by their numbers. Those of an earlier trial are not needed."""
        made: dict[int, Tried | SimulatorError] = {}
        busy = [place.worker for place in self._places if place.worker is not None and place.worker.is_asked]
        answered = wait_for_answers(busy)
        for place in self._places:
            if place.worker in answered and (tried := place.hear()) is not None:
                request, place.request = place.request, None
                assert request is not None, "who answers was asked"
                if request.trial == trial:
                    made[request.number] = tried
        return made

    def close(self) -> None:
        """End the workers."""
        for place in self._places:
            place.close()


class _Place:
    """A place for one worker, and the attempt that it makes."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self.worker: WatchedWorker | None = None
        self.request: Try | None = None
        self._broken = self._made = 0  # workers over this attempt, and attempts of this worker

    def open(self) -> Opened:
        """Start the worker, and wait for it."""
        self.worker, self._made = WatchedWorker(self._simulator), 0
        return opened(self.worker)

    def begin(self, request: Try) -> None:
        """Ask for an attempt; a new worker answers to its start first, and is asked then."""
        self.request, self._broken = request, 0
        if self._made == EPISODES_PER_WORKER:
            self.close()
        self._ask()

    def hear(self) -> Tried | SimulatorError | None:
        """Take the worker's answer: what came of the attempt, or None where it is not over."""
        assert self.worker is not None, "who answers is there"
        answer = self.worker.answer()
        raise_refused(answer)
        if isinstance(answer, Tried):
            self._made += 1
            return answer
        if isinstance(answer, Failed):
            return self._begin_again(answer.text)
        assert isinstance(answer, Opened), answer
        self._ask()
        return None

    def close(self) -> None:
        """End the worker; one that is not in the middle of something may close its simulator."""
        if self.worker is not None and not self.worker.is_asked:
            self.worker.close()
        elif self.worker is not None:
            self.worker.kill()
        self.worker = None

    def _ask(self) -> None:
        if self.worker is None:
            self.worker, self._made = WatchedWorker(self._simulator), 0
        else:
            assert self.request is not None, "for something"
            self.worker.ask(self.request)

    def _begin_again(self, reason: str) -> SimulatorError | None:
        """Ask a new worker for the same attempt; the error if that was done too often."""
        assert self.worker is not None, "which has broken"
        assert self.request is not None, "over something"
        self.worker.kill()
        self.worker, self._broken = None, self._broken + 1
        if self._broken == ATTEMPTS:
            return SimulatorError(
                f"{self._simulator.name}: attempt {self.request.number} at {self.request.trial.task} broke {ATTEMPTS} "
                f"workers ({reason}); does the simulator work by itself?"
            )
        self._ask()
        return None
