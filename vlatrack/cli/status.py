"""`vlatrack status`: all runs below a folder, how far and how healthy they are, and what trackers still lack."""

import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.cli.delivery import Runs, delivery_line
from vlatrack.tracking.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from vlatrack.cli.status_choice import Choice
    from vlatrack.tracking.delivery.report import Unreadable
    from vlatrack.tracking.run_state import RunState

_LOOKS_EVERY_S = 1.0
_MOST_FINDINGS = 20


class Status(StrEnum):
    """What `--status` takes."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"
    STALE = "stale"
    UNREADABLE = "unreadable"


def status(
    runs: Runs = Path("runs"),
    experiment: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only runs of this experiment; NAME may hold * and ?.")
    ] = None,
    only: Annotated[
        list[Status] | None,
        typer.Option("--status", case_sensitive=False, help="Only these; repeatable.", show_default=False),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Only runs that logged within 90m, 36h, 2d or 1w, or since 2026-01-31."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only runs whose id or name holds TEXT; it may hold * and ?.")
    ] = None,
    sort: Annotated[
        str, typer.Option(metavar="KEY", help="run, name, status, step, left, speed, logged, or a loss: val_ind_closs.")
    ] = "run",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a run and line, also of unreadable ones.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Draw it anew whenever a run logs; Ctrl-C ends that.")] = False,
) -> None:
    """Show all runs: how far, how fast and how healthy they are, whose they are, and what each tracker still lacks.

    STALE: its process is gone, and nobody has written its end; `vlatrack reap` does. Times are what is left of a
    training that runs. A narrow terminal shows fewer columns, whole ones; docs/terminal.md has the keys of --json.

    Examples:

    [bold]vlatrack status[/bold]

    [bold]vlatrack status --status running --watch[/bold]

    [bold]vlatrack status --since 2d --sort val_ind_loss_ct[/bold]

    [bold]vlatrack status --experiment 'libero_*' --json[/bold]
    """
    from vlatrack.cli.bars import is_live
    from vlatrack.cli.simulation import result_console
    from vlatrack.cli.status_choice import Choice
    from vlatrack.errors import TrackerError
    from vlatrack.tracking.run_state import as_json as json_line
    from vlatrack.tracking.run_state import run_states

    choice = Choice.of(experiment, [word.value for word in only or []], since, name, sort)
    if watch and as_json:
        raise TrackerError("vlatrack status: --watch draws a table; leave out --json, or call it again and again")
    console = result_console()
    if watch:
        if not is_live(console):
            raise TrackerError("vlatrack status --watch: needs a terminal; leave out --watch, or take --json")
        _watch(console, runs, choice)
        return
    entries = choice.of_these(run_states(runs))
    if as_json:
        for entry in entries:
            typer.echo(json_line(entry, runs))
        return
    if not entries:
        said = "no runs in" if choice.is_everything else "none of the runs is such a one in"
        _say(console, f"{said} {runs}")
        return
    console.print(_table(entries, runs, console.width))
    for line in _remarks(entries, runs):
        _say(console, line)


def _table(entries: "Sequence[RunState | Unreadable]", runs: Path, width: int) -> "RenderableType":
    from vlatrack.cli.status_table import status_table

    return status_table(entries, runs, width)


def _remarks(entries: "Sequence[RunState | Unreadable]", runs: Path) -> Iterator[str]:
    """What stands below the table, one line each."""
    from vlatrack.tracking.run_state import RunState

    states = [entry for entry in entries if isinstance(entry, RunState)]
    findings = [(state, finding) for state in states for finding in state.findings]
    for state in states:
        if state.damaged is not None:
            yield f"{_called(state, runs)}: {state.damaged}"
    for state, found in findings if len(findings) <= _MOST_FINDINGS else []:
        yield f"{_called(state, runs)}: {found.severity}: {found.message} {found.remedy}".rstrip()
    if len(findings) > _MOST_FINDINGS:
        yield f"{len(findings)} findings about their health; --json has them all, --name those of one run"
    for state in states:
        if state.overview.is_over:
            yield from (
                f"{_called(state, runs)}: {delivery_line(share)}"
                for share in state.overview.backends
                if share.undelivered
            )
    for entry in entries:
        if not isinstance(entry, RunState):
            yield f"{entry.run_dir.absolute()}: unreadable: {entry.reason}"
    where = "" if runs == Path("runs") else f" --runs {runs}"
    if stale := sum(state.overview.stale for state in states):
        yield f"{stale} stale (RUNNING, but the process is gone); `vlatrack reap{where}` sets KILLED"
    if incomplete := sum(state.overview.is_over and state.overview.lacks_something for state in states):
        yield f"{incomplete} not delivered completely; `vlatrack sync{where}` delivers the rest"


def _called(entry: "RunState | Unreadable", runs: Path) -> str:
    return entry.run_dir.relative_to(runs).as_posix()


def _watch(console: "Console", runs: Path, choice: "Choice", pause: Callable[[float], None] = time.sleep) -> None:
    """Draw the table anew whenever a journal, a cursor or the terminal has changed, until Ctrl-C."""
    from rich.live import Live

    from vlatrack.cli.status_choice import Watched

    watched = Watched(runs)
    drawn: object = None
    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                entries = choice.of_these(watched.look())
                seen = (watched.signature, console.size)
                if seen != drawn:
                    drawn = seen
                    live.update(_screen(entries, runs, console), refresh=True)
                pause(_LOOKS_EVERY_S)
    except KeyboardInterrupt:
        return


def _screen(entries: "Sequence[RunState | Unreadable]", runs: Path, console: "Console") -> "RenderableType":
    """What fits: the table, cut at the height of the terminal, and a line that says what is left out."""
    from rich.console import Group
    from rich.text import Text

    from vlatrack.tracking.run_state import RunState

    running = sum(isinstance(entry, RunState) and entry.is_running for entry in entries)
    rows = console.height - 4
    shown = entries[:rows]
    more = f", {len(entries) - rows} more do not fit" if len(entries) > rows else ""
    told = f"{runs}: {len(entries)} runs, {running} running{more} · {time.strftime('%H:%M:%S')} · Ctrl-C ends this"
    head = Text(printable(told), style="dim", no_wrap=True, overflow="ellipsis")
    return Group(head, _table(shown, runs, console.width)) if shown else head


def _say(console: "Console", text: str) -> None:
    """Print one line without wrapping it, so that paths can be copied."""
    console.print(printable(text), soft_wrap=True, markup=False)
