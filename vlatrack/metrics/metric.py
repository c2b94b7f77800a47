"""The declaration of one metric: its meaning, and how it is computed."""

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
"""From states on the host to the value of a metric; None if the states lack what it is computed from."""


@dataclass(frozen=True)
class Metric:
    """One declared metric; `step` is the 0-based step of the action chunk, if the metric belongs to one.

    `value` is None for what is measured once instead of averaged over samples: speed, learning rate, gradient norm.
    """

    name: str
    meaning: str
    unit: str
    direction: Direction
    group: str
    step: int | None = None
    value: Value | None = field(default=None, compare=False, repr=False)


def metric_values(metrics: Iterable[Metric], states: MetricStates) -> dict[str, float]:
    """The value of each metric that can be computed from `states`, by name. Synchronises with the device once."""
    on_host = states.cpu()
    values = {metric.name: metric.value(on_host) for metric in metrics if metric.value is not None}
    return {name: value for name, value in values.items() if value is not None}
