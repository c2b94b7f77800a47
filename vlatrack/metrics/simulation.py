"""The metrics of an evaluation in a simulator: ``sim/<suite>/success`` with its interval, and the same of each task."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vlatrack.metrics.metric import Direction, Metric
from vlatrack.metrics.names import SIMULATION

_MEASURES = {
    "success": ("share of successful episodes, without those that were an error", "fraction", Direction.HIGHER),
    "success_low": ("lower end of its 95 % interval (Wilson)", "fraction", Direction.HIGHER),
    "success_high": ("upper end of its 95 % interval (Wilson)", "fraction", Direction.HIGHER),
    "episodes": ("episodes that were evaluated", "episodes", Direction.NONE),
    "errors": ("episodes that were an error, and say nothing about the policy", "episodes", Direction.LOWER),
    "task_mean": ("mean of the tasks' success rates", "fraction", Direction.HIGHER),
}
_NAME = re.compile(rf"{SIMULATION}(?P<suite>[^/]+)/(?:(?P<task>[^/]+)/)?(?P<measure>{'|'.join(_MEASURES)})")
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


def simulation_name(suite: str, measure: str, task: str | None = None) -> str:
    """The metric of a suite, or of one of its tasks: ``sim/metaworld/window-open-v3/success``."""
    assert measure in _MEASURES, measure
    of_task = "" if task is None else f"{_UNUSUAL.sub('_', task)}/"
    return f"{SIMULATION}{suite}/{of_task}{measure}"


def simulation_names(suite: str, tasks: Iterable[str]) -> Iterator[str]:
    """Every metric that an evaluation in these tasks of a suite can have."""
    yield from (simulation_name(suite, measure) for measure in _MEASURES)
    for task in tasks:
        yield from (simulation_name(suite, measure, task) for measure in _MEASURES if measure != "task_mean")


@dataclass(frozen=True)
class SimulationParts:
    """What the name of such a metric says."""

    group: str  # the suite, or metaworld-blind
    task: str | None  # None: all tasks
    measure: str


def simulation_parts(name: str) -> SimulationParts | None:
    """The parts of the name; None for that of another metric."""
    found = _NAME.fullmatch(name)
    return None if found is None else SimulationParts(found["suite"], found["task"], found["measure"])


def simulation_metrics(names: Iterable[str]) -> Iterator[Metric]:
    """The declarations of those among ``names`` that are such metrics."""
    for name in names:
        if parts := simulation_parts(name):
            meaning, unit, direction = _MEASURES[parts.measure]
            where = f"{parts.group}, {parts.task}" if parts.task else parts.group
            yield Metric(name, f"{meaning}; in the simulator, {where}", unit, direction, "simulator")
