"""L1 errors of the steps of an action chunk, and the floor below which no token can get."""

import statistics
from collections.abc import Iterator, Sequence
from itertools import combinations

from vlatrack.health.detector import Detector, IsWanted, Streaks, Window, shown
from vlatrack.health.finding import Finding, Severity
from vlatrack.health.thresholds import ChunkStep, QuantisationFloor
from vlatrack.metrics.schema import TRAIN, VAL_IND, Direction, Metric

_FEWEST_STEPS = 4
_LEAST_ERROR = 0.01
"""In normalised action: a step whose error is that small is in line, whatever the others are."""


class ChunkStepDetector(Detector):
    """The L1 error of one chunk step is far above the median of the others, and above the line through them."""

    name = "chunk_step"
    remedy = (
        "the actions at that place of the demonstrations (an episode's end that is padded, a gripper that closes "
        "late), a shorter action_head.time_horizon, and whether the checkpoint was trained with another one"
    )

    def __init__(self, thresholds: ChunkStep) -> None:
        super().__init__()
        self._thresholds, self._streaks = thresholds, Streaks()

    def observe(self, window: Window) -> Iterator[Finding]:
        for split in (TRAIN, VAL_IND):
            for is_error in (_is_token_error, _is_head_error):
                yield from self._chunk(window, split, is_error)

    def _chunk(self, window: Window, split: str, is_error: IsWanted) -> Iterator[Finding]:
        steps = [
            (metric.step or 0, value, name)
            for name, metric in window.names.select(split, is_error)
            if (value := window.finite(name)) is not None
        ]
        if len(steps) < _FEWEST_STEPS:
            return
        for place, value, name in steps:
            others = [(other, error) for other, error, _ in steps if other != place]
            expected = statistics.median(error for _, error in others)
            if value > self._thresholds.factor * expected:
                expected = max(expected, _on_line(place, others))
            is_far = value > max(_LEAST_ERROR, self._thresholds.factor * expected)
            streak = self._streaks.count(name, is_wrong=is_far)
            if self._is_news(name, is_wrong=streak >= self._thresholds.windows, has_recovered=not is_far):
                text = f"{name} (step {place} of the chunk) is {shown(value)} at training step {window.step}, where "
                yield self._finding(window, name, value, f"{text}the other steps let expect {shown(expected)}")


def _is_token_error(plain: str, metric: Metric) -> bool:
    return metric.group == "action" and metric.step is not None and metric.direction is Direction.LOWER


def _is_head_error(plain: str, metric: Metric) -> bool:
    return metric.group == "head" and metric.step is not None


def _on_line(place: int, others: Sequence[tuple[int, float]]) -> float:
    """The value at a step of the line through the others: the median of all slopes, so that one odd step among them
    does not turn it."""
    slope = statistics.median((b - a) / (j - i) for (i, a), (j, b) in combinations(others, 2))
    at_zero = statistics.median(error - slope * other for other, error in others)
    return at_zero + slope * place


class QuantisationFloorDetector(Detector):
    """The error of the decoded tokens is nearly that of rounding alone. No fault: they cannot get better."""

    name = "quantisation_floor"
    severity = Severity.INFO
    remedy = "more tokenizer.bins or narrower tokenizer.statistics, or act with the continuous head from here on"

    def __init__(self, thresholds: QuantisationFloor) -> None:
        super().__init__()
        self._thresholds, self._streaks = thresholds, Streaks()

    def observe(self, window: Window) -> Iterator[Finding]:
        for split in (TRAIN, VAL_IND):
            name = f"{split}_l1_loss_action"
            error, floor = window.finite(name), window.finite(f"{split}_quantisation_floor")
            if error is None or not floor:
                continue
            is_near = error <= self._thresholds.factor * floor
            streak = self._streaks.count(name, is_wrong=is_near)
            if self._is_news(name, is_wrong=streak >= self._thresholds.windows, has_recovered=error > 2 * floor):
                text = f"{name} is {shown(error)} at step {window.step}; rounding to bins alone makes {shown(floor)}"
                yield self._finding(window, name, error, text)
