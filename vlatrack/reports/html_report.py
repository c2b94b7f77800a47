"""The page of a run, or of a comparison, as one file that needs nothing else: its content stands inside."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlatrack.reports.comparison_content import comparison_content
from vlatrack.reports.line_files import replace_text
from vlatrack.reports.page_files import COMPARISON_PAGE, RUN_PAGE, STATIC
from vlatrack.reports.run_content import json_text, run_content
from vlatrack.reports.run_rows import RunReader, RunRow
from vlatrack.tracking.journal.records import JournalDamage
from vlatrack.tracking.journal.series import JournalSeries

MOST_BYTES = 3_000_000
_POINTS = (1000, 500, 250, 120, 60)
"""Of a line, as many as leave the file small enough."""
_STYLES = ("uplot.css", "style.css")
_PAGE = """<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>vlatrack report</title>
{styles}
</head>
<body>
<header class="top"><span class="brand">vlatrack</span> <span class="place" id="place"></span>
<span class="right" id="right"></span></header>
<main id="main"></main>
<noscript><p class="problem">This report needs JavaScript; the tables and figures beside it do not.</p></noscript>
<script type="application/json" id="content">{content}</script>
{scripts}
</body>
</html>
"""


def write_report(run_dir: Path, output: Path, *, damage: JournalDamage | None = None) -> Path:
    """Write the report of a run as it is now, replacing the file in one step; returns its path.

    The lines of its journal that are left out are noted in ``damage``; the page names them.

    Raises:
        TrackerError, OSError: the run cannot be read, or the folder not be made.
        DataError: the file cannot be written.
    """
    row, series = read_run(run_dir, damage=damage)

    def content(most_points: int) -> dict[str, Any]:
        return run_content(run_dir, row, series, most_points=most_points) | {"files": []}

    return _write(content, (*RUN_PAGE, "report"), output)


def write_comparison(runs: Sequence[tuple[RunRow, JournalSeries]], output: Path) -> Path:
    """Write the comparison of some runs as they are now, as `write_report` does."""
    return _write(
        lambda most_points: comparison_content(runs, most_points=most_points), (*COMPARISON_PAGE, "report"), output
    )


def read_run(run_dir: Path, *, damage: JournalDamage | None = None) -> tuple[RunRow, JournalSeries]:
    """The row of a run, without what changes after a report is written, and its journal, read to its end but for
    damaged lines, which are noted.

    Raises TrackerError or OSError if the run cannot be read.
    """
    row = replace(RunReader(run_dir).row(), undelivered={}, refused={})
    series = JournalSeries(run_dir / "journal.jsonl", damage=damage)
    series.read_all()
    return row, series


def _write(content: Callable[[int], dict[str, Any]], scripts: Sequence[str], output: Path) -> Path:
    """`content` is asked for fewer and fewer points of a line, until the file is small enough."""
    for points in _POINTS:
        page = _page(content(points), scripts)
        if len(page.encode()) <= MOST_BYTES:
            break
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_text(output, page)
    return output


def _page(content: dict[str, Any], scripts: Sequence[str]) -> str:
    styles = "\n".join(f"<style>{(STATIC / name).read_text(encoding='utf-8')}</style>" for name in _STYLES)
    texts = ((STATIC / f"{name}.js").read_text(encoding="utf-8") for name in scripts)
    # Inside a script element only "<" could end it, or begin a comment.
    inside = json_text(content).replace("<", "\\u003c")
    return _PAGE.format(styles=styles, scripts="\n".join(f"<script>{text}</script>" for text in texts), content=inside)
