"""Why a run ended before its time: an error, a signal, or the end of another process that trained with it."""

import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from vlatrack.errors import VlatrackError
from vlatrack.runner.directory import RunDirectory
from vlatrack.tracking.backends.base import Status
from vlatrack.tracking.privacy import redact
from vlatrack.training.ranks import RankLostError, Ranks

TERMINATED = 143
_SIGNALLED = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "interrupted from the keyboard"}


class Terminated(BaseException):
    """SIGTERM arrived: the run ends as KILLED."""


class StopSignals:
    """SIGTERM (a cluster's, a container's or torchrun's way to stop a run) as an exception meanwhile.

    Once ``ending`` is set, a signal interrupts no more: the end of the run must reach its journal. In one process alone
    Ctrl-C keeps its usual meaning, also twice; of several, torchrun hands it on once, perhaps into an exchange that
    already fails because another process had it first.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ending = False
        self.received: str | None = None
        self._watched = [signal.SIGTERM] if ranks.count == 1 else [signal.SIGTERM, signal.SIGINT]

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._arrived) for number in self._watched}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, Terminated):
            raise SystemExit(TERMINATED)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or _SIGNALLED[signal.Signals(number)]
        if not self.ending:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@dataclass(frozen=True)
class Ending:
    """What the journal says of a run's end."""

    status: Status
    reason: str
    foreign: bool  # another rank is the reason


def why_it_ended(error: BaseException, signals: StopSignals, directory: RunDirectory, ranks: Ranks) -> Ending:
    """As the first rank can tell. An error of its own is the reason; otherwise that of another rank, if one had any.

    torchrun ends all ranks by SIGTERM when one has failed: a signal alone does not say that somebody stopped the run.
    """
    own = _reason(error)
    if not _comes_from_outside(error):
        return Ending("FAILED", own, foreign=False)
    failed = {number: _first_line(directory.rank_error(number)) for number in range(1, ranks.count)}
    if named := [f"rank {number}: {reason}" for number, reason in failed.items() if reason is not None]:
        return Ending("FAILED", "; ".join(named), foreign=True)
    stopped = {number: _first_line(directory.rank_stopped(number)) for number in ranks.gone()}
    if silent := [str(number) for number, reason in stopped.items() if reason is None]:
        reason = f"rank {', '.join(silent)} is gone without a word: killed, or out of memory"
        return Ending("FAILED", reason, foreign=True)
    if not isinstance(error, RankLostError):
        return Ending("KILLED", own, foreign=False)
    if signals.received is not None:
        return Ending("KILLED", signals.received, foreign=False)
    by_signal = [f"rank {n}: {reason}" for n, reason in stopped.items() if reason in _SIGNALLED.values()]
    return Ending("KILLED" if by_signal else "FAILED", "; ".join(by_signal) or own, foreign=True)


def keep_traceback(directory: RunDirectory, error: BaseException) -> None:
    """Of the first rank's error, if it is none that a user can cause."""
    if not isinstance(error, VlatrackError) and not _comes_from_outside(error):
        (directory.path / "error.txt").write_text(redact("".join(traceback.format_exception(error))))


def leave_reason(directory: RunDirectory, number: int, error: BaseException) -> None:
    """Write why rank ``number`` ends, for the first one, which keeps the journal, and for people."""
    if _comes_from_outside(error):
        directory.rank_stopped(number).write_text(_reason(error) + "\n")
        return
    trace = [] if isinstance(error, VlatrackError) else traceback.format_exception(error)
    # Renamed into its place: the first rank must not read half a line.
    unfinished = directory.rank_error(number).with_suffix(".partial")
    unfinished.write_text(redact("".join([_reason(error) + "\n", *trace])))
    unfinished.replace(directory.rank_error(number))


def forget_reasons(directory: RunDirectory) -> None:
    """Of an earlier part of a run that goes on."""
    for pattern in (directory.rank_error("*"), directory.rank_stopped("*")):
        for file in directory.path.glob(pattern.name):
            file.unlink()


def _comes_from_outside(error: BaseException) -> bool:
    return isinstance(error, RankLostError | Terminated | KeyboardInterrupt)


def _reason(error: BaseException) -> str:
    if isinstance(error, Terminated):
        return _SIGNALLED[signal.SIGTERM]
    if isinstance(error, KeyboardInterrupt):
        return _SIGNALLED[signal.SIGINT]
    if isinstance(error, RankLostError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _first_line(file: Path) -> str | None:
    return file.read_text().partition("\n")[0] if file.exists() else None
