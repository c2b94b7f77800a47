"""Runs that differ in their seed alone, as one group: mean, spread and a bootstrap interval."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from vlatrack.runner.comparison.metrics import MetricRow
from vlatrack.runner.comparison.recorded import RecordedRun
from vlatrack.spec.identity import Scalar
from vlatrack.spec.setting_differences import decides

CONFIDENCE = 0.95
FEWEST_FOR_INTERVAL = 3
"""With fewer seeds a bootstrap has next to nothing to draw from, so no interval is told."""
_RESAMPLES = 9999


@dataclass(frozen=True)
class Spread:
    """The last values of a metric over seeds; `std` is that of a sample, None for a single one."""

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Group:
    """Runs with the same settings and data but for the seed. A seed that occurs twice counts once."""

    label: str
    runs: tuple[int, ...]  # indexes
    repeated: tuple[int, ...]  # indexes of runs whose seed an earlier one has
    spreads: Mapping[str, Spread]  # by metric


@dataclass(frozen=True)
class GroupDifference:
    """The first group's mean of a metric minus the second's."""

    metric: str
    groups: tuple[int, int]  # indexes
    difference: float
    interval: tuple[float, float] | None


def find_groups(runs: Sequence[RecordedRun], rows: Sequence[MetricRow]) -> list[Group]:
    """The groups, in the order of their first runs; none if no two runs differ in their seed alone."""
    members: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        members.setdefault(_identity(run), []).append(index)
    if not any(len({runs[i].settings.get("seed") for i in indexes}) > 1 for indexes in members.values()):
        return []
    firsts = [runs[indexes[0]] for indexes in members.values()]
    return [_group(runs, indexes, rows, _label(runs[indexes[0]], firsts)) for indexes in members.values()]


def group_differences(groups: Sequence[Group], rows: Sequence[MetricRow]) -> list[GroupDifference]:
    """Of each two groups, for each metric that both have logged."""
    found = []
    for (i, a), (j, b) in combinations(enumerate(groups), 2):
        for row in rows:
            of_a, of_b = _last_values(row, a.runs, a.repeated), _last_values(row, b.runs, b.repeated)
            if of_a and of_b:
                difference = sum(of_a) / len(of_a) - sum(of_b) / len(of_b)
                found.append(GroupDifference(row.name, (i, j), difference, _interval(of_a, of_b)))
    return found


def _group(runs: Sequence[RecordedRun], indexes: Sequence[int], rows: Sequence[MetricRow], label: str) -> Group:
    seen: dict[Scalar, int] = {}
    for index in indexes:
        seen.setdefault(runs[index].settings.get("seed"), index)
    repeated = tuple(index for index in indexes if index not in seen.values())
    spreads = {}
    for row in rows:
        values = _last_values(row, indexes, repeated)
        if values:
            spreads[row.name] = _spread(values)
    return Group(label, tuple(indexes), repeated, spreads)


def _spread(values: Sequence[float]) -> Spread:
    n, mean = len(values), sum(values) / len(values)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Spread(n, mean, std, _interval(values))


def _interval(a: Sequence[float], b: Sequence[float] | None = None) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the mean, or of the difference of two; the same numbers for the same values.

    None with fewer than three values, and where one is not finite.
    """
    samples = [values for values in (a, b) if values is not None]
    if any(len(values) < FEWEST_FOR_INTERVAL or not all(map(math.isfinite, values)) for values in samples):
        return None
    import numpy as np
    from scipy.stats import bootstrap  # takes a second to import

    def statistic(*drawn: "np.ndarray", axis: int) -> "np.ndarray":
        means = [values.mean(axis=axis) for values in drawn]
        return np.asarray(means[0] if len(means) == 1 else means[0] - means[1])

    found = bootstrap(
        [np.asarray(values) for values in samples],
        statistic,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _last_values(row: MetricRow, indexes: Sequence[int], repeated: Sequence[int]) -> list[float]:
    values = [row.values[index] for index in indexes if index not in repeated]
    return [value.last for value in values if value is not None]


def _identity(run: RecordedRun) -> str:
    settings = {path: value for path, value in run.settings.items() if path != "seed" and decides(path)}
    if not settings:
        return run.place  # of a run without an experiment nothing is known
    return json.dumps([settings, dict(run.manifest.fingerprints)], sort_keys=True)


def _label(run: RecordedRun, others: Sequence[RecordedRun]) -> str:
    """The settings in which the group differs from the others."""
    changed = [
        f"{path.split('.')[-1]}={value}"
        for path, value in run.settings.items()
        if path != "seed" and decides(path) and any(other.settings.get(path) != value for other in others)
    ]
    return " · ".join(changed[:4]) or run.experiment
