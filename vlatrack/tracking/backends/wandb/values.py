"""Which metric values W&B holds, read page by page."""

from collections.abc import Iterator

from wandb.apis.public import Run as PublicRun

from vlatrack.tracking.backends.base import StoredValue

ROWS_PER_PAGE = 1000


def stored_values(run: PublicRun, x_axis: str) -> Iterator[StoredValue]:
    """All metric values in the history of a run; what W&B itself adds to a row begins with an underscore."""
    if run.lastHistoryStep < 0:
        return
    for row in run.scan_history(page_size=ROWS_PER_PAGE, use_cache=False):
        step, t_ms = row[x_axis], round(row["_timestamp"] * 1000)
        for key, value in row.items():
            if key != x_axis and not key.startswith("_"):
                yield StoredValue(key, t_ms, step, float(value))
