"""The results of a run as tables for a spreadsheet and for a paper: first, last and best of each documented metric.

Rows are those of `summary_rows`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from vlatrack.metrics.names import SPLITS

Rows = Sequence[Mapping[str, Any]]

_COLUMNS = ("metric", "chunk_step", "unit", "split", "first", "first_step", "last", "last_step", "best", "best_step")
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "_%&#${}"},
})  # fmt: skip


def spreadsheet_text(text: str) -> str:
    """A cell that a spreadsheet does not take for a formula, as the name of somebody else's run may be one."""
    return f"'{text}" if text[:1] in ("=", "+", "@") else text


def results_csv(rows: Rows) -> str:
    """One line for each metric and split, with the training steps of the values."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for row in rows:
        for split, cell in row["splits"].items():
            best = cell.get("best", {"value": "", "step": ""})
            values = [part for one in (cell["first"], cell["last"], best) for part in (one["value"], one["step"])]
            step = "" if row["step"] is None else row["step"]
            lines.writerow([f"{split}_{row['metric']}", step, row["unit"], split, *values])
    return text.getvalue()


def results_latex(rows: Rows, *, caption: str) -> str:
    """A table for the package booktabs: a row for each metric, and for each split the last and the best value."""
    splits = [split for split in SPLITS if any(split in row["splits"] for row in rows)]
    heads = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_latex(split)}}}" for split in splits)
    above = [rf"metric & {heads} \\", rf"{'& last & best ' * len(splits)}\\"]
    return _booktabs("rr" * len(splits), above, [_latex_row(row, splits) for row in rows], caption)


def latex_table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, caption: str) -> str:
    """A table for the package booktabs with a label and a cell a column for each row."""
    lines = [rf"{_latex(label)} & {' & '.join(map(_latex, cells))} \\" for label, cells in rows]
    return _booktabs("r" * len(heads), [rf"metric & {' & '.join(map(_latex, heads))} \\"], lines, caption)


def _booktabs(columns: str, heads: Sequence[str], lines: Sequence[str], caption: str) -> str:
    parts = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(caption)}}}",
        rf"\begin{{tabular}}{{l{columns}}}",
        r"\toprule",
        *heads,
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def _latex_row(row: Mapping[str, Any], splits: Sequence[str]) -> str:
    cells = []
    for split in splits:
        cell = row["splits"].get(split)
        cells += ["--", "--"] if cell is None else [_number(cell["last"]), _number(cell.get("best"))]
    step = "" if row["step"] is None else f" (step {row['step']})"
    return rf"{_latex(row['metric'])}{step} & {' & '.join(cells)} \\"


def _number(at: Mapping[str, float] | None) -> str:
    return "--" if at is None else f"{at['value']:.4g}"


def _latex(text: str) -> str:
    return text.translate(_LATEX)
