"""`vlatrack sync`, `status` and `reap`: what the trackers have of the runs, and what they still lack."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vlatrack.tracking.audit import BackendAudit
    from vlatrack.tracking.deliveries import BackendDelivery
    from vlatrack.tracking.overview import RunOverview

INCOMPLETE = 1
Runs = Annotated[Path, typer.Option(help="Folder that holds all runs.")]
Patience = Annotated[float, typer.Option(help="Give up after this many seconds without progress.", min=0.0)]


def sync(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    backend: Annotated[
        str | None, typer.Option(metavar="X", help="Only this one: mlflow, or mlflow-0.", show_default=False)
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Then compare the journal with what the backends hold.")
    ] = False,
    patience: Patience = 60.0,
) -> None:
    """Deliver to the trackers what they do not have yet of runs that are over.

    A run whose process died is KILLED, in its journal and at every tracker. Exit code 1: something is left, or the
    audit found a difference.

    Example: [bold]vlatrack sync runs/metaworld-quickstart/20260101-120000-ab12 --audit[/bold]
    """
    from vlatrack.tracking.audit import audit_run
    from vlatrack.tracking.sync import chosen_backends, sync_run

    console = _console()
    complete = True
    for run in runs:
        with console.status(f"delivering {run}") as shown:
            report = sync_run(
                run,
                backend=backend,
                patience_s=patience,
                on_progress=lambda now: shown.update(f"{sum(b.undelivered for b in now.backends)} records left"),
            )
        if not report.backends:
            _say(console, f"{run}  no backends")
        for share in report.backends:
            _say(console, f"{run}  {_delivery_line(share)}")
        complete &= report.complete
        if audit:
            complete &= _show_audit(console, audit_run(run, chosen_backends(run, backend)))
    if not complete:
        raise typer.Exit(INCOMPLETE)


def status(runs: Runs = Path("runs")) -> None:
    """Show all runs: how they ended, their last step, and how many records each tracker still lacks."""
    from rich.table import Table

    from vlatrack.tracking.overview import RunOverview, run_overviews

    console = _console()
    table = Table("run", "status", "last step", "undelivered", box=None, pad_edge=False)
    stale, incomplete = 0, 0
    for entry in run_overviews(runs):
        name = entry.run_dir.relative_to(runs).as_posix()
        if not isinstance(entry, RunOverview):
            table.add_row(name, f"unreadable: {entry.reason}", "-", "-")
            continue
        stale += entry.stale
        incomplete += entry.status.status != "RUNNING" and any(b.undelivered for b in entry.backends)
        step = "-" if entry.status.last_step is None else str(entry.status.last_step)
        table.add_row(name, _status_word(entry), step, _undelivered(entry.backends))
    if table.row_count == 0:
        _say(console, f"no runs in {runs}")
        return
    console.print(table)
    if stale:
        where = "" if runs == Path("runs") else f" --runs {runs}"
        _say(console, f"{stale} stale (RUNNING, but the process is gone); `vlatrack reap{where}` sets KILLED")
    if incomplete:
        _say(console, f"{incomplete} not delivered completely; `vlatrack sync RUN` delivers the rest")


def reap(runs: Runs = Path("runs"), patience: Patience = 60.0) -> None:
    """Set runs whose process is gone to KILLED, in their journals and at every tracker.

    Exit code 1: a tracker could not be told; `vlatrack sync RUN` tells it later.
    """
    from vlatrack.errors import TrackerError
    from vlatrack.tracking.overview import RunOverview, run_overviews
    from vlatrack.tracking.sync import sync_run

    console = _console()
    stale = [entry for entry in run_overviews(runs) if isinstance(entry, RunOverview) and entry.stale]
    told_all = True
    for entry in stale:
        try:
            report = sync_run(entry.run_dir, patience_s=patience)
        except TrackerError as error:  # its own delivery process is at it, or a part of it is missing: on to the next
            _say(console, f"{error}")
            told_all = False
            continue
        _say(console, f"{entry.run_dir}  KILLED")
        for share in report.backends:
            _say(console, f"  {_delivery_line(share)}")
        told_all &= report.complete
    if not stale:
        _say(console, f"no stale runs in {runs}")
    if not told_all:
        raise typer.Exit(INCOMPLETE)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False)


def _say(console: "Console", text: str) -> None:
    """One line, however narrow the terminal: paths stay whole for copying."""
    console.print(text, soft_wrap=True)


def _delivery_line(share: "BackendDelivery") -> str:
    total = share.delivered + share.undelivered
    if share.undelivered:
        return f"{share.label}: {share.undelivered} of {total} records not delivered; {share.error or 'no answer'}"
    refused = f", {share.dead_letters} refused (delivery/{share.label}.dead.jsonl)" if share.dead_letters else ""
    return f"{share.label}: complete, {total} records{refused}; {share.look or ''}"


def _status_word(entry: "RunOverview") -> str:
    return "RUNNING (stale)" if entry.stale else entry.status.status


def _undelivered(backends: "tuple[BackendDelivery, ...]") -> str:
    return ", ".join(f"{b.label} {b.undelivered}" for b in backends) or "no backends"


def _show_audit(console: "Console", audits: "list[BackendAudit]") -> bool:
    """A table of the audits; whether all agree."""
    from rich.table import Table

    table = Table("", "status", "metrics", "values", "last record", "verdict", box=None, pad_edge=False)
    held = [("journal", audit.journal, "") for audit in audits[:1]]
    held += [(audit.label, audit.backend, "; ".join(audit.differences) or "same") for audit in audits]
    for who, counts, verdict in held:
        cells = (counts.status, counts.metric_keys, counts.values, counts.last_seq)
        table.add_row(who, *("-" if cell is None else str(cell) for cell in cells), verdict)
    console.print(table)
    return not any(audit.differences for audit in audits)
