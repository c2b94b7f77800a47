"""`vlatrack sync` and `reap`: what has been delivered to the trackers, and what has not."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.cli.completion import complete_run
from vlatrack.cli.losses import LossReport
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
        typer.Argument(
            metavar="[RUN]...",
            help="Run directories; none: all that lack something.",
            show_default=False,
            autocompletion=complete_run,
        ),
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

    A run whose process died is KILLED, in its journal and at every tracker. Once for each run that is delivered, the
    trackers are asked whether they still have it. Exit code 1: something is left or lost, a run cannot be read, or the
    audit found a difference.

    Examples:

    [bold]vlatrack sync[/bold]

    [bold]vlatrack sync runs/metaworld-quickstart/20260101-120000-ab12 --audit[/bold]

    [bold]vlatrack sync --audit --backend mlflow[/bold]

    [bold]vlatrack sync runs/metaworld-quickstart/20260101-120000-ab12 --audit --repair[/bold]
    """
    from vlatrack.errors import TrackerError
    from vlatrack.tracking.delivery.sync import is_named
    from vlatrack.tracking.trust import Trust

    if repair and not audit:
        raise TrackerError("--repair: needs --audit, which finds out what is to be repaired")
    console = _console()
    losses = LossReport(partial(_say, console), Trust(trust_backends, trust_destination))
    chosen, is_fine = paths or [], True
    if not paths:
        overviews, is_fine = _readable_runs(console, runs)
        chosen = _undelivered_runs(overviews, backend, audited=audit)
        delivered = [entry for entry in overviews if entry.is_over and entry.run_dir not in chosen]
        for entry in delivered:
            labels = [share.label for share in entry.backends if backend is None or is_named(share.label, backend)]
            check = partial(_make_good_losses, console, entry.run_dir, labels, patience, losses)
            is_fine &= _served(console, entry.run_dir, check)
    if not chosen and is_fine:
        _say(console, f"nothing to deliver in {runs}")
    for run in chosen:
        deliver = partial(_sync_one, console, run, backend, patience, losses, audit=audit, repair=repair)
        # An error stops the command for runs that were named; among all runs, some may be busy.
        is_fine &= deliver() if paths else _served(console, run, deliver)
    if not is_fine:
        raise typer.Exit(INCOMPLETE)


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
    losses = LossReport(partial(_say, console), trust)
    delivered = [
        _served(console, run, partial(_sync_one, console, run, None, patience, losses, audit=False, repair=False))
        for run in stale
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


def _served(console: "Console", run: Path, serve: Callable[[], bool]) -> bool:
    """What `serve` returns; whatever is wrong with one run must not keep the others from being served."""
    from vlatrack.errors import VlatrackError
    from vlatrack.tracking.delivery.causes import one_line

    try:
        return serve()
    except Exception as error:
        _say(console, str(error) if isinstance(error, VlatrackError) else f"{run}: {one_line(error)}")
        return False


def _sync_one(
    console: "Console",
    run: Path,
    backend: str | None,
    patience_s: float,
    losses: LossReport,
    *,
    audit: bool,
    repair: bool,
) -> bool:
    """Deliver one run and print the result; returns whether it is complete."""
    from vlatrack.tracking.delivery.audit import audit_run
    from vlatrack.tracking.delivery.report import targets_of
    from vlatrack.tracking.delivery.sync import chosen_backends, sync_run
    from vlatrack.tracking.delivery.verification import remember
    from vlatrack.tracking.journal.history import run_status

    with console.status(f"delivering {printable(str(run))}") as shown:
        report = sync_run(
            run,
            backend=backend,
            patience_s=patience_s,
            trust=losses.trust,
            on_progress=lambda now: shown.update(f"{sum(b.undelivered for b in now.backends)} records left"),
        )
    _say(console, f"{run}  {run_status(run).status}{'' if report.backends else ', no backends'}")
    targets = targets_of(run)
    for share in report.backends:
        if (told := targets[share.label].redirected) is not None:
            _say(console, f"  {share.label}: {told}")
        _say(console, f"  {delivery_line(share)}")
    if not audit:
        labels = [share.label for share in report.backends]
        return report.complete and _make_good_losses(console, run, labels, patience_s, losses)
    audits = audit_run(run, chosen_backends(run, backend), trust=losses.trust)
    if repair:
        _show_audit(console, audits)
        audits = _repair(console, run, audits, patience_s, losses.trust)
    remember(run, [audit.label for audit in audits if not audit.differences])
    return _show_audit(console, audits) and report.complete


def _make_good_losses(console: "Console", run: Path, labels: list[str], patience_s: float, losses: LossReport) -> bool:
    """Ask the trackers of a delivered run whether they still have it, and deliver again what they have lost; whether
    they have it now, as far as they can be asked."""
    from vlatrack.tracking.delivery.audit import audit_run
    from vlatrack.tracking.delivery.verification import remember

    lost = losses.lost_by(run, labels)
    if not lost:
        return True
    audits = _repair(console, run, audit_run(run, lost, trust=losses.trust), patience_s, losses.trust)
    remember(run, [audit.label for audit in audits if not audit.differences])
    return _show_audit(console, audits)


def _repair(
    console: "Console", run: Path, audits: "list[BackendAudit]", patience_s: float, trust: "Trust"
) -> "list[BackendAudit]":
    """Repair each backend and say how that went; returns their audits after it."""
    from vlatrack.tracking.delivery.audit import audit_run
    from vlatrack.tracking.delivery.repair import repair_backend

    for audit in audits:
        with console.status(f"repairing {audit.label} of {run}"):
            told = repair_backend(run, audit, patience_s=patience_s, trust=trust)
        _say(console, f"  {audit.label}: {told}")
    return audit_run(run, [audit.label for audit in audits], trust=trust)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False)


def _say(console: "Console", text: str) -> None:
    """Print one line without wrapping it, so that paths can be copied."""
    console.print(printable(text), soft_wrap=True)


def _unreadable_line(entry: "Unreadable") -> str:
    return f"{entry.run_dir.absolute()}: unreadable: {entry.reason}"


def delivery_line(share: "BackendDelivery") -> str:
    """What became of one backend's share of a run."""
    total = share.delivered + share.undelivered
    if share.undelivered:
        reason = share.error or ("not tried yet" if share.url is None else "no answer")
        told = f"{share.undelivered} of {total} records not delivered, kept for `vlatrack sync`"
        return f"{share.label}: {told}; {reason}"
    refused = f", {share.dead_letters} refused (delivery/{share.label}.dead.jsonl)" if share.dead_letters else ""
    return f"{share.label}: complete, {total} records{refused}; {share.url or ''}"


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
