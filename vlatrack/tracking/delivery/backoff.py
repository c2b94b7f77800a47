"""When something that failed is tried again."""

import random
import time

FIRST_S, LONGEST_S = 0.5, 30.0


class Backoff:
    """Pauses that double from half a second to half a minute, each a little off, so that many runs that lost the same
    server do not all come back at once."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row."""
        self._at = 0.0

    def failed(self) -> float:
        """Count a failure; returns the seconds until the next attempt."""
        pause = min(LONGEST_S, FIRST_S * 2 ** min(self.failures, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
        self.failures += 1
        self._at = time.monotonic() + pause
        return pause

    @property
    def is_due(self) -> bool:
        """Whether the pause is over, or nothing has failed."""
        return time.monotonic() >= self._at
