"""The scripts and styles of the pages, which the dashboard serves and a report holds."""

from pathlib import Path

STATIC = Path(__file__).parent / "dashboard" / "static"
CHARTS = ("uplot", "common", "axes", "view", "charts", "marks")
"""Scripts of every page with charts, in their order."""
RUN_PAGE = (*CHARTS, "heat", "run", "evaluations")
COMPARISON_PAGE = (*CHARTS, "compare")
