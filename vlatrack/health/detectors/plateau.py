"""Losses that no longer fall."""

import math
from collections.abc import Iterator

from vlatrack.health.detector import Detector, Window, shown
from vlatrack.health.finding import Finding
from vlatrack.health.thresholds import Plateau
from vlatrack.metrics.schema import TRAIN

_LOSS, _RATE = f"{TRAIN}_loss", f"{TRAIN}_lr"
_PART_OF_RUN = 1 / 3
"""A plateau is at least this part of the run so far: what is long in a short run is nothing in a long one."""
_LOW_RATE = 0.2
"""Of the highest learning rate: below it a schedule is coming to its end, and losses are to stand still."""
_MOST_BUCKETS = 512


class PlateauDetector(Detector):
    """The training loss has stood still for long, at a learning rate at which it could fall.

    A line is laid through the last part of the loss; even at the upper end of its uncertainty it falls too little.
    """

    name = "plateau"
    remedy = "to end the run here (train.early_stopping does), a lower optim.lr, or a larger model if train is too high"

    def __init__(self, thresholds: Plateau) -> None:
        super().__init__()
        self._thresholds = thresholds
        self._means: list[float] = []
        self._size = 1  # windows in a bucket
        self._sum, self._count = 0.0, 0
        self._highest_rate = 0.0

    def observe(self, window: Window) -> Iterator[Finding]:
        value, rate = window.finite(_LOSS), window.finite(_RATE)
        self._highest_rate = max(self._highest_rate, rate or 0.0)
        if value is None or not self._add(value):
            return
        seen = len(self._means) * self._size
        buckets = math.ceil(max(self._thresholds.windows, seen * _PART_OF_RUN) / self._size)
        if buckets > len(self._means) or buckets < 3:
            return
        mean, fall, error = _line(self._means[-buckets:])
        is_low = rate is not None and rate < _LOW_RATE * self._highest_rate
        least = self._thresholds.improvement * abs(mean)
        if self._is_news(_LOSS, is_wrong=not is_low and fall + 2 * error < least, has_recovered=fall > 2 * least):
            text = f"{_LOSS} has stood at {shown(mean)} for the last {buckets * self._size} records up to step "
            yield self._finding(window, _LOSS, value, f"{text}{window.step}")

    def _add(self, value: float) -> bool:
        """Whether this completes a bucket. Where there are many, each two become one."""
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._size:
            return False
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) > max(_MOST_BUCKETS, 2 * self._thresholds.windows):
            pairs = zip(self._means[0::2], self._means[1::2], strict=False)
            self._means = [(first + second) / 2 for first, second in pairs]
            self._size *= 2
        return True


def _line(values: list[float]) -> tuple[float, float, float]:
    """The mean, how far a line of least squares falls from the first value to the last, and the standard error of
    that."""
    n, mean = len(values), sum(values) / len(values)
    middle = (n - 1) / 2
    width = n * (n * n - 1) / 12
    slope = sum((i - middle) * value for i, value in enumerate(values)) / width
    rest = sum((value - mean - slope * (i - middle)) ** 2 for i, value in enumerate(values))
    return mean, -slope * (n - 1), math.sqrt(rest / (n - 2) / width) * (n - 1)
