"""Everything that a run's page shows, as JSON values: the dashboard sends it, and a report is a page that holds it.

Legend: a line is the points of a metric as three lists, of steps, times (Unix milliseconds) and values. JSON knows no
NaN, so the steps of values that are not finite stand in a list of their own.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vlatrack.errors import DataError
from vlatrack.metrics.names import SPLITS
from vlatrack.metrics.schema import EVALUATE, Direction, MetricSchema
from vlatrack.reports.action_errors import read_last_errors
from vlatrack.reports.action_references import ActionReferences
from vlatrack.reports.charts import ChartBook, ChartGroup
from vlatrack.reports.evaluation_content import evaluations_content, own_text
from vlatrack.reports.run_rows import LOSSES, RunRow
from vlatrack.tracking.journal.decimation import STEP, TIME, VALUE, DecimatedSeries, thinned
from vlatrack.tracking.journal.records import JournalDamage, Kind, Record
from vlatrack.tracking.journal.series import JournalSeries

MOST_POINTS = 1500
"""Of a line; more would not fit on a screen."""
_MOST_FILES = 2000
_NOT_SHOWN = {"delivery", "tensorboard", "wandb"}


def run_content(run_dir: Path, row: RunRow, series: JournalSeries, *, most_points: int = MOST_POINTS) -> dict[str, Any]:
    """The whole page of a run whose journal has been read into ``series``."""
    params = start_params(series.others)
    references, problem = _references(run_dir / "evaluation")
    logged = (name for name, metric in series.metrics.items() if len(metric) or metric.non_finite_count)
    book = ChartBook(logged, action_names=references.action_names)
    return {
        "row": asdict(row),
        "groups": [group_content(group) for group in book.page()],
        "meanings": _meanings(book.schema, series.metrics),
        "lines": line_content(series.metrics, most_points=most_points),
        "summary": summary_rows(book.schema, series.metrics),
        "grids": _grids(run_dir / "evaluation" / "action_errors.csv"),
        "references": _baselines(references, book) | ({} if problem is None else {"error": problem}),
        "events": [event for record in series.others if (event := _event(record)) is not None],
        "evaluations": list(evaluations_content(run_dir)),
        "spec": own_text(run_dir / "spec.yaml"),
        "manifest": own_text(run_dir / "manifest.json"),
        "params": params,
        "best": _best(params, series.metrics, book.schema),
        "files": _files(run_dir),
        "damaged": series.damage.told(),
        "read": series.progress,
    }


def line_content(
    metrics: Mapping[str, DecimatedSeries],
    *,
    most_points: int = MOST_POINTS,
    since: float = -math.inf,
    until: float = math.inf,
) -> dict[str, Any]:
    """The lines of these metrics; those that share their steps share the lists of them, by number.

    Args:
        since: only the points from this step on; those before ``settled`` will not change any more.
        until: only the points up to this step.
    """
    axes: list[dict[str, list[int]]] = []
    known: dict[bytes, int] = {}
    lines: dict[str, dict[str, Any]] = {}
    for name, metric in metrics.items():
        points = thinned(metric.points_between(since, until), most_points)
        bad = [int(step) for step, _, _ in metric.non_finite if since <= step <= until]
        if not len(points) and not bad:
            continue
        where = points[:, : TIME + 1].tobytes()
        if where not in known:
            known[where] = len(axes)
            axes.append({"step": points[:, STEP].astype(int).tolist(), "t_ms": points[:, TIME].astype(int).tolist()})
        lines[name] = {"axis": known[where], "values": [_rounded(value) for value in points[:, VALUE].tolist()]}
        if bad:
            lines[name] |= {"bad": bad, "bad_count": metric.non_finite_count}
    settled = min((metric.settled_step for metric in metrics.values()), default=-math.inf)
    return {"axes": axes, "lines": lines, "settled": settled if math.isfinite(settled) else None}


def summary_of(run_dir: Path, *, damage: JournalDamage | None = None) -> list[dict[str, Any]]:
    """`summary_rows` of a run directory; OSError if its journal cannot be read."""
    series = JournalSeries(run_dir / "journal.jsonl", damage=damage)
    series.read_all()
    return summary_rows(MetricSchema.covering(series.metrics), series.metrics)


def summary_rows(schema: MetricSchema, metrics: Mapping[str, DecimatedSeries]) -> list[dict[str, Any]]:
    """First, last and best value of each documented metric on each split, the documented losses first."""
    families = [*LOSSES, *(name for name in _bare_names(metrics) if name.startswith("l1_loss_action_"))]
    rows = []
    for family in families:
        logged = {split: name for split in SPLITS if (name := f"{split}_{family}") in metrics}
        names = {split: name for split, name in logged.items() if name in schema}  # others only look like it
        cells = {split: cell for split, name in names.items() if (cell := value_cell(schema, name, metrics[name]))}
        if cells:
            metric = schema[next(iter(names.values()))]
            rows.append({"metric": family, "step": metric.step, "unit": metric.unit, "splits": cells})
    return rows


def value_cell(schema: MetricSchema, name: str, metric: DecimatedSeries) -> dict[str, Any] | None:
    """First, last and best value with their steps; None without one that is finite."""
    points = metric.points()
    if not len(points) or metric.first is None or metric.last is None:
        return None
    direction = schema[name].direction if name in schema else Direction.NONE
    values = points[:, VALUE]
    best = points[int(values.argmin() if direction is Direction.LOWER else values.argmax())]
    cell = {"first": _at(metric.first), "last": _at(metric.last), "bad": metric.non_finite_count}
    return cell if direction is Direction.NONE else cell | {"best": _at(best)}


def _bare_names(metrics: Iterable[str]) -> list[str]:
    found = (name.removeprefix(f"{split}_") for name in metrics for split in SPLITS if name.startswith(f"{split}_"))
    return list(dict.fromkeys(found))


def _at(point: "np.ndarray[Any, np.dtype[np.float64]] | tuple[float, float, float]") -> dict[str, float]:
    return {"step": int(point[STEP]), "value": _rounded(float(point[VALUE]))}


def _rounded(value: float) -> float:
    """Six digits: more cannot be seen, and cost most of a report's size."""
    return float(f"{value:.6g}")


