"""A stretch of a run's lines in more detail than the page of the whole run has."""

import math
from collections.abc import Mapping
from typing import Any

from vlatrack.reports.run_content import MOST_POINTS, line_content
from vlatrack.tracking.journal.decimation import DecimatedSeries
from vlatrack.tracking.journal.series import JournalSeries

_MOST_READ_BYTES = 64_000_000
"""Of a journal, for one answer: half a second. A longer stretch is shown as it is kept, which is nearly as fine, until
somebody zooms in further."""


def zoomed_content(series: JournalSeries, low: float, high: float) -> dict[str, Any]:
    """The lines from step `low` to step `high`, both included, as `line_content` gives them: every value, or the
    smallest and the largest of each of many short stretches.

    Raises OSError if the journal cannot be read.
    """
    metrics: Mapping[str, DecimatedSeries] = series.metrics
    kept = [metric.points_between(low, high) for metric in metrics.values() if math.isfinite(metric.settled_step)]
    if any(len(points) < MOST_POINTS for points in kept):
        metrics = series.again(low, high, most_bytes=_MOST_READ_BYTES) or metrics
    return line_content(metrics, since=low, until=high)
