"""All runs of a folder at a glance: how they stand and what their trackers still lack; reads only the ends of files."""

import os
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.delivery.report import BackendDelivery, delivery_report, labels_of
from vlatrack.tracking.journal.history import RunStatus, run_status
from vlatrack.tracking.journal.journal import finish_record, last_record
from vlatrack.tracking.lock import Holder, lease_holder, lock_holder
from vlatrack.tracking.run_files import RunFiles, resolved_path


@dataclass(frozen=True)
class RunOverview:
    """One run; `stale` means that its process is gone and nobody has written its end."""

    run_dir: Path
    status: RunStatus
    stale: bool
    backends: tuple[BackendDelivery, ...]
    writer: Holder | None = None
    """The process that writes it now or, of a stale run, was the last to do so, where that is known."""

    @property
    def is_over(self) -> bool:
        """Whether no process writes it any more."""
        return self.stale or self.writer is None

    @property
    def lacks_something(self) -> bool:
        """Whether its end is missing, or a backend has not got everything."""
        return self.stale or any(share.undelivered for share in self.backends)


@dataclass(frozen=True)
class Unreadable:
    """A run directory that cannot be read, and why."""

    run_dir: Path
    reason: str


def run_overviews(runs: Path) -> list[RunOverview | Unreadable]:
    """Every run `<runs>/<experiment>/<run-id>` by name; TrackerError if the folder is missing or cannot be read."""
    resolved_path(runs)
    if not runs.is_dir():
        what = "not a folder" if runs.exists() else "no such folder"
        raise TrackerError(f"{runs}: {what}; give the folder that holds the runs with --runs")
    if not os.access(runs, os.R_OK | os.X_OK):
        raise TrackerError(f"{runs}: cannot be read; give the folder that holds the runs with --runs")
    return [_overview(journal.parent) for journal in sorted(runs.glob("*/*/journal.jsonl"))]


def _overview(run_dir: Path) -> RunOverview | Unreadable:
    try:
        journal = RunFiles(run_dir).journal
        writer, status = lock_holder(journal), run_status(run_dir)
        shares = delivery_report(run_dir, labels_of(run_dir)).backends
        has_no_end = last_record(journal) is not None and finish_record(journal) is None
        if writer is None and has_no_end:
            return RunOverview(run_dir, status, True, shares, lease_holder(journal))
        return RunOverview(run_dir, status, False, shares, writer)
    except (TrackerError, OSError) as error:
        return Unreadable(run_dir, str(error))
