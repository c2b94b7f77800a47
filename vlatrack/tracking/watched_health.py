"""The health of a run as its training process learns it from the process that watches."""

import logging
import threading
from collections.abc import Callable, Sequence

from vlatrack.health.finding import Finding
from vlatrack.tracking.arguments import described
from vlatrack.tracking.delivery.health_watch import Told

_log = logging.getLogger(__name__)


class WatchedHealth:
    """Passes each finding on once: a watching process that takes over from a killed one may tell it again."""

    def __init__(self) -> None:
        self.listeners: Sequence[Callable[[Finding], None]] = ()
        """Called, one after the other, from a thread that waits for findings."""
        self._lock = threading.Lock()
        self._passed_on: set[tuple[str, str, int]] = set()
        self._rewinds: list[tuple[int, int]] = []
        """Of each the first step that the run went back over, and the journal record that says so."""
        self._has_ended = threading.Event()

    def take(self, told: Told) -> None:
        """Take notice of what the watching process tells."""
        finding = told.finding
        if finding is not None and self._is_new(finding, told.seq):
            for listener in self.listeners:
                try:
                    listener(finding)
                except Exception as error:  # a callback of a user's may raise anything; the next finding is to come
                    _log.warning("a finding was not passed on to all (%s)", described(error))
        if finding is None and told.has_ended:
            self._has_ended.set()

    def rewind(self, from_step: int, seq: int) -> None:
        """The run goes back to before a step, as record `seq` says: later, that step may have the same finding."""
        with self._lock:
            self._rewinds.append((from_step, seq))
            self._passed_on = {known for known in self._passed_on if known[2] < from_step}

    def await_end(self, timeout_s: float) -> None:
        """Return when everything up to the end of the run has been looked at, or after so many seconds."""
        self._has_ended.wait(timeout_s)

    def _is_new(self, finding: Finding, seq: int) -> bool:
        with self._lock:
            if any(seq < rewound and finding.step >= first for first, rewound in self._rewinds):
                return False  # it was found before the process knew of the rewind
            if finding.identity in self._passed_on:
                return False
            self._passed_on.add(finding.identity)
            return True
