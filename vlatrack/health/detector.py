"""What a detector is: it is shown one record of metrics after the other, and says what it finds."""

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vlatrack.health.finding import Finding, Severity
from vlatrack.metrics.schema import Metric, split_and_name


class Names:
    """The metrics in a record, by full documented name, with their declarations; undeclared ones are left out.

    Records hold the same names time and again, so what a detector selects of them is found once.
    """

    def __init__(self, declared: Mapping[str, Metric]) -> None:
        self._declared = declared
        self._selected: dict[tuple[str, IsWanted], tuple[tuple[str, Metric], ...]] = {}

    def select(self, split: str, is_wanted: "IsWanted") -> tuple[tuple[str, Metric], ...]:
        """The metrics of a split that are wanted; `is_wanted` is asked by the name without the split."""
        if (split, is_wanted) not in self._selected:
            parts = [(name, *split_and_name(name), metric) for name, metric in self._declared.items()]
            found = [(name, metric) for name, of, plain, metric in parts if of == split and is_wanted(plain, metric)]
            self._selected[split, is_wanted] = tuple(found)
        return self._selected[split, is_wanted]


IsWanted = Callable[[str, Metric], bool]


@dataclass(frozen=True)
class Window:
    """One record of metrics: values by full documented name, of the steps up to training step `step`; `t_ms` is Unix
    time in milliseconds."""

    step: int
    t_ms: int
    values: Mapping[str, float]
    names: Names

    def finite(self, name: str) -> float | None:
        """The value of a metric; None if it is not there or not finite."""
        value = self.values.get(name)
        return value if value is not None and math.isfinite(value) else None


class Detector(ABC):
    """Finds one kind of trouble; its memory is bounded, however long the run is.

    What it has found of a metric it does not say again before the metric has recovered.
    """

    name: ClassVar[str]
    severity: ClassVar[Severity] = Severity.WARNING
    remedy: ClassVar[str]

    def __init__(self) -> None:
        self._reported: set[str] = set()

    @abstractmethod
    def observe(self, window: Window) -> Iterable[Finding]:
        """What this record shows, the metric to be named first in front."""

    def restart(self) -> None:  # noqa: B027  # most detectors go on as if nothing had been
        """The run begins, or begins again, perhaps on another machine."""

    def _is_news(self, metric: str, *, is_wrong: bool, has_recovered: bool | None = None) -> bool:
        """Whether something is wrong with a metric that has not been reported since it was last well.

        `has_recovered` is stricter than not to be wrong where values may come and go around a threshold.
        """
        if is_wrong and metric not in self._reported:
            self._reported.add(metric)
            return True
        if has_recovered if has_recovered is not None else not is_wrong:
            self._reported.discard(metric)
        return False

    def _finding(self, window: Window, metric: str, value: float, message: str) -> Finding:
        return Finding(self.name, self.severity, metric, window.step, value, message, self.remedy)


class Streaks:
    """How many windows in a row something has been wrong with each metric."""

    def __init__(self) -> None:
        self._lengths: dict[str, int] = {}

    def count(self, metric: str, *, is_wrong: bool) -> int:
        self._lengths[metric] = self._lengths.get(metric, 0) + 1 if is_wrong else 0
        return self._lengths[metric]

    def clear(self) -> None:
        self._lengths.clear()


def spread(values: Sequence[float]) -> float:
    """The standard deviation of their noise, by the median absolute deviation: outliers do not count."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median([abs(value - middle) for value in values])


def shown(value: float) -> str:
    """A number for a sentence."""
    return f"{value:.4g}"


def is_loss(plain: str, metric: Metric) -> bool:
    """Whether it is a loss term or their sum, and not a term's share in the sum."""
    return metric.group == "loss" and not plain.startswith("weighted_")
