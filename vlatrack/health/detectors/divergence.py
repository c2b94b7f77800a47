"""Losses that leave the level that they had reached, and a z_loss that grows without bound."""

import statistics
from collections import deque
from collections.abc import Iterator

from vlatrack.health.detector import Detector, Window, is_loss, shown
from vlatrack.health.finding import Finding, Severity
from vlatrack.health.thresholds import Divergence, ZLoss
from vlatrack.metrics.losses import Z_LOSS
from vlatrack.metrics.schema import TRAIN, Direction

_LEVEL = 5
"""Windows whose median is a level: single good windows do not make one."""
_Z_WINDOWS = 3
_LEAST_Z = 1.0
"""Of the level that z_loss is compared with: (log-sum-exp)² of logits around 0 means nothing."""


class DivergenceDetector(Detector):
    """A training loss stays far above the best level that it had reached."""

    name = "divergence"
    severity = Severity.CRITICAL
    remedy = "to go back to the last good checkpoint with a lower optim.lr, and optim.clip_grad below the usual norm"

    def __init__(self, thresholds: Divergence) -> None:
        super().__init__()
        self._thresholds = thresholds
        self._recent: dict[str, deque[float]] = {}
        self._best: dict[str, float] = {}

    def observe(self, window: Window) -> Iterator[Finding]:
        for name, metric in window.names.select(TRAIN, is_loss):
            value = window.finite(name)
            if value is None or metric.direction is not Direction.LOWER or name == f"{TRAIN}_{Z_LOSS.name}":
                continue
            recent = self._recent.setdefault(name, deque(maxlen=max(_LEVEL, self._thresholds.windows)))
            recent.append(value)
            if len(recent) < _LEVEL:
                continue
            best = self._best[name] = min(self._best.get(name, statistics.median(recent)), statistics.median(recent))
            now = statistics.median(list(recent)[-self._thresholds.windows :])
            limit = self._thresholds.factor * best
            if self._is_news(name, is_wrong=0 < limit <= now, has_recovered=now < (best + limit) / 2):
                text = f"{name} is {shown(now)} at step {window.step}, {now / best:.1f} times the {shown(best)} it had"
                yield self._finding(window, name, value, text)


class ZLossDetector(Detector):
    """z_loss, the squared log-sum-exp of the logits, grows far beyond its level at the beginning."""

    name = "z_loss"
    remedy = "a larger loss.z_loss_weight, which holds the logits, or a lower optim.lr"

    def __init__(self, thresholds: ZLoss) -> None:
        super().__init__()
        self._thresholds = thresholds
        self._first: dict[str, list[float]] = {}
        self._recent: dict[str, deque[float]] = {}

    def observe(self, window: Window) -> Iterator[Finding]:
        name = f"{TRAIN}_{Z_LOSS.name}"
        if (value := window.finite(name)) is None:
            return
        first = self._first.setdefault(name, [])
        recent = self._recent.setdefault(name, deque(maxlen=_Z_WINDOWS))
        recent.append(value)
        if len(first) < _LEVEL:
            first.append(value)
            return
        level, now = max(_LEAST_Z, statistics.median(first)), statistics.median(recent)
        limit = self._thresholds.factor * level
        if self._is_news(name, is_wrong=now >= limit, has_recovered=now < 0.75 * limit):
            text = (
                f"{name} is {shown(now)} at step {window.step}, {now / level:.1f} times the {shown(level)} it began at"
            )
            yield self._finding(window, name, value, text)
