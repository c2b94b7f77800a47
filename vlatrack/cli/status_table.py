"""The table of `vlatrack status`: as many columns as a terminal has room for, the most useful ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from vlatrack.cli.milestones import duration_text, rate_text
from vlatrack.reports.summary import short_number
from vlatrack.tracking.delivery.report import BackendDelivery, Unreadable
from vlatrack.tracking.printable import printable
from vlatrack.tracking.run_state import RunState

_GAP = 2
_NOTHING = "-"
_STYLES = {"RUNNING": "cyan", "FINISHED": "green", "FAILED": "red", "KILLED": "yellow", "STALE": "yellow"}
_HEALTH_STYLES = {"healthy": "green", "warning": "yellow", "critical": "red"}


@dataclass(frozen=True)
class _Column:
    heading: str
    rank: int
    """columns of a higher one give way first; those of 0 never do"""
    cell: Callable[[RunState], str]
    style: Callable[[str], str] = lambda _: ""


def status_table(entries: Sequence[RunState | Unreadable], runs: Path, width: int) -> Table:
    """The table in at most `width` columns, where the run's id, status and step fit into these.

    Whole columns are left out, by rank. Where the losses would be, the experiment becomes a line of its own above its
    runs instead of standing in each row.
    """
    states = [entry for entry in entries if isinstance(entry, RunState)]
    columns = [(column, [column.cell(state) for state in states]) for column in _COLUMNS]
    columns = [(c, cells) for c, cells in columns if c.rank == 0 or any(cell != _NOTHING for cell in cells)]
    if not any(share.undelivered or share.dead_letters for state in states for share in state.overview.backends):
        columns = [(replace(c, rank=_LAST) if c.cell == _undelivered else c, cells) for c, cells in columns]
    widths = [max(map(cell_len, (column.heading, *cells))) for column, cells in columns]
    names = {entry.run_dir: printable(entry.run_dir.relative_to(runs).as_posix()) for entry in entries}
    ids = {entry.run_dir: printable(f"  {entry.run_dir.name}") for entry in entries}
    wanted = [column.rank for column, _ in columns if column.rank <= _RANK_OF_LOSSES]
    is_grouped = len(_fitting(columns, widths, width - _longest(names))) < len(wanted)
    labels = ids if is_grouped else names
    kept = _fitting(columns, widths, width - _longest(labels))
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)  # can be copied
    for place in kept:
        table.add_column(columns[place][0].heading, no_wrap=True)
    rows, experiment = iter(range(len(states))), None
    for entry in entries:
        if is_grouped and entry.run_dir.parent != experiment:
            experiment = entry.run_dir.parent
            table.add_row(printable(f"{experiment.relative_to(runs).as_posix()}/"))
        if isinstance(entry, Unreadable):
            table.add_row(labels[entry.run_dir], "unreadable: see below")
            continue
        row = next(rows)
        shown = [(columns[place][0], columns[place][1][row]) for place in kept]
        table.add_row(labels[entry.run_dir], *(Text(cell, style=column.style(cell)) for column, cell in shown))
    return table


def _longest(texts: dict[Path, str]) -> int:
    return max(3, *map(cell_len, texts.values()))


def _fitting(columns: Sequence[tuple[_Column, Sequence[str]]], widths: Sequence[int], room: int) -> list[int]:
    """The places of the columns that fit, in the order of the table; the first that does not ends the choice."""
    kept: list[int] = []
    for place in sorted(range(len(columns)), key=lambda place: columns[place][0].rank):
        room -= _GAP + widths[place]
        if room < 0 and columns[place][0].rank > 0:
            break
        kept.append(place)
    return sorted(kept)


def _status(state: RunState) -> str:
    writer, overview = state.overview.writer, state.overview
    where = "" if writer is None or writer.is_here or not writer.host else f" on {writer.host}"
    how = " (stale)" if overview.stale else " (a copy)" if overview.copy else ""
    return printable(f"{'RUNNING' if how else overview.status.status}{where}{how}")


def _step(state: RunState) -> str:
    if state.step is None:
        return _NOTHING
    total = state.progress.total_steps
    return str(state.step) if total is None else f"{state.step}/{total}"


def _loss(name: str) -> Callable[[RunState], str]:
    def cell(state: RunState) -> str:
        value = state.progress.losses.get(name)
        return _NOTHING if value is None else short_number(value)

    return cell


def _left(state: RunState) -> str:
    return _NOTHING if state.left_s is None else duration_text(state.left_s)


def _speed(state: RunState) -> str:
    pace = state.progress.steps_per_s
    return _NOTHING if pace is None else rate_text(pace, "step")


def _health(state: RunState) -> str:
    return state.health or _NOTHING


def _undelivered(state: RunState) -> str:
    return ", ".join(map(_share, state.overview.backends)) or "no backends"


def _share(share: BackendDelivery) -> str:
    refused = f" ({share.dead_letters} refused)" if share.dead_letters else ""
    return printable(f"{share.label} {share.undelivered}{refused}")


def _owner(state: RunState) -> str:
    writer = state.overview.writer
    where = "" if writer is None or not writer.host else f" {writer.pid}@{writer.host}"
    return printable(f"{state.user}{where}")


def _name(state: RunState) -> str:
    name = state.progress.name
    return _NOTHING if name is None or name == state.run_dir.name else printable(name)


def _job(state: RunState) -> str:
    return _NOTHING if state.progress.job is None else printable(state.progress.job)


_RANK_OF_LOSSES, _LAST = 5, 99
_COLUMNS = (
    _Column("status", 0, _status, lambda cell: _STYLES.get(cell.split(" ")[0], "")),
    _Column("step", 0, _step),
    _Column("left", 2, _left),
    _Column("closs", 4, _loss("train_closs")),
    _Column("loss_ct", _RANK_OF_LOSSES, _loss("train_loss_ct")),
    _Column("val closs", 6, _loss("val_ind_closs")),
    _Column("val loss_ct", 7, _loss("val_ind_loss_ct")),
    _Column("speed", 8, _speed),
    _Column("health", 3, _health, lambda cell: _HEALTH_STYLES.get(cell, "")),
    _Column("undelivered", 1, _undelivered),
    _Column("owner", 11, _owner),
    _Column("job", 9, _job),
    _Column("name", 10, _name),
)
