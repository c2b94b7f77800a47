"""Signals during training: SIGTERM, SIGUSR1, SIGHUP and Ctrl-C save a checkpoint and end it, SIGUSR2 saves one and goes
on."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Self

from vlatrack.training.process_group import ProcessGroup

REASONS = {
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1, the end of the job is near",
    signal.SIGHUP: "SIGHUP, the terminal was closed",
    signal.SIGINT: "interrupted from the keyboard",
}


class Terminated(BaseException):
    """SIGTERM, SIGUSR1 or SIGHUP was received: the run ends as KILLED."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Interruption:
    """Turns signals into requests that the training loop handles between steps, and into exceptions elsewhere.

    While `deferred`, the first signal that ends only requests a checkpoint and the end; after the grace, or at a
    further Ctrl-C in a single process, the exception is raised as it is elsewhere. Once `ending` is set, signals are
    ignored so that the end of the run reaches its journal, except for Ctrl-C in a single process.
    """

    def __init__(self, group: ProcessGroup, *, grace_s: float = 25.0) -> None:
        """`grace_s`: seconds that a step and a checkpoint may take after a signal."""
        self._group, self._grace_s = group, grace_s
        self.deferred = False
        self.ending = False
        self.received: signal.Signals | None = None
        self._is_agreed = False  # all ranks know by now that they end, and after which step
        self._checkpoint_wanted = False
        self._is_alone = group.world_size == 1

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            handlers = {
                signal.SIGTERM: self._stop,
                signal.SIGUSR1: self._stop,
                signal.SIGINT: self._stop,
                signal.SIGHUP: self._stop,
                signal.SIGUSR2: self._want_checkpoint,
                signal.SIGALRM: self._grace_is_over,
            }
            if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
                del handlers[signal.SIGHUP]
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, Terminated):
            raise SystemExit(128 + error.number)  # as a shell shows it

    @property
    def is_stopping(self) -> bool:
        """Whether a signal asked for the end, and all ranks know of it."""
        return self.received is not None and (self._is_agreed or self._is_alone)

    def take_requests(self) -> list[float]:
        """What signals have asked of this rank (1 or 0): a checkpoint, the end by a signal, the end by Ctrl-C.

        Their sums over all ranks go to `apply_requests`, so that all ranks act after the same step.
        """
        wanted, self._checkpoint_wanted = self._checkpoint_wanted, False
        return [float(wanted), *self._stop_requests()]

    def _stop_requests(self) -> list[float]:
        terminated = self.received is not None and self.received != signal.SIGINT
        return [float(terminated), float(self.received == signal.SIGINT)]

    def agree_to_stop(self) -> bool:
        """Whether any rank was asked to end, where no checkpoint can be saved, as in an evaluation. All ranks call
        this."""
        return self.apply_requests([0.0, *self._group.sum(self._stop_requests())])

    def apply_requests(self, requests: Sequence[float]) -> bool:
        """Adopt what any rank was asked for, given the sums over all ranks; returns whether to save a checkpoint."""
        wants_checkpoint, terminated, interrupted = (count > 0 for count in requests)
        if terminated or interrupted:
            self.received = self.received or (signal.SIGTERM if terminated else signal.SIGINT)
            self._is_agreed = True
        # Not what this rank has received since: the others would not save along, and wait in another exchange for ever.
        return wants_checkpoint or terminated or interrupted

    def raise_if_stopped(self) -> None:
        """Raise Terminated or KeyboardInterrupt if a signal asked for the end, once all ranks know of it."""
        if self.is_stopping:
            self._raise_if_received()

    def _raise_if_received(self) -> None:
        if self.received is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt if self.received == signal.SIGINT else Terminated(self.received)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        self.received = self.received or signal.Signals(number)
        if self.ending:
            if number == signal.SIGINT and self._is_alone:
                raise KeyboardInterrupt
            return
        if self.deferred and is_first:
            signal.setitimer(signal.ITIMER_REAL, self._grace_s)
            return
        # torchrun forwards the signal to every rank again, and scripts and sweeps do so with what Slurm has sent to all
        # processes of a job: that must not end them without a checkpoint. Who presses Ctrl-C again means it.
        if not self.deferred or (self._is_alone and number == signal.SIGINT):
            self._raise_if_received()

    def _grace_is_over(self, number: int, frame: FrameType | None) -> None:
        if not self.ending:
            self._raise_if_received()

    def _want_checkpoint(self, number: int, frame: FrameType | None) -> None:
        self._checkpoint_wanted = True
