"""The success rates of a run in simulators, for cards and figures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vlatrack.metrics.simulation import simulation_name, simulation_parts

ALL_TASKS = "all"


@dataclass(frozen=True)
class SimulatedRate:
    """The episodes of one task, or of all, in one simulator; the interval is one of 95 %."""

    group: str  # such as metaworld, or metaworld-blind
    task: str
    episodes: int
    errors: int  # are no part of the rate
    success: float | None  # None: no episode says anything about the policy
    interval: tuple[float, float]


def simulated_rates(metrics: Mapping[str, float]) -> Iterator[SimulatedRate]:
    """The rates among the metrics of one step; of each simulator all episodes together, then each task if there are
    several."""
    places: dict[str, dict[str | None, None]] = {}
    for parts in filter(None, map(simulation_parts, metrics)):
        places.setdefault(parts.group, {None: None})[parts.task] = None
    for group, tasks in places.items():
        for task in tasks if len(tasks) > 2 else [None]:
            yield _rate(metrics, group, task)


def _rate(metrics: Mapping[str, float], group: str, task: str | None) -> SimulatedRate:
    measures = ("episodes", "errors", "success", "success_low", "success_high")
    found = {measure: metrics.get(simulation_name(group, measure, task)) for measure in measures}
    return SimulatedRate(
        group,
        task or ALL_TASKS,
        episodes=int(found["episodes"] or 0),
        errors=int(found["errors"] or 0),
        success=found["success"],
        interval=(found["success_low"] or 0.0, 1.0 if found["success_high"] is None else found["success_high"]),
    )
