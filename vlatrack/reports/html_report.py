"""A run's page as one file that needs nothing else: the dashboard's page with its content inside."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vlatrack.reports.line_files import replace_text
from vlatrack.reports.page_files import RUN_PAGE, STATIC
from vlatrack.reports.run_content import json_text, run_content
from vlatrack.reports.run_rows import RunReader
from vlatrack.tracking.journal.series import JournalSeries

MOST_BYTES = 3_000_000
_POINTS = (1000, 500, 250, 120, 60)
"""Of a line, as many as leave the file small enough."""
_STYLES = ("uplot.css", "style.css")
_SCRIPTS = (*RUN_PAGE, "report")
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


def write_report(run_dir: Path, output: Path) -> Path:
    """Write the report of a run as it is now, replacing the file in one step; returns its path.

    Raises:
        TrackerError, OSError: the run cannot be read, or the folder not be made.
        DataError: the file cannot be written.
    """
    row = replace(RunReader(run_dir).row(), undelivered={}, refused={})  # that changes after the report is written
    series = JournalSeries(run_dir / "journal.jsonl")
    series.read_all()
    for points in _POINTS:
        content = run_content(run_dir, row, series, most_points=points) | {"files": []}
        page = _page(content)
        if len(page.encode()) <= MOST_BYTES:
            break
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_text(output, page)
    return output


def _page(content: dict[str, Any]) -> str:
    styles = "\n".join(f"<style>{(STATIC / name).read_text(encoding='utf-8')}</style>" for name in _STYLES)
    scripts = "\n".join(f"<script>{(STATIC / f'{name}.js').read_text(encoding='utf-8')}</script>" for name in _SCRIPTS)
    # Inside a script element only "<" could end it, or begin a comment.
    inside = json_text(content).replace("<", "\\u003c")
    return _PAGE.format(styles=styles, scripts=scripts, content=inside)
