"""Why a run ended before its time: an error, a signal, or the end of another process that trained with it."""

import signal
import traceback
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import VlatrackError
from vlatrack.runner.directory import RunDirectory
from vlatrack.tracking.backends.base import Status
from vlatrack.tracking.privacy import redact
from vlatrack.training.interruption import REASONS, Interruption, Terminated
from vlatrack.training.process_group import ProcessGroup, RankLostError


@dataclass(frozen=True)
class Ending:
    """What the journal says of a run's end."""

    status: Status
    reason: str
    foreign: bool  # another rank is the reason


def why_it_ended(
    error: BaseException, interruption: Interruption, directory: RunDirectory, group: ProcessGroup
) -> Ending:
    """As rank 0 can tell. An error of its own is the reason; otherwise that of another rank, if one had any.

    torchrun ends all ranks by SIGTERM when one has failed: a signal alone does not say that somebody stopped the run.
    """
    own = _reason(error)
    if not _comes_from_outside(error):
        return Ending("FAILED", own, foreign=False)
    failed = {rank: _first_line(directory.rank_error(rank)) for rank in range(1, group.world_size)}
    if named := [f"rank {rank}: {reason}" for rank, reason in failed.items() if reason is not None]:
        return Ending("FAILED", "; ".join(named), foreign=True)
    stopped = {rank: _first_line(directory.rank_stopped(rank)) for rank in group.lost_ranks()}
    if silent := [str(rank) for rank, reason in stopped.items() if reason is None]:
        reason = f"rank {', '.join(silent)} is gone without a word: killed, or out of memory"
        return Ending("FAILED", reason, foreign=True)
    if not isinstance(error, RankLostError):
        return Ending("KILLED", own, foreign=False)
    if interruption.received is not None:
        return Ending("KILLED", REASONS[interruption.received], foreign=False)
    by_signal = [f"rank {rank}: {reason}" for rank, reason in stopped.items() if reason in REASONS.values()]
    return Ending("KILLED" if by_signal else "FAILED", "; ".join(by_signal) or own, foreign=True)


def keep_traceback(directory: RunDirectory, error: BaseException) -> None:
    """Of the main process's error, if it is none that a user can cause."""
    if not isinstance(error, VlatrackError) and not _comes_from_outside(error):
        (directory.path / "error.txt").write_text(redact("".join(traceback.format_exception(error))))


def leave_reason(directory: RunDirectory, rank: int, error: BaseException) -> None:
    """Write why this rank ends, for rank 0, which keeps the journal, and for people."""
    if _comes_from_outside(error):
        directory.rank_stopped(rank).write_text(_reason(error) + "\n")
        return
    trace = [] if isinstance(error, VlatrackError) else traceback.format_exception(error)
    # Renamed into its place: rank 0 must not read half a line.
    unfinished = directory.rank_error(rank).with_suffix(".partial")
    unfinished.write_text(redact("".join([_reason(error) + "\n", *trace])))
    unfinished.replace(directory.rank_error(rank))


def forget_reasons(directory: RunDirectory) -> None:
    """Of an earlier part of a run that goes on."""
    for pattern in (directory.rank_error("*"), directory.rank_stopped("*")):
        for file in directory.path.glob(pattern.name):
            file.unlink()


def _comes_from_outside(error: BaseException) -> bool:
    return isinstance(error, RankLostError | Terminated | KeyboardInterrupt)


def _reason(error: BaseException) -> str:
    if isinstance(error, Terminated):
        return REASONS[signal.SIGTERM]
    if isinstance(error, KeyboardInterrupt):
        return REASONS[signal.SIGINT]
    if isinstance(error, RankLostError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _first_line(file: Path) -> str | None:
    return file.read_text().partition("\n")[0] if file.exists() else None
