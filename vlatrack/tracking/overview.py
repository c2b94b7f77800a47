"""All runs of a folder at a glance: how they stand and what their trackers still lack; reads only the ends of files."""

from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.delivery.report import BackendDelivery, delivery_report, labels_of
from vlatrack.tracking.journal.history import RunStatus, run_status
from vlatrack.tracking.journal.journal import finish_record, is_being_written, last_record
from vlatrack.tracking.run_files import RunFiles


@dataclass(frozen=True)
class RunOverview:
    """One run; `stale` means that its process is gone and nobody has written its end."""

    run_dir: Path
    status: RunStatus
    stale: bool
    backends: tuple[BackendDelivery, ...]

    @property
    def is_over(self) -> bool:
        """Whether no process writes it any more."""
        return self.status.status != "RUNNING"

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
    """Every run `<runs>/<experiment>/<run-id>` by name; TrackerError if there is no such folder."""
    if not runs.is_dir():
        raise TrackerError(f"{runs}: no such folder; give the folder that holds the runs with --runs")
    return [_overview(journal.parent) for journal in sorted(runs.glob("*/*/journal.jsonl"))]


def _overview(run_dir: Path) -> RunOverview | Unreadable:
    try:
        status = run_status(run_dir)
        return RunOverview(run_dir, status, _is_stale(run_dir), delivery_report(run_dir, labels_of(run_dir)).backends)
    except (TrackerError, OSError) as error:
        return Unreadable(run_dir, str(error))


def _is_stale(run_dir: Path) -> bool:
    journal = RunFiles(run_dir).journal
    has_begun = last_record(journal) is not None
    return has_begun and finish_record(journal) is None and not is_being_written(journal)
