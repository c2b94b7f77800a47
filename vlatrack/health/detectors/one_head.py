"""One of the two outputs learns, and the other does not."""

import statistics
from collections import deque
from collections.abc import Iterator

from vlatrack.health.detector import Detector, Window, shown
from vlatrack.health.finding import Finding
from vlatrack.health.thresholds import OneHead
from vlatrack.metrics.losses import CLOSS, LOSS_CT
from vlatrack.metrics.schema import TRAIN

_TOKENS, _HEAD = f"{TRAIN}_{CLOSS.name}", f"{TRAIN}_{LOSS_CT.name}"
_FIRST, _LAST = 3, 3


class OneHeadDetector(Detector):
    """closs has fallen far from its beginning while loss_ct has not, or the other way round."""

    name = "one_head"
    remedy = (
        "loss.loss_ct_weights (the output that stands still needs more of the gradient; loss.gradient_share_every "
        "shows the shares), a learning rate of its own in optim.groups, and train.freeze, which must not name it"
    )

    def __init__(self, thresholds: OneHead) -> None:
        super().__init__()
        self._thresholds = thresholds
        self._windows = 0
        self._first: dict[str, list[float]] = {_TOKENS: [], _HEAD: []}
        self._last = {name: deque[float](maxlen=_LAST) for name in self._first}

    def observe(self, window: Window) -> Iterator[Finding]:
        values = {name: value for name in self._first if (value := window.finite(name))}
        if len(values) < len(self._first):  # 0 or nothing: a batch without actions
            return
        self._windows += 1
        for name, value in values.items():
            self._last[name].append(value)
            if len(self._first[name]) < _FIRST:
                self._first[name].append(value)
        if self._windows < max(_FIRST, self._thresholds.windows):
            return
        # The highest of the first: a head that is quick has learned most of what it will by the second record.
        fallen = {name: 1 - statistics.median(self._last[name]) / max(first) for name, first in self._first.items()}
        for stuck, learning in ((_HEAD, _TOKENS), (_TOKENS, _HEAD)):
            learns = fallen[learning] >= self._thresholds.learned
            is_wrong = learns and fallen[stuck] <= self._thresholds.stuck
            if self._is_news(stuck, is_wrong=is_wrong, has_recovered=fallen[stuck] > 2 * self._thresholds.stuck):
                first, now = max(self._first[stuck]), statistics.median(self._last[stuck])
                text = f"{stuck} stands at {shown(now)} at step {window.step} after {shown(first)} at the beginning"
                text += f", while {learning} has fallen by {fallen[learning]:.0%}"
                yield self._finding(window, stuck, values[stuck], text)
