"""`vlatrack sync`, `status` and `reap`: what has been delivered to the trackers, and what has not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.tracking.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from vlatrack.tracking.delivery.audit import BackendAudit
    from vlatrack.tracking.delivery.report import BackendDelivery, RunOverview, Unreadable
    from vlatrack.tracking.trust import Trust

INCOMPLETE = 1
Runs = Annotated[Path, typer.Option(help="Folder that holds all runs.")]
Patience = Annotated[float, typer.Option(help="Give up after this many seconds without progress.", min=0.0)]

TrustBackends = Annotated[
    bool, typer.Option("--trust-backends", help="Import the custom backends that the run folders name.")
]
TrustDestination = Annotated[
    bool,
    typer.Option("--trust-destination", help="Deliver, with your login, to the servers that the run folders name."),
]


def sync(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Run directories; none: all that lack something.", show_default=False),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="X", help="Only this one: mlflow, or mlflow-0.", show_default=False)
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Then compare the journal with what the backends hold.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --audit: deliver again what a backend has lost, then compare anew.")
    ] = False,
    runs: Runs = Path("runs"),
    patience: Patience = 60.0,
    trust_backends: TrustBackends = False,
    trust_destination: TrustDestination = False,
) -> None:
    """Deliver to the trackers what they do not have yet of runs that are over.

    A run whose process died is KILLED, in its journal and at every tracker. Exit code 1: something is left, a run
    cannot be read, or the audit found a difference.

    Examples:

    [bold]vlatrack sync[/bold]

    [bold]vlatrack sync runs/metaworld-quickstart/20260101-120000-ab12 --audit[/bold]

    [bold]vlatrack sync --audit --backend mlflow[/bold]

    [bold]vlatrack sync runs/metaworld-quickstart/20260101-120000-ab12 --audit --repair[/bold]
    """
    from vlatrack.errors import TrackerError
    from vlatrack.tracking.trust import Trust

    if repair and not audit:
        raise TrackerError("--repair: needs --audit, which finds out what is to be repaired")
    console = _console()
    chosen, all_readable = paths or [], True
    if not paths:
        overviews, all_readable = _readable_runs(console, runs)
        chosen = _undelivered_runs(overviews, backend, audited=audit)
    if not chosen and all_readable:
        _say(console, f"nothing to deliver in {runs}")
    trust = Trust(trust_backends, trust_destination)
    # An error stops the command for runs that were named; among all runs, some may be busy.
    complete = [
        _sync_one(console, run, backend, patience, trust, audit=audit, repair=repair, tolerant=not paths)
        for run in chosen
    ]
    if not all_readable or not all(complete):
        raise typer.Exit(INCOMPLETE)


def status(runs: Runs = Path("runs")) -> None:
    """Show all runs: how they ended, their last step, and how many records each tracker still lacks or refused.

    Example: [bold]vlatrack status --runs runs[/bold]
    """
    from rich.table import Table

    from vlatrack.tracking.delivery.report import RunOverview, run_overviews

    console = _console()
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)  # can be copied
    for heading in ("status", "last step", "undelivered"):
        table.add_column(heading)
    stale, incomplete, unreadable, lines = 0, 0, [], []
    for entry in run_overviews(runs):
        name = entry.run_dir.relative_to(runs).as_posix()
        if not isinstance(entry, RunOverview):
            unreadable.append(entry)
            table.add_row(printable(name), "unreadable: see below", "-", "-")
            continue
        stale += entry.stale
        incomplete += entry.is_over and entry.lacks_something
        if entry.is_over:
            lines += [f"{name}: {_delivery_line(share)}" for share in entry.backends if share.undelivered]
        step = "-" if entry.status.last_step is None else str(entry.status.last_step)
        table.add_row(*map(printable, (name, _status_word(entry), step, _undelivered(entry.backends))))
    if table.row_count == 0:
        _say(console, f"no runs in {runs}")
        return
    console.print(table)
    for told in lines:
        _say(console, told)
    for entry in unreadable:
        _say(console, _unreadable_line(entry))
    where = "" if runs == Path("runs") else f" --runs {runs}"
    if stale:
        _say(console, f"{stale} stale (RUNNING, but the process is gone); `vlatrack reap{where}` sets KILLED")
    if incomplete:
        _say(console, f"{incomplete} not delivered completely; `vlatrack sync{where}` delivers the rest")


def reap(
    runs: Runs = Path("runs"),
    patience: Patience = 60.0,
    trust_backends: TrustBackends = False,
    trust_destination: TrustDestination = False,
) -> None:
    """Set runs whose process is gone to KILLED, in their journals and at every tracker.

    Exit code 1: a tracker could not be updated, and `vlatrack sync` does it later; or a run cannot be read.

    Example: [bold]vlatrack reap --runs runs[/bold]
    """
    from vlatrack.tracking.trust import Trust

    console, trust = _console(), Trust(trust_backends, trust_destination)
    entries, all_readable = _readable_runs(console, runs)
    for entry in entries:
        if entry.copy is not None:
            _say(console, f"{entry.run_dir}: {entry.copy}")
        elif entry.writer is not None and not entry.writer.is_here:
            _say(console, f"{entry.run_dir}: {'written' if not entry.stale else 'was written'} by {entry.writer}")
    stale = [entry.run_dir for entry in entries if entry.stale]
    if not stale and all_readable:
        _say(console, f"no stale runs in {runs}")
    delivered = [
        _sync_one(console, run, None, patience, trust, audit=False, repair=False, tolerant=True) for run in stale
    ]
    if not all_readable or not all(delivered):
        raise typer.Exit(INCOMPLETE)


def _readable_runs(console: "Console", runs: Path) -> "tuple[list[RunOverview], bool]":
    """The runs that can be read, and whether these are all; prints the others, each with the reason."""
    from vlatrack.tracking.delivery.report import RunOverview, run_overviews

    readable, all_readable = [], True
    for entry in run_overviews(runs):
        if isinstance(entry, RunOverview):
            readable.append(entry)
        else:
            all_readable = False
            _say(console, _unreadable_line(entry))
    return readable, all_readable


def _undelivered_runs(overviews: "list[RunOverview]", backend: str | None, *, audited: bool) -> list[Path]:
    """The runs that are over and not completely delivered, or all that are over if they are to be audited."""
    from vlatrack.errors import TrackerError
    from vlatrack.tracking.delivery.sync import has_backend

    if backend is not None and overviews and not any(has_backend(entry.run_dir, backend) for entry in overviews):
        raise TrackerError(
            f"--backend {backend}: none of these runs has such a tracker; `vlatrack status` shows theirs"
        )
    over = [entry for entry in overviews if entry.is_over]
    wanted = [entry.run_dir for entry in over if audited or entry.lacks_something]
    return [run for run in wanted if backend is None or has_backend(run, backend)]


def _sync_one(
    console: "Console",
    run: Path,
    backend: str | None,
    patience_s: float,
    trust: "Trust",
    *,
    audit: bool,
    repair: bool,
    tolerant: bool,
) -> bool:
    """Deliver one run and print the result; returns whether it is complete. With `tolerant`, errors are printed."""
    from vlatrack.errors import VlatrackError
    from vlatrack.tracking.delivery.audit import audit_run
    from vlatrack.tracking.delivery.causes import one_line
    from vlatrack.tracking.delivery.report import targets_of
    from vlatrack.tracking.delivery.sync import chosen_backends, sync_run
    from vlatrack.tracking.journal.history import run_status

    try:
        with console.status(f"delivering {printable(str(run))}") as shown:
            report = sync_run(
                run,
                backend=backend,
                patience_s=patience_s,
                trust=trust,
                on_progress=lambda now: shown.update(f"{sum(b.undelivered for b in now.backends)} records left"),
            )
        _say(console, f"{run}  {run_status(run).status}{'' if report.backends else ', no backends'}")
        targets = targets_of(run)
        for share in report.backends:
            if (told := targets[share.label].redirected) is not None:
                _say(console, f"  {share.label}: {told}")
            _say(console, f"  {_delivery_line(share)}")
        audits = audit_run(run, chosen_backends(run, backend), trust=trust) if audit else []
        agrees = not audit or _show_audit(console, audits)
        if repair and audits:
            agrees = _repair(console, run, audits, patience_s, trust)
    except Exception as error:  # whatever is wrong with one run must not keep the others from being delivered
        if not tolerant:
            raise
        _say(console, str(error) if isinstance(error, VlatrackError) else f"{run}: {one_line(error)}")
        return False
    return report.complete and agrees


def _repair(console: "Console", run: Path, audits: "list[BackendAudit]", patience_s: float, trust: "Trust") -> bool:
    """Repair each backend, say how that went, and audit them again; returns whether all agree now."""
    from vlatrack.tracking.delivery.audit import audit_run
    from vlatrack.tracking.delivery.repair import repair_backend

    for audit in audits:
        with console.status(f"repairing {audit.label} of {run}"):
            told = repair_backend(run, audit, patience_s=patience_s, trust=trust)
        _say(console, f"  {audit.label}: {told}")
    return _show_audit(console, audit_run(run, [audit.label for audit in audits], trust=trust))


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False)


def _say(console: "Console", text: str) -> None:
    """Print one line without wrapping it, so that paths can be copied."""
    console.print(printable(text), soft_wrap=True)


def _unreadable_line(entry: "Unreadable") -> str:
    return f"{entry.run_dir.absolute()}: unreadable: {entry.reason}"


def _delivery_line(share: "BackendDelivery") -> str:
    total = share.delivered + share.undelivered
    if share.undelivered:
        return f"{share.label}: {share.undelivered} of {total} records not delivered; {share.error or 'no answer'}"
    refused = f", {share.dead_letters} refused (delivery/{share.label}.dead.jsonl)" if share.dead_letters else ""
    return f"{share.label}: complete, {total} records{refused}; {share.url or ''}"


def _status_word(entry: "RunOverview") -> str:
    where = "" if entry.writer is None or entry.writer.is_here else f" on {entry.writer.host}"
    how = " (stale)" if entry.stale else " (a copy)" if entry.copy else ""
    return f"RUNNING{where}{how}" if how else f"{entry.status.status}{where}"


def _undelivered(backends: "tuple[BackendDelivery, ...]") -> str:
    cells = []
    for share in backends:
        refused = f" ({share.dead_letters} refused)" if share.dead_letters else ""
        cells.append(f"{share.label} {share.undelivered}{refused}")
    return ", ".join(cells) or "no backends"


def _show_audit(console: "Console", audits: "list[BackendAudit]") -> bool:
    """Print a table of the audits; returns whether all agree."""
    from rich.table import Table

    table = Table("", "status", "metrics", "values", "last record", "verdict", box=None, pad_edge=False)
    held = [("journal", audit.journal, "") for audit in audits[:1]]
    held += [(audit.label, audit.backend, _verdict(audit)) for audit in audits]
    for who, counts, verdict in held:
        cells = (counts.status, counts.metric_keys, counts.values, counts.last_seq)
        table.add_row(who, *("-" if cell is None else printable(str(cell)) for cell in cells), printable(verdict))
    console.print(table)
    return not any(audit.differences for audit in audits)


def _verdict(audit: "BackendAudit") -> str:
    if audit.cannot_tell is not None:
        return f"not compared: {audit.cannot_tell}"
    return "; ".join(audit.differences) or "same"
