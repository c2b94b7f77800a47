"""Sudden jumps of a metric for the worse."""

import math
import statistics
from collections import deque
from collections.abc import Iterator
from itertools import pairwise

from vlatrack.health.detector import Detector, Window, is_loss, shown, spread
from vlatrack.health.finding import Finding
from vlatrack.health.thresholds import Spike
from vlatrack.metrics.schema import TRAIN, Direction, Metric

_FEWEST = 8
_RECENT = 5
_LEAST_NOISE = 0.02
_LEAST_DROP = 0.2
"""Of a share such as an accuracy, which has no ratio worth speaking of near 0."""


class SpikeDetector(Detector):
    """A training metric jumps against its declared direction, far beyond its own noise.

    The centre is the median of the last values, the noise that of their steps from window to window: a loss that falls
    steadily has small steps, however far it falls. Losses and errors are compared by ratio, shares by difference.
    """

    name = "spike"
    remedy = "a lower optim.lr, a longer warm-up, a lower optim.clip_grad, or a look at the samples of those steps"

    def __init__(self, thresholds: Spike) -> None:
        super().__init__()
        self._thresholds = thresholds
        self._histories: dict[str, deque[float]] = {}

    def observe(self, window: Window) -> Iterator[Finding]:
        for name, metric in window.names.select(TRAIN, _is_watched):
            value = window.finite(name)
            if value is None or (place := _place(metric, value)) is None:
                continue
            history = self._histories.setdefault(name, deque(maxlen=self._thresholds.windows))
            if len(history) >= _FEWEST:
                yield from self._compared(window, name, metric, value, place, history)
            history.append(place)

    def _compared(
        self, window: Window, name: str, metric: Metric, value: float, place: float, history: deque[float]
    ) -> Iterator[Finding]:
        centre = statistics.median(list(history)[-_RECENT:])
        worse = place - centre if metric.direction is Direction.LOWER else centre - place
        is_share = metric.unit == "fraction"
        least = _LEAST_DROP if is_share else math.log(self._thresholds.factor)
        steps = [after - before for before, after in pairwise(history)] if worse >= least else [0.0]
        noise = max(_LEAST_NOISE, spread(steps) / math.sqrt(2))
        is_wrong = worse >= least and worse / noise >= self._thresholds.z
        if self._is_news(name, is_wrong=is_wrong, has_recovered=worse < least / 2):
            usual = shown(centre if is_share else math.exp(centre))
            how = f"{worse / noise:.0f} times its usual noise"
            yield self._finding(
                window, name, value, f"{name} jumped from {usual} to {shown(value)} at step {window.step}, {how}"
            )


def _is_watched(plain: str, metric: Metric) -> bool:
    if metric.direction is Direction.NONE:
        return False
    return is_loss(plain, metric) or plain in ("l1_loss_action", "acc_action") or metric.step is not None


def _place(metric: Metric, value: float) -> float | None:
    """Where a value stands on the scale on which it is compared; None for an error of 0, which has no ratio."""
    if metric.unit == "fraction":
        return value
    return math.log(value) if value > 0 else None
