"""Runs all detectors over the metrics of one run."""

import re
from collections.abc import Mapping
from dataclasses import replace

from vlatrack.health.detector import Names, Window
from vlatrack.health.finding import Finding
from vlatrack.health.registry import detectors
from vlatrack.health.thresholds import Thresholds
from vlatrack.metrics.schema import MetricSchema

MOST_NAMES = 2000
"""Metrics of one run that are looked at; a journal of somebody else may have any number."""
_MOST_KINDS = 16
"""Records of a run hold a few different sets of metrics: of training, of each validation, of the machine."""
_LARGE_INDEX = re.compile(r"\d{4,}$")
"""No chunk has so many steps; a schema would declare them all."""
_OTHERS_NAMED = 3


class HealthMonitor:
    """Shown the records of a run in their order, it returns what they make known; the memory that it takes is bounded.

    What one detector finds of several metrics in the same record is one finding, of the first of them.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self._detectors = detectors(thresholds or Thresholds())
        self._known: set[str] = set()
        self._names: dict[frozenset[str], Names] = {}

    def restart(self) -> None:
        """The run begins, or begins again: speeds of before mean nothing."""
        for detector in self._detectors:
            detector.restart()

    def observe(self, values: Mapping[str, float], *, step: int, t_ms: int) -> list[Finding]:
        """What this record of metrics, values by full documented name, makes known."""
        window, found = Window(step, t_ms, values, self._names_of(values)), list[Finding]()
        for detector in self._detectors:
            if findings := list(detector.observe(window)):
                found.append(_merged(findings))
        return found

    def _names_of(self, values: Mapping[str, float]) -> Names:
        key = frozenset(values)
        if key not in self._names:
            if len(self._names) >= _MOST_KINDS or not key <= self._known:
                self._names.clear()  # also because a loss term is known as one by the name of its weighted share
            self._known |= {name for name in key if _LARGE_INDEX.search(name) is None}
            if len(self._known) > MOST_NAMES:
                self._known = set(sorted(self._known)[:MOST_NAMES])
            schema = MetricSchema.covering(self._known)
            self._names[key] = Names({name: schema[name] for name in values if name in self._known and name in schema})
        return self._names[key]


def _merged(findings: list[Finding]) -> Finding:
    """One instead of several of the same record: an alarm for each of ten chunk steps is an alarm too many."""
    first, *others = findings
    if not others:
        return first
    named = ", ".join(other.metric for other in others[:_OTHERS_NAMED])
    more = f" and {len(others) - _OTHERS_NAMED} more" if len(others) > _OTHERS_NAMED else ""
    return replace(first, message=f"{first.message} (likewise {named}{more})")
