"""Losses and gradients that are not finite."""

import math
from collections.abc import Iterator

from vlatrack.health.detector import Detector, Streaks, Window
from vlatrack.health.finding import Finding, Severity
from vlatrack.health.thresholds import NotFinite
from vlatrack.metrics.schema import SPLITS, Metric

_GROUPS = ("loss", "action", "head")


class NotFiniteDetector(Detector):
    """A loss, an error of the actions or the gradient norm is NaN or infinite."""

    name = "not_finite"
    severity = Severity.CRITICAL
    remedy = (
        "a lower optim.lr or optim.clip_grad, the data of that step (the forensics file of the run names its samples), "
        "and train.non_finite: rollback to go on without it"
    )

    def __init__(self, thresholds: NotFinite) -> None:
        super().__init__()
        self._thresholds, self._streaks = thresholds, Streaks()

    def observe(self, window: Window) -> Iterator[Finding]:
        for split in SPLITS:
            for name, _ in window.names.select(split, _is_watched):
                value = window.values[name]
                streak = self._streaks.count(name, is_wrong=not math.isfinite(value))
                if self._is_news(name, is_wrong=streak >= self._thresholds.windows, has_recovered=streak == 0):
                    yield self._finding(window, name, value, f"{name} is {value:g} at step {window.step}")


def _is_watched(plain: str, metric: Metric) -> bool:
    return metric.group in _GROUPS or plain == "grad_norm"