def json_text(content: Mapping[str, Any]) -> str:
    """The content as strict JSON: numbers that are not finite become text."""
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError:  # losses that are not finite, and whatever stands in a journal that somebody else wrote
        return json.dumps(_finite(content), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def group_content(group: ChartGroup) -> dict[str, Any]:
    charts = [
        {
            "title": chart.title,
            "unit": "" if chart.unit == "1" else chart.unit,
            "direction": chart.direction.value,
            "lines": dict(chart.lines),
            "floor": chart.floor,
            "from_zero": chart.from_zero,
        }
        for chart in group.charts
    ]
    return {"name": group.name, "caption": group.caption, "shared_scale": group.shared_scale, "charts": charts}


def _meanings(schema: MetricSchema, names: Iterable[str]) -> dict[str, str]:
    return {name: schema[name].meaning for name in names if name in schema and not name.startswith(EVALUATE)}


def _grids(table: Path) -> list[dict[str, Any]]:
    if not table.is_file():
        return []
    try:
        found = read_last_errors(table)
    except DataError as error:
        return [{"error": str(error)}]
    return [
        {
            "split": split,
            "route": route,
            "epoch": epoch + 1,
            "grid": [[_rounded(v) if math.isfinite(v) else None for v in row] for row in grid],
        }
        for (split, route), (epoch, grid) in found.items()
    ]


def _event(record: Record) -> dict[str, Any] | None:
    """An event, start or end as the page lists it; artifacts are files and stand there."""
    if record.kind == Kind.ARTIFACT or record.wrong_field() is not None:
        return None
    data = record.data
    if record.kind == Kind.START:
        return {"name": "start", "t_ms": record.t_ms, "step": None, "data": {}, "alert": False}
    if record.kind == Kind.FINISH:
        end = {key: value for key in ("status", "reason") if (value := data[key]) is not None}
        return {"name": "finish", "t_ms": record.t_ms, "step": None, "data": end, "alert": False}
    if record.kind != Kind.EVENT:
        return None
    shown = {str(key): value for key, value in data["data"].items() if key != "vlatrack.results"}
    step = shown.get("step", shown.get("from_step"))
    step = step if isinstance(step, int) else None
    return {"name": data["name"], "t_ms": record.t_ms, "step": step, "data": shown, "alert": data["alert"]}


def start_params(records: Iterable[Record]) -> dict[str, Any]:
    starts = [record for record in records if record.kind == Kind.START and record.wrong_field() is None]
    return dict(starts[-1].data["params"]) if starts else {}


def _references(folder: Path) -> tuple[ActionReferences, str | None]:
    """Names of the action dimensions and baselines, and what is wrong with the file of them."""
    try:
        return ActionReferences.read(folder), None
    except DataError as error:
        return ActionReferences(), str(error)


def _baselines(references: ActionReferences, book: ChartBook) -> dict[str, Any]:
    """The names of the dimensions, and for each metric named without split the baselines on each split."""
    names = _bare_names(name for group in book.page() for chart in group.charts for name in chart.lines.values())
    by_metric = {name: {s: references.of_metric(name, s) for s in references.baselines} for name in names}
    baselines = {
        name: {split: {k: _rounded(v) for k, v in values.items()} for split, values in of_split.items() if values}
        for name, of_split in by_metric.items()
        if any(of_split.values())
    }
    return {"names": list(references.action_names), "baselines": baselines}


def _best(
    params: Mapping[str, Any], metrics: Mapping[str, DecimatedSeries], schema: MetricSchema
) -> dict[str, Any] | None:
    """The metric that says which checkpoint is best, and where it was: the step, the time, and the epoch from 1, as far
    as one is logged; None if that is not known."""
    name = params.get("train.checkpoint.best_metric")
    if not isinstance(name, str) or name not in metrics:
        return None
    cell = value_cell(schema, name, metrics[name])
    if cell is None or "best" not in cell:
        return None
    step = cell["best"]["step"]
    t_ms = int(metrics[name].points_between(step, step)[0, TIME])
    epochs = metrics["epoch"].points_between(-math.inf, step) if "epoch" in metrics else None
    epoch = None if epochs is None or not len(epochs) else math.ceil(epochs[-1, VALUE])
    return {"metric": name, **cell["best"], "t_ms": t_ms, "epoch": epoch}


def _files(run_dir: Path) -> list[dict[str, Any]]:
    """Path and size of the run's files, without what only the delivery needs; links are not followed."""
    found: list[dict[str, Any]] = []
    for folder, folders, names in os.walk(run_dir):
        folders[:] = sorted(name for name in folders if name not in _NOT_SHOWN and not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and not path.is_symlink():
                found.append({"path": path.relative_to(run_dir).as_posix(), "bytes": path.stat().st_size})
        if len(found) >= _MOST_FILES:
            break
    return found[:_MOST_FILES]
