"""Open-loop metrics of each task: a CSV table, and a figure of their L1 errors."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlatrack.metrics.metric import ACTION_UNIT
from vlatrack.metrics.names import SPLITS
from vlatrack.reports.panels import DPI, STYLES, write_figure

TaskMetrics = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By split, task, and name of the metric without the split."""

COLUMNS = ("samples", "closs", "loss_ct", "l1_loss_action", "l1_loss_free", "acc_action", "ece_action")
MOST_SHOWN = 60
"""Tasks of a split in the figure; of more, those with the largest errors."""
_ERRORS = {
    "loss_ct": ("continuous head", "o"),
    "l1_loss_action": ("tokens after recorded ones", "s"),
    "l1_loss_free": ("tokens decoded freely", "x"),
}


def task_table(tasks: TaskMetrics) -> str:
    """The CSV table: split, task, and the metrics in `COLUMNS`; empty where one was not measured."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("split", "task", *COLUMNS))
    for split in SPLITS:
        for task, metrics in tasks.get(split, {}).items():
            rows.writerow((split, task, *(metrics.get(name, "") for name in COLUMNS)))
    return text.getvalue()


def draw_tasks(tasks: TaskMetrics, output: Path, *, title: str) -> bool:
    """Draw the L1 errors of each task, the largest on top, one panel a split, as a PNG.

    Returns False, and writes nothing, if there is no task with one.
    """
    shown = {split: _sorted(tasks[split]) for split in SPLITS if split in tasks}
    shown = {split: rows for split, rows in shown.items() if rows}
    if not shown:
        return False
    heights = [max(2, len(rows)) for rows in shown.values()]
    figure = Figure(figsize=(9.0, 0.26 * sum(heights) + 1.1 * len(shown) + 0.9), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (split, rows) in zip(panels, shown.items(), strict=True):
        for name, (label, marker) in _ERRORS.items():
            values = [metrics.get(name, math.nan) for _, metrics in rows]
            axes.plot(values, range(len(rows)), marker, label=label, markersize=5, color=STYLES[split].color, alpha=0.8)
        labels = [f"{shorten(task, 60, placeholder=' …')}  ({metrics['samples']:.0f})" for task, metrics in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        left_out = len(tasks[split]) - len(rows)
        note = f", the {len(rows)} with the largest errors of {len(tasks[split])}" if left_out else ""
        axes.set_title(f"{STYLES[split].label}{note}", fontsize=9, loc="left")
        axes.grid(visible=True, axis="x", color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlim(left=0)
    panels[-1].set_xlabel(f"mean L1 error [{ACTION_UNIT}]; in brackets the number of samples", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    write_figure(figure, output)
    return True


def _sorted(tasks: Mapping[str, Mapping[str, float]]) -> list[tuple[str, Mapping[str, float]]]:
    """The tasks with the largest errors first; those that are not finite before all others."""

    def size(row: tuple[str, Mapping[str, float]]) -> float:
        errors = [row[1][name] for name in _ERRORS if name in row[1]]
        return max((error if math.isfinite(error) else math.inf for error in errors), default=-1.0)

    with_errors = [row for row in tasks.items() if size(row) >= 0]
    return sorted(with_errors, key=size, reverse=True)[:MOST_SHOWN]
