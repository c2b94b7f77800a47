"""Signals during training: SIGTERM, SIGHUP and Ctrl-C save a checkpoint and end it, SIGUSR1 saves one and continues."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Self

from vlatrack.training.process_group import ProcessGroup

GRACE_S = 20.0
"""Seconds that a step and a checkpoint may take after a signal. Slurm and Kubernetes kill after 30, Docker after 10."""

REASONS = {
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP, the terminal was closed",
    signal.SIGINT: "interrupted from the keyboard",
}


class Terminated(BaseException):
    """SIGTERM or SIGHUP was received: the run ends as KILLED."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Interruption:
    """Turns signals into requests that the training loop handles between steps, and into exceptions elsewhere.

    While `deferred`, the first SIGTERM, SIGHUP or SIGINT only requests a checkpoint and the end; after `GRACE_S`, or at
    a second signal, the exception is raised as it is elsewhere. Once `ending` is set, signals are ignored so that the
    end of the run reaches its journal, except for Ctrl-C in a single process.
    """

    def __init__(self, group: ProcessGroup) -> None:
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
                signal.SIGINT: self._stop,
                signal.SIGHUP: self._stop,
                signal.SIGUSR1: self._want_checkpoint,
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
    def stop_wanted(self) -> bool:
        """Whether a signal asked this process to end."""
        return self.received is not None

    def take_requests(self) -> list[float]:
        """What signals have asked of this rank (1 or 0): a checkpoint, the end by a signal, the end by Ctrl-C.

        Their sums over all ranks go to `apply_requests`, so that all ranks act after the same step.
        """
        wanted, self._checkpoint_wanted = self._checkpoint_wanted, False
        terminated = self.received is not None and self.received != signal.SIGINT
        return [float(wanted), float(terminated), float(self.received == signal.SIGINT)]

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
        if self._is_agreed or self._is_alone:
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
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)
            return
        # torchrun forwards the signal to every rank again; that must not end them without a checkpoint.
        if self._is_alone or not self.deferred:
            self._raise_if_received()

    def _grace_is_over(self, number: int, frame: FrameType | None) -> None:
        if not self.ending:
            self._raise_if_received()

    def _want_checkpoint(self, number: int, frame: FrameType | None) -> None:
        self._checkpoint_wanted = True
