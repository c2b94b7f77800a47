"""Signals that a training heeds: SIGTERM and Ctrl-C end it with a checkpoint, SIGUSR1 saves one and goes on."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Self

from vlatrack.training.process_group import ProcessGroup

TERMINATED = 143
"""Exit code after SIGTERM, as a shell shows it."""

GRACE_S = 20.0
"""A step and a checkpoint may take so long after the signal. Slurm and Kubernetes kill after 30 s, Docker after 10."""

REASONS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "interrupted from the keyboard"}


class Terminated(BaseException):
    """SIGTERM arrived: the run ends as KILLED."""


class Interruption:
    """Turns signals into requests that a training answers between two steps, and into exceptions elsewhere.

    While `deferred`, the first SIGTERM or SIGINT only asks for a checkpoint and the end; `GRACE_S` later, or at a
    second signal, it is raised like anywhere else. Once `ending` is set, a signal interrupts no more, since the end of
    the run must reach its journal; only Ctrl-C in a process alone still does.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.deferred = False
        self.ending = False
        self.received: signal.Signals | None = None
        self._checkpoint_wanted = False
        self._is_alone = group.world_size == 1

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            handlers = {
                signal.SIGTERM: self._stop,
                signal.SIGINT: self._stop,
                signal.SIGUSR1: self._want_checkpoint,
                signal.SIGALRM: self._grace_is_over,
            }
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, Terminated):
            raise SystemExit(TERMINATED)

    @property
    def stop_wanted(self) -> bool:
        """Whether a signal asked this process to end."""
        return self.received is not None

    def requests(self) -> list[float]:
        """What the signals so far ask for: a checkpoint, the end by SIGTERM, the end by Ctrl-C; 1 for yes.

        Summed over the processes, they say what all of them do after this step.
        """
        wanted, self._checkpoint_wanted = self._checkpoint_wanted, False
        return [float(wanted), float(self.received == signal.SIGTERM), float(self.received == signal.SIGINT)]

    def heed(self, requests: Sequence[float]) -> bool:
        """Take over what any process was asked for; whether a checkpoint is wanted."""
        wants_checkpoint, terminated, interrupted = (count > 0 for count in requests)
        if terminated or interrupted:
            self.received = self.received or (signal.SIGTERM if terminated else signal.SIGINT)
        return wants_checkpoint or self.stop_wanted

    def raise_if_stopped(self) -> None:
        """Raise what the signal stands for: Terminated or KeyboardInterrupt."""
        if self.received is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Terminated if self.received == signal.SIGTERM else KeyboardInterrupt

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
        # Of several processes torchrun tells each one once more; that is no wish to end without a checkpoint.
        if self._is_alone or not self.deferred:
            self.raise_if_stopped()

    def _grace_is_over(self, number: int, frame: FrameType | None) -> None:
        if not self.ending:
            self.raise_if_stopped()

    def _want_checkpoint(self, number: int, frame: FrameType | None) -> None:
        self._checkpoint_wanted = True
