"""How far something long has come, for a log file, which has no progress bar."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console

_PARTS = 10


@dataclass
class _Way:
    """How far one thing has come since it began, or began anew."""

    first: int
    began: float
    done: int
    part: int = -1

    def pace(self, now: float, total: int) -> str:
        """Hours, minutes and seconds that are left, or that it took in the end; nothing while there are none."""
        spent, made = now - self.began, self.done - self.first
        seconds = spent if self.done == total else spent * (total - self.done) / max(1, made)
        if not made or seconds < 1:
            return ""
        told = timedelta(seconds=round(seconds))
        return f"  took {told}" if self.done == total else f"  {told} left"


class Milestones:
    """Prints a line at the beginning and at each tenth of the way, with the time that is left, unless the console is a
    terminal, where a bar tells more.

    Args:
        clock: seconds since any moment.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._ways: dict[str, _Way] = {}

    def report(self, name: str, done: int, total: int, detail: str) -> None:
        """Tell that ``done`` of ``total`` are done, if that is another tenth; what begins anew is told of again."""
        now, way = self._clock(), self._ways.get(name)
        if way is None or done < way.done:
            way = self._ways[name] = _Way(done, now, done)
        part, before, way.done = _PARTS * done // total, way.part, done
        way.part = part
        if part > before and not self._console.is_terminal:
            line = f"{name} {done}/{total}{way.pace(now, total)}  {detail}".rstrip()
            self._console.print(line, soft_wrap=True, markup=False, emoji=False, highlight=False)
