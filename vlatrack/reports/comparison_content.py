"""What a comparison page shows of some runs, as JSON values."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vlatrack.metrics.schema import MetricSchema
from vlatrack.reports.charts import ChartBook
from vlatrack.reports.run_content import group_content, line_content, start_params, value_cell
from vlatrack.reports.run_rows import RunRow
from vlatrack.spec.setting_differences import setting_differences, with_defaults
from vlatrack.tracking.journal.series import JournalSeries

MOST_COMPARED = 20
_POINTS = 600


def comparison_content(runs: Sequence[tuple[RunRow, JournalSeries]], *, most_points: int = _POINTS) -> dict[str, Any]:
    """Rows, charts, lines and best values of each run, and the settings in which they differ."""
    names = list(dict.fromkeys(name for _, series in runs for name in series.metrics))
    book = ChartBook(names)
    settings = [with_defaults(start_params(series.others)) for _, series in runs]
    return {
        "runs": [
            {
                "row": asdict(row),
                "lines": line_content(series.metrics, most_points=most_points),
                "read": series.progress,
                "batch_size": params.get("train.batch_size"),
            }
            for (row, series), params in zip(runs, settings, strict=True)
        ],
        "groups": [group_content(group) for group in book.page()],
        "differences": [asdict(difference) for difference in setting_differences(settings)],
        "best": _best_table(book.schema, names, runs),
    }


def _best_table(
    schema: MetricSchema, names: Sequence[str], runs: Sequence[tuple[RunRow, JournalSeries]]
) -> list[dict[str, Any]]:
    documented = ("closs", "loss_ct", "z_loss", "loss", "l1_loss_action")
    table = []
    for name in (f"{split}_{loss}" for split in ("train", "val_ind", "val_ood") for loss in documented):
        if name in names and name in schema:
            cells = [value_cell(schema, name, s.metrics[name]) if name in s.metrics else None for _, s in runs]
            metric = schema[name]
            named = {"metric": name, "step": metric.step, "unit": metric.unit, "direction": metric.direction.value}
            table.append({**named, "cells": cells})
    return table
