"""How far something long has come, and how fast: in a terminal a bar, everywhere else a line now and then."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Console

_PARTS = 10
LONGEST_SILENCE_S = 30.0
"""A log file has a line at least so often while something moves."""
_SOONEST_S = 5.0
"""Tenths that come faster than this are not worth a line each."""
_RECENT_S = 60.0
_BETWEEN_SAMPLES_S = 1.0


@dataclass
class Pace:
    """How one thing that has begun with `first` done goes; a clock's seconds are from any moment on."""

    unit: str
    """what is counted, in the singular: step, frame, episode"""
    first: int
    began: float
    done: int = 0
    total: int = 0
    now: float = 0.0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)
    """When how many were done, of the last minute."""

    def __post_init__(self) -> None:
        self._samples.append((self.began, self.first))

    def advance(self, done: int, total: int, now: float) -> None:
        self.done, self.total, self.now = done, total, now
        if now - self._samples[-1][0] >= _BETWEEN_SAMPLES_S:
            self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _RECENT_S:
            self._samples.popleft()

    @property
    def is_complete(self) -> bool:
        return self.done >= self.total

    @property
    def per_s(self) -> float | None:
        """How many a second, over the last minute, or of all in the end; None while that is not known."""
        since, done = (self.began, self.first) if self.is_complete else self._samples[0]
        spent, made = self.now - since, self.done - done
        return made / spent if made > 0 and spent > 0 else None

    @property
    def left_s(self) -> float | None:
        """Seconds that are left, if all goes on as it did since the beginning, pauses included."""
        spent, made = self.now - self.began, self.done - self.first
        return spent * (self.total - self.done) / made if made > 0 and spent > 0 else None

    @property
    def rate(self) -> str:
        """`12.3 steps/s`, `3.21 s/step`; empty while it is not known."""
        return "" if self.per_s is None else rate_text(self.per_s, self.unit)

    @property
    def time(self) -> str:
        """`0:01:40`: what is left, or what it took in the end; empty while that is not known, or under a second."""
        seconds = self.now - self.began if self.is_complete else self.left_s
        return "" if seconds is None or seconds < 1 else duration_text(seconds)


def rate_text(per_s: float, unit: str) -> str:
    """`12.3 steps/s`, and for what takes longer than a second `3.21 s/step`."""
    plural = f"{unit}{'es' if unit.endswith('ch') else 's'}"
    return f"{_three_digits(per_s)} {plural}/s" if per_s >= 1 else f"{_three_digits(1 / per_s)} s/{unit}"


def duration_text(seconds: float) -> str:
    """`0:01:40`, `2 days, 3:00:00`."""
    return str(timedelta(seconds=round(seconds)))


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Milestones:
    """Lines for a log file: at the beginning and in the end, at least every 30 seconds while something moves, and at
    each tenth of what takes long. Each is complete: how far, how fast, how much time is left, and details.

    Args:
        clock: seconds from any moment on.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._told: dict[str, tuple[float, int]] = {}
        """When the last line about each thing was printed, and how many were done."""

    def report(self, name: str, pace: Pace, detail: str, *, is_new: bool, is_brief: bool) -> None:
        """Tell how far something has come, if that is due.

        Args:
            is_new: it begins, or begins anew.
            is_brief: it mostly takes a moment, and then it is not worth a line.
        """
        if is_new:
            self._told[name] = (pace.now, pace.done)
        told_at, told = self._told[name]
        silence, parts = pace.now - told_at, _PARTS * pace.done // max(1, pace.total)
        is_tenth = silence >= _SOONEST_S and parts > _PARTS * told // max(1, pace.total)
        is_edge = is_new or (pace.is_complete and pace.done > told)
        if (is_edge and not is_brief) or is_tenth or silence >= LONGEST_SILENCE_S:
            self._print(name, pace, detail)

    def tell(self, name: str, pace: Pace, detail: str) -> None:
        """Print the line, unless the last one about this said the same."""
        if self._told[name][1] < pace.done:
            self._print(name, pace, detail)

    def _print(self, name: str, pace: Pace, detail: str) -> None:
        self._told[name] = (pace.now, pace.done)
        time_text = "" if not pace.time else f"took {pace.time}" if pace.is_complete else f"{pace.time} left"
        words = (f"{name} {pace.done}/{pace.total}", pace.rate, time_text, detail)
        line = "  ".join(word for word in words if word)
        self._console.print(line, soft_wrap=True, markup=False, emoji=False, highlight=False)
