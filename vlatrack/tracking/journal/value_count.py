"""How many metrics and values a run has, counted record by record in little memory."""

from collections.abc import Mapping


class ValueCount:
    """Equal values (name, time, step, value) count once; equal ones follow each other, as they have the same time."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.values = 0
        self._now_ms: int | None = None
        self._seen: set[tuple[str, int, str]] = set()

    def add(self, values: Mapping[str, float], *, step: int, t_ms: int) -> None:
        """Count one record; `repr` tells -0.0 from 0.0, and takes one NaN for another."""
        if t_ms != self._now_ms:
            self._now_ms = t_ms
            self._seen.clear()
        new = {(name, step, repr(float(value))) for name, value in values.items()} - self._seen
        self._seen |= new
        self.values += len(new)
        self.names |= values.keys()
