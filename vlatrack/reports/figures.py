"""The figures of a run: its groups of charts as files."""

from collections.abc import Mapping
from pathlib import Path

from vlatrack.reports.charts import Chart, ChartBook, ChartGroup
from vlatrack.reports.panels import Panel, Points, save_panels
from vlatrack.tracking.journal.history import metric_history

History = Mapping[str, Points]
"""The logged points of each metric, by its full documented name such as ``val_ind_closs``."""


FORMATS = ("png", "pdf", "svg")


def write_figures(run_dir: Path, *, output: Path, kind: str = "png") -> list[Path]:
    """Draw every documented metric in the journal of `run_dir` as files of a kind in the folder `output`.

    A figure without data is not written. Returns the paths of those that are.
    """
    history = metric_history(run_dir / "journal.jsonl")
    return draw_figures(history, output=output, run_name=f"{run_dir.parent.name} / {run_dir.name}", kind=kind)


def draw_figures(history: History, *, output: Path, run_name: str, kind: str = "png") -> list[Path]:
    """Draw `history` as files of a kind in the folder `output`, created if it is missing; returns their paths."""
    output.mkdir(parents=True, exist_ok=True)
    logged = {name: points for name, points in history.items() if points}
    written = []
    for group in ChartBook(logged).figures():
        path = output / f"{group.name}.{kind}"
        panels, title = panels_of(group, logged), f"{run_name}: {group.caption}"
        save_panels(panels, path, title=title, shared_scale=group.shared_scale)
        written.append(path)
    return written


def panels_of(group: ChartGroup, history: History) -> list[Panel]:
    """The charts of a group with their points; ``history`` holds each of its metrics."""
    return [_panel(chart, history) for chart in group.charts]


def _panel(chart: Chart, history: History) -> Panel:
    floor = None if chart.floor is None else history[chart.floor][-1][1]
    lines = {line: history[name] for line, name in chart.lines.items()}
    return Panel(chart.title, chart.unit, chart.direction, lines, floor, chart.from_zero)
