"""The metrics of several runs: first, last and best values."""

import difflib
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlatrack.errors import SpecError
from vlatrack.metrics.schema import SYSTEM, Direction, MetricSchema
from vlatrack.runner.comparison.recorded import History

_DOCUMENTED = re.compile(r"(train|val_ind|val_ood)_(closs|loss_ct|z_loss|loss|l1_loss_action_\d+)")
TIMING_GROUPS = ("speed", "system")
"""Groups of metrics that measure the machine, which no two runs share."""


@dataclass(frozen=True)
class Values:
    """A metric of one run; steps are training steps. `best` is None if none is finite or no direction is better."""

    first: float
    last: float
    last_step: int
    best: float | None
    best_step: int | None


@dataclass(frozen=True)
class MetricRow:
    """A metric of all runs, in their order; None for a run that has not logged it."""

    name: str
    meaning: str
    unit: str
    direction: Direction
    values: tuple[Values | None, ...]

    @property
    def best_run(self) -> int | None:
        """The index of the run with the best last value; None if runs share it, or none is better."""
        finite = {i: v.last for i, v in enumerate(self.values) if v is not None and math.isfinite(v.last)}
        if self.direction is Direction.NONE or len(finite) < 2:
            return None
        best = (min if self.direction is Direction.LOWER else max)(finite.values())
        leading = [i for i, value in finite.items() if value == best]
        return leading[0] if len(leading) == 1 else None


def metric_rows(histories: Sequence[History], patterns: Sequence[str] = ()) -> list[MetricRow]:
    """The documented metrics that any run has logged, and those that a pattern such as ``val_ood_acc_*`` fits.

    Of runs without any documented metric, all but those of the machine.

    Raises:
        SpecError: a pattern fits none.
    """
    names = dict.fromkeys(name for history in histories for name in history)
    schema = MetricSchema.covering(names)
    chosen = [name for name in names if _DOCUMENTED.fullmatch(name)]
    if not chosen:
        chosen = [name for name in names if not measures_machine(name, schema) and name != "epoch"]
    for pattern in patterns:
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            raise SpecError(f"--metrics: no run has logged {suggested(pattern, names, schema)}")
        chosen += fitting
    places = {name: number for number, name in enumerate(schema.names())}
    in_order = sorted(dict.fromkeys(chosen), key=lambda name: (places.get(name, len(places)), name))
    return [_row(name, histories, schema) for name in in_order]


def measures_machine(name: str, schema: MetricSchema) -> bool:
    """Whether a metric is of a group of times and loads."""
    return schema[name].group in TIMING_GROUPS if name in schema else name.startswith(SYSTEM)


def suggested(name: str, logged: Mapping[str, Any], schema: MetricSchema) -> str:
    """The name, with the nearest that a run has logged, or that is declared."""
    near = difflib.get_close_matches(name, logged, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else schema.suggest(name)


def _row(name: str, histories: Sequence[History], schema: MetricSchema) -> MetricRow:
    meaning, unit, direction = "", "", Direction.NONE  # of a metric that nobody declared
    if name in schema:
        meaning, unit, direction = schema[name].meaning, schema[name].unit, schema[name].direction
    values = tuple(_values(history.get(name, ()), direction) for history in histories)
    return MetricRow(name, meaning, unit, direction, values)


def _values(points: Sequence[tuple[int, float]], direction: Direction) -> Values | None:
    if not points:
        return None
    best = None
    finite = [(value, step) for step, value in points if math.isfinite(value)]
    if finite and direction is not Direction.NONE:
        sign = 1 if direction is Direction.LOWER else -1
        best = min(finite, key=lambda point: (sign * point[0], point[1]))
    value, step = best or (None, None)
    return Values(points[0][1], points[-1][1], points[-1][0], value, step)
