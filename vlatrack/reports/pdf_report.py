"""The report of a run as a PDF for print: its results as a table, then its figures, a page each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from vlatrack.reports.charts import ChartBook
from vlatrack.reports.figures import History, panels_of
from vlatrack.reports.panels import draw_panels
from vlatrack.reports.run_rows import RunRow

_A4_INCHES = (8.27, 11.69)
_LINES_OF_A_PAGE = 34


def write_pdf_report(row: RunRow, summary: Sequence[Mapping[str, Any]], history: History, output: Path) -> Path:
    """Write the PDF, replacing the file in one step; returns its path.

    Args:
        summary: as `summary_rows` returns it.
        history: the logged points of each metric.
    """
    logged = {name: points for name, points in history.items() if points}
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.part")
    with PdfPages(unfinished, metadata={"Creator": "vlatrack", "Title": row.id, "CreationDate": None}) as pages:
        for first in range(0, max(1, len(summary)), _LINES_OF_A_PAGE):
            pages.savefig(_table_page(row, summary[first : first + _LINES_OF_A_PAGE]))
        for group in ChartBook(logged).figures():
            panels = panels_of(group, logged)
            pages.savefig(draw_panels(panels, title=f"{row.id}: {group.caption}", shared_scale=group.shared_scale))
    unfinished.replace(output)
    return output


def _table_page(row: RunRow, summary: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=_A4_INCHES)
    FigureCanvasAgg(figure)
    figure.text(0.07, 0.95, shorten(row.name, 70, placeholder=" …"), fontsize=15, weight="bold", parse_math=False)
    verdict = ", ".join(finding.detector for finding in row.findings) or "healthy"
    state = f"{row.id} · {row.status} · step {row.step} · {verdict}"
    figure.text(0.07, 0.93, shorten(state, 110, placeholder=" …"), fontsize=8.5, color="#555555", parse_math=False)
    if summary:
        axes = figure.add_axes((0.07, 0.05, 0.86, 0.85))
        axes.set_axis_off()
        splits = list(dict.fromkeys(split for line in summary for split in line["splits"]))
        heads = [f"{split}\nfirst → last (best)" for split in splits]
        cells = [[_cell(line["splits"].get(split)) for split in splits] for line in summary]
        labels = [line["metric"] + ("" if line["step"] is None else f" ({line['step']})") for line in summary]
        widths = [0.8 / len(splits)] * len(splits)
        table = axes.table(
            cells, rowLabels=labels, colLabels=heads, colWidths=widths, loc="upper right", edges="horizontal"
        )
        table.auto_set_font_size(False)
        table.set_fontsize(8)
        table.scale(1, 1.45)
        for column in range(len(splits)):
            table[0, column].set_height(1.8 * table[0, column].get_height())
    return figure


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    best = f" ({cell['best']['value']:.4g})" if "best" in cell else ""
    return f"{cell['first']['value']:.4g} → {cell['last']['value']:.4g}{best}"
