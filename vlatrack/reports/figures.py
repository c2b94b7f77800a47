"""The figures of a run: its groups of charts as PNG files."""

from collections.abc import Mapping
from pathlib import Path

from vlatrack.reports.charts import Chart, ChartBook
from vlatrack.reports.panels import Panel, Points, save_panels
from vlatrack.tracking.journal.history import metric_history

History = Mapping[str, Points]
"""The logged points of each metric, by its full documented name such as ``val_ind_closs``."""


def write_figures(run_dir: Path, *, output: Path) -> list[Path]:
    """Draw every documented metric in the journal of `run_dir` as PNG files in the folder `output`.

    A figure without data is not written. Returns the paths of those that are.
    """
    history = metric_history(run_dir / "journal.jsonl")
    return draw_figures(history, output=output, run_name=f"{run_dir.parent.name} / {run_dir.name}")


def draw_figures(history: History, *, output: Path, run_name: str) -> list[Path]:
    """Draw `history` as PNG files in the folder `output`, created if it is missing; returns their paths."""
    output.mkdir(parents=True, exist_ok=True)
    logged = {name: points for name, points in history.items() if points}
    written = []
    for group in ChartBook(logged).figures():
        path = output / f"{group.name}.png"
        panels = [_panel(chart, logged) for chart in group.charts]
        save_panels(panels, path, title=f"{run_name}: {group.caption}", shared_scale=group.shared_scale)
        written.append(path)
    return written


def _panel(chart: Chart, history: History) -> Panel:
    floor = None if chart.floor is None else history[chart.floor][-1][1]
    lines = {line: history[name] for line, name in chart.lines.items()}
    return Panel(chart.title, chart.unit, chart.direction, lines, floor, chart.from_zero)
