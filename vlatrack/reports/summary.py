"""The table at the end of a run: each documented loss after the first and the last epoch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlatrack.metrics.schema import step_slot
from vlatrack.reports.epoch_log import EpochLog

_SPLIT_WIDTH = 19
LOSSES = ("closs", "loss_ct", "z_loss", "loss")


@dataclass(frozen=True)
class SummaryRow:
    """One metric of one split; lower is better for all of them."""

    metric: str
    """documented name without prefix: ``closs``, ``l1_loss_action_5``"""
    step: int | None
    """0-based step of the action chunk; None for a loss of the whole chunk"""
    split: str
    first_epoch: int
    """counted from 0, as in the log files"""
    last_epoch: int
    first: float
    last: float

    @property
    def change_percent(self) -> float | None:
        """Change from first to last in percent of the first; None if it cannot be computed."""
        if self.first == 0 or not (math.isfinite(self.first) and math.isfinite(self.last)):
            return None
        return 100 * (self.last - self.first) / abs(self.first)


def first_last_table(logs: Sequence[EpochLog], *, horizon: int) -> list[SummaryRow]:
    """Rows of closs, loss_ct, z_loss, loss and the L1 error of each of `horizon` steps, by metric, then split.

    A metric that a split did not log has no row.
    """
    steps = [(f"l1_loss_action_{step_slot(step, horizon)}", step) for step in range(horizon)]
    metrics: list[tuple[str, int | None]] = [*((name, None) for name in LOSSES), *steps]
    return [row for metric, step in metrics for log in logs if (row := _row(metric, step, log)) is not None]


def render_summary(rows: Sequence[SummaryRow], *, width: int | None = None) -> RenderableType:
    """A terminal table with a row per metric and a column per split; three splits of usual values need 80 columns.

    The 0-based step of the chunk follows the documented index where the two differ. Epochs are counted from 1.

    Args:
        width: columns of the terminal: splits that do not fit beside the others follow below; None: all are side by
            side.
    """
    if not rows:
        return Table("nothing was logged yet", box=None)
    cells = {(row.metric, row.split): row for row in rows}
    labels = {_label(row): row.metric for row in rows}
    needed = {
        split: max(_SPLIT_WIDTH, *(_cell(row).cell_len for row in rows if row.split == split))
        for split in _splits(rows)
    }
    parts, used = [list[str]()], 0
    for split, columns in needed.items():
        if parts[-1] and width is not None and used + 1 + columns > width:
            parts.append([])
        used = 1 + columns + (used if parts[-1] else max(map(len, labels)))
        parts[-1].append(split)
    return Group(_title(rows), *(_table(part, labels, cells) for part in parts))


def _table(splits: Sequence[str], labels: Mapping[str, str], cells: Mapping[tuple[str, str], SummaryRow]) -> Table:
    table = Table(pad_edge=False, padding=(0, 1, 0, 0), box=None)
    table.add_column("metric (step)", style="bold", no_wrap=True, min_width=max(map(len, labels)))
    for split in splits:
        table.add_column(split, justify="right", min_width=_SPLIT_WIDTH)
    for label, metric in labels.items():
        table.add_row(label, *(_cell(cells.get((metric, split))) for split in splits))
    return table


def _splits(rows: Sequence[SummaryRow]) -> list[str]:
    return list(dict.fromkeys(row.split for row in rows))


def _label(row: SummaryRow) -> str:
    same = row.step is None or row.metric.endswith(f"_{row.step}")
    return row.metric if same else f"{row.metric} ({row.step})"


def _row(metric: str, step: int | None, log: EpochLog) -> SummaryRow | None:
    logged = [(epoch, values[metric]) for epoch, values in zip(log.epochs, log.values, strict=True) if metric in values]
    if not logged:
        return None
    (first_epoch, first), (last_epoch, last) = logged[0], logged[-1]
    return SummaryRow(metric, step, log.split, first_epoch, last_epoch, first, last)


def _title(rows: Sequence[SummaryRow]) -> Text:
    first, last = min(row.first_epoch for row in rows), max(row.last_epoch for row in rows)
    return Text(f"epoch {first + 1} → epoch {last + 1}", style="italic")  # people count from 1, log files from 0


def _cell(row: SummaryRow | None) -> Text:
    if row is None:
        return Text("-", style="dim")
    text = Text(f"{short_number(row.first)} → {short_number(row.last)}")
    change = row.change_percent
    if change is not None:
        text.append(f" {change:+.0f}%", style="green" if change < 0 else "red" if change > 0 else "")
    return text


def short_number(value: float) -> str:
    """Five characters for usual losses: three decimals, fewer for larger numbers."""
    size = abs(value)
    if not math.isfinite(value) or value == 0 or not 0.01 <= size < 1000:
        return f"{value:.3g}"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"
