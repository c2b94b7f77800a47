"""Delivering what is left of a run whose training is over, and ending runs that died without saying so."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.delivery.report import (
    DeliveryReport,
    copy_without_end,
    delivery_report,
    labels_of,
    targets_of,
)
from vlatrack.tracking.delivery.supervisor import start_worker, stop_worker
from vlatrack.tracking.delivery.worker import BUSY, COMPLETE, LEFT, NONE_REACHABLE, close_as_killed
from vlatrack.tracking.lock import Holder, lock_holder
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import NOTHING, Trust

PATIENCE_S = 60.0
"""How long a sync goes on while no backend takes anything."""
_PROGRESS_INTERVAL_S = 0.2


def chosen_backends(run_dir: Path, backend: str | None) -> list[str]:
    """The labels of a run's backends, or those of one kind (`mlflow`) or label (`mlflow-0`).

    Raises TrackerError if there is no run or it has no such backend.
    """
    if not RunFiles(run_dir).journal.exists():
        raise TrackerError(f"{run_dir}: no run directory (journal.jsonl is missing); give runs/<experiment>/<run-id>")
    labels = labels_of(run_dir)
    chosen = [label for label in labels if backend is None or is_named(label, backend)]
    if backend is not None and not chosen:
        raise TrackerError(f"{run_dir}: has no backend {backend!r}; it has {', '.join(labels) or 'none'}")
    return chosen


def has_backend(run_dir: Path, backend: str) -> bool:
    """Whether a run reports to a backend of this kind or label."""
    return any(is_named(label, backend) for label in labels_of(run_dir))


def sync_run(
    run_dir: Path,
    *,
    backend: str | None = None,
    patience_s: float = PATIENCE_S,
    trust: Trust = NOTHING,
    on_progress: Callable[[DeliveryReport], None] | None = None,
) -> DeliveryReport:
    """Deliver what the backends of a run do not have yet; a run that died is KILLED, in the journal and everywhere.

    A backend that is not to be trusted, as the run's folder alone names it, and one whose destination the environment
    does not name, get nothing; the report says why, and what to do. A process of its own delivers, and ends when no
    backend has taken anything for `patience_s` seconds. Raises TrackerError if the run is still being written or
    another process delivers it.
    """
    labels = chosen_backends(run_dir, backend)
    files = RunFiles(run_dir)
    if (told := copy_without_end(files.journal)) is not None:
        raise TrackerError(f"{run_dir}: {told}")
    if (writer := lock_holder(files.journal)) is not None:
        raise TrackerError(
            f"{run_dir}: still running, {writer} writes it; its own delivery process serves the trackers"
        )
    targets = targets_of(run_dir)
    reachable = [label for label in labels if targets[label].unset is None]
    if not reachable:
        close_as_killed(files.journal)
        return delivery_report(run_dir, labels, targets=targets)
    code = _run_delivery(run_dir, reachable, patience_s, trust, on_progress)
    if code == BUSY:
        holder = lock_holder(files.delivery_lock) or Holder()
        raise TrackerError(f"{run_dir}: {holder} delivers this run, a sync or the run's own; wait for its end")
    if code not in (COMPLETE, LEFT, NONE_REACHABLE):
        raise TrackerError(f"{run_dir}: its delivery process failed (exit code {code}); {files.delivery_log} says why")
    return delivery_report(run_dir, labels, targets=targets)


def is_named(label: str, backend: str) -> bool:
    """Whether a label, such as `mlflow-0`, is this one or of this kind."""
    return backend in (label, label.rpartition("-")[0])


def _run_delivery(
    run_dir: Path,
    labels: Sequence[str],
    patience_s: float,
    trust: Trust,
    on_progress: Callable[[DeliveryReport], None] | None,
) -> int:
    arguments = ["--patience", str(patience_s), "--only", *labels]
    serves_custom = any(label.startswith("custom-") for label in labels)
    try:
        process = start_worker(RunFiles(run_dir), *arguments, serves_custom=serves_custom, trust=trust)
    except OSError as error:
        place = error.filename or run_dir
        raise TrackerError(
            f"{place}: {error.strerror}; delivery writes there: make it writable, or copy the run"
        ) from error
    try:
        while True:
            try:
                return process.wait(_PROGRESS_INTERVAL_S)
            except subprocess.TimeoutExpired:
                if on_progress is not None:
                    on_progress(delivery_report(run_dir, labels))
    finally:
        if process.poll() is None:  # interrupted
            stop_worker(process)
