"""Some runs over each other as figures, as a PDF for print, and as tables."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from vlatrack.reports.charts import ChartBook, ChartGroup
from vlatrack.reports.comparison_content import comparison_content
from vlatrack.reports.figures import History
from vlatrack.reports.panels import Panel, Style, draw_panels, save_panels
from vlatrack.reports.pdf_report import save_pages, table_pages
from vlatrack.reports.run_rows import RunRow
from vlatrack.reports.tables import latex_table, spreadsheet_text
from vlatrack.tracking.journal.series import JournalSeries

Runs = Sequence[tuple[RunRow, JournalSeries]]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#A8487E", "#8A6D00", "#3D7EA6", "#444444")
"""Okabe and Ito's, darkened where they would be too pale on white: colour-blind readers can tell them apart."""
_DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_RUNS_OF_A_TABLE = 10
_LONGEST_CELL = 22


def write_comparison_figures(runs: Runs, histories: Sequence[History], *, output: Path, kind: str) -> list[Path]:
    """A figure for each group of metrics in the folder `output`, with a panel for each metric and a line for each run.

    Args:
        histories: the logged points of each metric, by run.
    """
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for group, panels in _panels(runs, histories):
        written.append(output / f"{group.name}.{kind}")
        save_panels(panels, written[-1], title=_title(group), shared_scale=group.shared_scale)
    return written


def write_comparison_pdf(runs: Runs, histories: Sequence[History], output: Path) -> Path:
    """Write the runs, the settings in which they differ, the best values and all figures; returns the path."""
    content = comparison_content(runs)
    letters = letters_of(runs)
    states = [[_cell(row.name, 34), _cell(row.id, 44), row.status, str(row.step)] for row, _ in runs]
    pages = table_pages(f"{len(runs)} runs", "", ["name", "run", "status", "last step"], letters, states)
    for first in range(0, len(runs), _RUNS_OF_A_TABLE):
        part = slice(first, first + _RUNS_OF_A_TABLE)
        differences = content["differences"]
        if differences:
            cells = [[_cell(value) for value in one["values"][part]] for one in differences]
            labels = [_cell(one["path"], 40) for one in differences]
            pages += table_pages("Settings that differ", "", letters[part], labels, cells)
        if content["best"]:
            cells = [[_best(cell) for cell in one["cells"][part]] for one in content["best"]]
            labels = [one["metric"] for one in content["best"]]
            pages += table_pages("Best values", "with their steps", letters[part], labels, cells)
    figures = (
        draw_panels(panels, title=_title(group), shared_scale=group.shared_scale)
        for group, panels in _panels(runs, histories)
    )
    return save_pages([*pages, *figures], output, title=f"{len(runs)} runs")


def comparison_csv(runs: Runs) -> str:
    """One line for each metric and run: first, last and best value, with the training steps of the values."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("metric", "direction", "run", "first", "first_step", "last", "last_step", "best", "best_step"))
    for entry in comparison_content(runs)["best"]:
        for (row, _), cell in zip(runs, entry["cells"], strict=True):
            if cell is not None:
                places = [cell["first"], cell["last"], cell.get("best", {"value": "", "step": ""})]
                values = [part for one in places for part in (one["value"], one["step"])]
                lines.writerow((entry["metric"], entry["direction"], spreadsheet_text(row.id), *values))
    return text.getvalue()


def comparison_latex(runs: Runs) -> str:
    """The best values as a table for the package booktabs: a row for each metric, a column for each run."""
    names = ", ".join(f"{letter}: {row.id}" for letter, (row, _) in zip(letters_of(runs), runs, strict=True))
    rows = [
        (
            entry["metric"],
            [f"{cell['best']['value']:.4g}" if cell and "best" in cell else "--" for cell in entry["cells"]],
        )
        for entry in comparison_content(runs)["best"]
    ]
    return latex_table(letters_of(runs), rows, caption=f"Best values. {names}")


def letters_of(runs: Sequence[object]) -> list[str]:
    return [chr(ord("A") + number) for number in range(len(runs))]


def _panels(runs: Runs, histories: Sequence[History]) -> list[tuple[ChartGroup, list[Panel]]]:
    names = list(dict.fromkeys(name for history in histories for name, points in history.items() if points))
    labels = [
        f"{letter}  {shorten(row.name, 34, placeholder=' …')}"
        for letter, (row, _) in zip(letters_of(runs), runs, strict=True)
    ]
    styles = {label: _style(label, number) for number, label in enumerate(labels)}
    book, found = ChartBook(names), []
    for group in book.figures():
        panels = []
        for chart in group.charts:
            for metric in chart.lines.values():
                lines = {
                    label: history[metric]
                    for label, history in zip(labels, histories, strict=True)
                    if history.get(metric)
                }
                panels.append(
                    Panel(metric, chart.unit, chart.direction, lines, from_zero=chart.from_zero, styles=styles)
                )
        found.append((group, panels))
    return found


def _style(label: str, number: int) -> Style:
    dashes = _DASHES[number // len(_COLORS) % len(_DASHES)]
    return Style(label, _COLORS[number % len(_COLORS)], 1.6, "o", 3.0, 0.95, 3, dashes)


def _title(group: ChartGroup) -> str:
    return group.caption[:1].upper() + group.caption[1:]


def _cell(value: object, longest: int = _LONGEST_CELL) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _best(cell: Mapping[str, Any] | None) -> str:
    return f"{cell['best']['value']:.4g} ({cell['best']['step']})" if cell and "best" in cell else "-"
