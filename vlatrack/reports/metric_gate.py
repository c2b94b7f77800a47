"""Whether the last value of a metric of one run reaches that of another."""

import math
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import DataError, SpecError
from vlatrack.metrics.schema import Direction, MetricSchema
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.run_files import RunFiles


@dataclass(frozen=True)
class MetricGate:
    """The last value of each run, and what A had to reach."""

    a: float
    b: float
    limit: float
    passes: bool


def check_metric(run_a: Path, run_b: Path, metric: str, *, at_least: bool, margin: float, relative: bool) -> MetricGate:
    """Compare run A with the value of run B plus ``margin``, or plus that share of B's absolute value.

    A value of A that is not finite never passes.

    Raises:
        SpecError: the other direction is the better one of this metric.
        DataError: a run has no such metric, or B's value is not finite.
    """
    a, b = (_last_value(run, metric, at_least=at_least) for run in (run_a, run_b))
    if not math.isfinite(b):
        raise DataError(f"{run_b}: {metric} is {b}, which nothing can be compared with")
    limit = b + margin * (abs(b) if relative else 1.0)
    return MetricGate(a, b, limit, math.isfinite(a) and (a >= limit if at_least else a <= limit))


def _last_value(run: Path, metric: str, *, at_least: bool) -> float:
    journal = RunFiles(run).journal
    if not journal.is_file():
        raise DataError(f"{run}: no run directory (journal.jsonl is missing)")
    history = metric_history(journal)
    schema = MetricSchema.covering(history)
    if metric not in history:
        raise DataError(f"{run}: has logged no {schema.suggest(metric)}")
    direction = schema[metric].direction if metric in schema else Direction.NONE
    if direction is (Direction.LOWER if at_least else Direction.HIGHER):
        sign = "<=" if at_least else ">="
        raise SpecError(f"--gate: {direction} is better of {metric}; write {metric} {sign} B")
    return history[metric][-1][1]
