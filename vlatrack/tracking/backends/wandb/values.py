"""Which metric values W&B holds, read page by page."""

from collections.abc import Iterator

from wandb.apis.public import Run as PublicRun

from vlatrack.tracking.backends.base import StoredValue

VALUES_PER_PAGE, MOST_ROWS_PER_PAGE = 50_000, 1000


def stored_values(run: PublicRun, x_axis: str) -> Iterator[StoredValue]:
    """All metric values in the history of a run; what W&B itself adds to a row begins with an underscore."""
    if run.lastHistoryStep < 0:
        return
    width = len(run.summary.keys())  # one of each metric
    rows_per_page = max(1, min(MOST_ROWS_PER_PAGE, VALUES_PER_PAGE // max(1, width)))
    for row in run.scan_history(page_size=rows_per_page, use_cache=False):
        step, t_ms = row[x_axis], round(row["_timestamp"] * 1000)
        for key, value in row.items():
            if key != x_axis and not key.startswith("_"):
                yield StoredValue(key, t_ms, step, float(value))
