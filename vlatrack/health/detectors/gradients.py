"""Bursts of the gradient norm."""

import statistics
from collections import deque
from collections.abc import Iterator

from vlatrack.health.detector import Detector, Window, shown
from vlatrack.health.finding import Finding
from vlatrack.health.thresholds import GradientBurst
from vlatrack.metrics.schema import TRAIN

_NAME = f"{TRAIN}_grad_norm"
_FEWEST = 8
_RECENT, _OF_THEM = 3, 2


class GradientBurstDetector(Detector):
    """Two of three gradient norms are far above their median: one alone is one odd batch, which clipping takes."""

    name = "gradient_burst"
    remedy = "a lower optim.lr or optim.clip_grad, a longer warm-up, or a look at the samples of those steps"

    def __init__(self, thresholds: GradientBurst) -> None:
        super().__init__()
        self._thresholds = thresholds
        self._norms = deque[float](maxlen=thresholds.windows)
        self._recent = deque[bool](maxlen=_RECENT)

    def observe(self, window: Window) -> Iterator[Finding]:
        norm = window.finite(_NAME)
        if norm is None:
            return
        if len(self._norms) >= _FEWEST:
            usual = statistics.median(self._norms)
            self._recent.append(norm > self._thresholds.factor * usual)
            many = sum(self._recent)
            if self._is_news(_NAME, is_wrong=many >= _OF_THEM, has_recovered=many == 0):
                text = (
                    f"{_NAME} is {shown(norm)} at step {window.step}, {norm / usual:.1f} times its usual {shown(usual)}"
                )
                yield self._finding(window, _NAME, norm, text)
        self._norms.append(norm)
