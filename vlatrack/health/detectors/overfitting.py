"""Validation losses that rise while those of the training fall."""

import statistics
from collections import deque
from collections.abc import Iterator

from vlatrack.health.detector import Detector, Streaks, Window, is_loss, shown
from vlatrack.health.finding import Finding
from vlatrack.health.thresholds import Overfitting
from vlatrack.metrics.losses import Z_LOSS
from vlatrack.metrics.schema import TRAIN, VAL_IND, Direction, Metric

_RECENT = 10
_LEAST_FALL = 0.05
"""Of the level on train, as a part: the median of ten windows is not surer than that."""
_NOISES = 3
"""How many times its noise a value must be above the best, which is the luckiest of all so far."""


class OverfittingDetector(Detector):
    """A loss of val_ind is above its best, while that of train is below where it was then."""

    name = "overfitting"
    remedy = "the best checkpoint (@best), train.early_stopping, more demonstrations, or more weight decay and dropout"

    def __init__(self, thresholds: Overfitting) -> None:
        super().__init__()
        self._thresholds, self._streaks = thresholds, Streaks()
        self._train: dict[str, deque[float]] = {}
        self._last: dict[str, float] = {}
        self._rises: dict[str, deque[float]] = {}
        """Of each metric the rises from one evaluation to the next that are no finding: its noise."""
        self._best: dict[str, tuple[float, float]] = {}
        """Of each metric its best value on val_ind, and the level on train at that time."""

    def observe(self, window: Window) -> Iterator[Finding]:
        for name, _ in window.names.select(TRAIN, _is_watched):
            if (value := window.finite(name)) is not None:
                self._train.setdefault(name, deque(maxlen=_RECENT)).append(value)
        for name, _ in window.names.select(VAL_IND, _is_watched):
            value, train = window.finite(name), self._train.get(name.replace(VAL_IND, TRAIN, 1))
            if value is not None and train:
                yield from self._compared(window, name, value, statistics.median(train))

    def _compared(self, window: Window, name: str, value: float, train: float) -> Iterator[Finding]:
        best, train_then = self._best.get(name, (value, train))
        if value <= best:
            best, train_then = self._best[name] = value, train
        small_rises = self._rises.setdefault(name, deque(maxlen=_RECENT))
        noise = statistics.median(small_rises) if small_rises else 0.0
        least = (1 + self._thresholds.rise) * best
        if self._last.get(name, value) < value <= least:
            small_rises.append(value - self._last[name])
        self._last[name] = value
        is_above = value > max(least, best + _NOISES * noise)
        rises = is_above and train < (1 - _LEAST_FALL) * train_then
        streak = self._streaks.count(name, is_wrong=rises)
        if self._is_news(name, is_wrong=streak >= self._thresholds.evaluations, has_recovered=not rises):
            text = (
                f"{name} is {shown(value)} at step {window.step}, {value / best - 1:.0%} above its best, while train "
            )
            yield self._finding(window, name, value, f"{text}fell from {shown(train_then)} to {shown(train)}")


def _is_watched(plain: str, metric: Metric) -> bool:
    if metric.direction is not Direction.LOWER or plain == Z_LOSS.name:
        return False
    return is_loss(plain, metric)
