"""One metric: its meaning, and how it is computed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from vlatrack.metrics.states import MetricStates

ACTION_UNIT = "normalised action"
"""Unit of every L1 error: actions are normalised to [-1, 1], so an error lies in [0, 2]."""


class Direction(StrEnum):
    """Which way a metric gets better."""

    LOWER = "lower"
    HIGHER = "higher"
    NONE = "none"


Value = Callable[[MetricStates], float | None]
"""States on the host to the value of a metric; None where the window holds nothing to compute it from."""


@dataclass(frozen=True)
class Metric:
    """One declared metric; `step` is the plain 0-based step of the action chunk, if the metric belongs to one.

    `value` is None for what is not a mean over samples but measured once: speeds, learning rate, gradient norms.
    """

    name: str
    meaning: str
    unit: str
    direction: Direction
    group: str
    step: int | None = None
    value: Value | None = field(default=None, compare=False, repr=False)


def metric_values(metrics: Iterable[Metric], states: MetricStates) -> dict[str, float]:
    """The value of each metric that `states` has something for, by name. Reads the device once."""
    on_host = states.cpu()
    values = {metric.name: metric.value(on_host) for metric in metrics if metric.value is not None}
    return {name: value for name, value in values.items() if value is not None}
