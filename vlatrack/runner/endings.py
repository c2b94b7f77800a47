"""Why a run ended early: an error, a signal, or the loss of another rank."""

import signal
import traceback
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import VlatrackError
from vlatrack.runner.directory import RunDirectory
from vlatrack.tracking.backends.base import Status
from vlatrack.tracking.journal.encoding import sendable
from vlatrack.tracking.privacy import redact, write_private
from vlatrack.training.callback import StopTraining
from vlatrack.training.interruption import REASONS, Interruption, Terminated
from vlatrack.training.process_group import ProcessGroup, RankLostError


@dataclass(frozen=True)
class Ending:
    """How a run ended, as the journal records it."""

    status: Status
    reason: str | None = None
    from_other_rank: bool = False  # another rank is the reason


def describe_ending(
    error: BaseException, interruption: Interruption, directory: RunDirectory, group: ProcessGroup
) -> Ending:
    """How a run ended, seen from rank 0: by its own error, or else by the error of another rank.

    torchrun sends SIGTERM to all ranks when one fails, so a signal alone does not mean that a user stopped the run.
    """
    own = _reason(error)
    if not _is_external(error):
        return Ending("FAILED", own)
    failed = {rank: _first_line(directory.rank_error(rank)) for rank in range(1, group.world_size)}
    if named := [f"rank {rank}: {reason}" for rank, reason in failed.items() if reason is not None]:
        return Ending("FAILED", "; ".join(named), from_other_rank=True)
    stopped = {rank: _first_line(directory.rank_stopped(rank)) for rank in group.lost_ranks()}
    if silent := [str(rank) for rank, reason in stopped.items() if reason is None]:
        reason = f"rank {', '.join(silent)} disappeared without an error: killed, or out of memory"
        return Ending("FAILED", reason, from_other_rank=True)
    if not isinstance(error, RankLostError):
        return Ending("KILLED", own)
    if interruption.received is not None:
        return Ending("KILLED", REASONS[interruption.received])
    by_signal = [f"rank {rank}: {reason}" for rank, reason in stopped.items() if reason in REASONS.values()]
    return Ending("KILLED" if by_signal else "FAILED", "; ".join(by_signal) or own, from_other_rank=True)


def write_traceback(directory: RunDirectory, error: BaseException) -> None:
    """Write the main process's traceback to error.txt, unless a user's mistake or a signal ended it."""
    if not isinstance(error, VlatrackError) and not _is_external(error):
        write_private(directory.path / "error.txt", sendable(redact("".join(traceback.format_exception(error)))))


def write_reason(directory: RunDirectory, rank: int, error: BaseException) -> None:
    """Write why this rank ends to a file that rank 0, which writes the journal, looks for."""
    if _is_external(error):
        write_private(directory.rank_stopped(rank), sendable(_reason(error) + "\n"))
        return
    trace = [] if isinstance(error, VlatrackError) else traceback.format_exception(error)
    # In one step, so that rank 0 never reads half a line.
    write_private(directory.rank_error(rank), sendable(redact("".join([_reason(error) + "\n", *trace]))))


def remove_reasons(directory: RunDirectory) -> None:
    """Remove what an earlier attempt at a resumed run left."""
    for pattern in (directory.rank_error("*"), directory.rank_stopped("*")):
        for file in directory.path.glob(pattern.name):
            file.unlink()


def _is_external(error: BaseException) -> bool:
    return isinstance(error, RankLostError | StopTraining | Terminated | KeyboardInterrupt)


def _reason(error: BaseException) -> str:
    if isinstance(error, Terminated):
        return REASONS[error.number]
    if isinstance(error, KeyboardInterrupt):
        return REASONS[signal.SIGINT]
    if isinstance(error, RankLostError | StopTraining):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _first_line(file: Path) -> str | None:
    return file.read_text().partition("\n")[0] if file.exists() else None
