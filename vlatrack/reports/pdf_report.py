"""The report of a run, or of some, as a PDF for print: what came of it as tables, then figures, a page each."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from vlatrack.reports.figures import FigureNotes, History, figure_panels
from vlatrack.reports.panels import draw_panels
from vlatrack.reports.run_rows import RunRow

_A4_INCHES = (8.27, 11.69)
_LINES_OF_A_PAGE = 34
_LETTERS_OF_A_LINE = 130


def write_pdf_report(
    row: RunRow, summary: Sequence[Mapping[str, Any]], history: History, output: Path, notes: FigureNotes
) -> Path:
    """Write the PDF of one run, replacing the file in one step; returns its path.

    Args:
        summary: as `summary_rows` returns it.
        history: the logged points of each metric.
    """
    verdict = ", ".join(finding.detector for finding in row.findings) or "healthy"
    splits = list(dict.fromkeys(split for line in summary for split in line["splits"]))
    pages = table_pages(
        shorten(row.name, 70, placeholder=" …"),
        f"{row.id} · {row.status} · step {row.step} · {verdict}",
        [f"{split}\nfirst → last (best)" for split in splits],
        [line["metric"] + ("" if line["step"] is None else f" ({line['step']})") for line in summary],
        [[_cell(line["splits"].get(split)) for split in splits] for line in summary],
    )
    figures = (
        draw_panels(panels, title=f"{row.id}: {group.caption}", shared_scale=group.shared_scale)
        for group, panels in figure_panels(history, notes)
    )
    return save_pages([*pages, *figures], output, title=row.id)


def save_pages(pages: Iterable[Figure], output: Path, *, title: str) -> Path:
    """Write these pages as a PDF, replacing the file in one step; returns its path."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.part")
    try:
        with PdfPages(unfinished, metadata={"Creator": "vlatrack", "Title": title, "CreationDate": None}) as file:
            for page in pages:
                file.savefig(page)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)  # of a full disk
    return output


def table_pages(
    title: str, told: str, heads: Sequence[str], labels: Sequence[str], cells: Sequence[Sequence[str]]
) -> list[Figure]:
    """A table with a label for each row, on as many A4 pages as it needs; at least one page, which has the title."""
    pages = []
    for first in range(0, max(1, len(labels)), _LINES_OF_A_PAGE):
        figure = Figure(figsize=_A4_INCHES)
        FigureCanvasAgg(figure)
        figure.text(0.07, 0.95, title, fontsize=15, weight="bold", parse_math=False)
        told_here = shorten(told, _LETTERS_OF_A_LINE, placeholder=" …")
        figure.text(0.07, 0.93, told_here, fontsize=8.5, color="#555555", parse_math=False)
        part = slice(first, first + _LINES_OF_A_PAGE)
        if labels[part]:
            _add_table(figure, heads, labels[part], cells[part])
        pages.append(figure)
    return pages


def _add_table(figure: Figure, heads: Sequence[str], labels: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    axes = figure.add_axes((0.07, 0.05, 0.86, 0.85))
    axes.set_axis_off()
    longest = max(map(len, labels))
    table = axes.table(
        [list(row) for row in cells],
        rowLabels=list(labels),
        colLabels=list(heads),
        colWidths=[(1 - min(0.4, 0.01 * longest)) / len(heads)] * len(heads),
        loc="upper right",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8 if len(heads) <= 6 else 6 if len(heads) <= 10 else 4)
    table.scale(1, 1.45)
    for column in range(len(heads)):
        table[0, column].set_height(1.8 * table[0, column].get_height())
    for cell in table.get_celld().values():
        cell.get_text().set_parse_math(False)


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    best = f" ({cell['best']['value']:.4g})" if "best" in cell else ""
    return f"{cell['first']['value']:.4g} → {cell['last']['value']:.4g}{best}"
