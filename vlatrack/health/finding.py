"""A finding: what a detector saw, and what to try."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

HEALTHY = "healthy"


class Severity(StrEnum):
    """How bad it is. `info` is no fault: it says nothing against the run."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True)
class Finding:
    """What a detector found: `message` is a sentence with the numbers, `remedy` one that says what to try."""

    detector: str
    severity: Severity
    metric: str
    """The full documented name, such as `train_closs`."""
    step: int
    value: float
    message: str
    remedy: str

    @property
    def identity(self) -> tuple[str, str, int]:
        """Tells it from every other finding of the same run."""
        return self.detector, self.metric, self.step

    def data(self) -> dict[str, str | int | float]:
        """As the journal's events hold it."""
        return asdict(self) | {"severity": str(self.severity)}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `data`; ValueError if a field is missing or not of its type, as in a journal that vlatrack has
        not written. The journal writes a value that is not finite as text."""
        texts = [data.get(name) for name in ("detector", "metric", "message", "remedy")]
        step, value, severity = data.get("step"), data.get("value"), data.get("severity")
        if not all(isinstance(text, str) for text in texts) or type(step) is not int:
            raise ValueError("no finding")
        if not isinstance(value, int | float | str) or severity not in set(Severity):
            raise ValueError("no finding")
        detector, metric, message, remedy = map(str, texts)
        return cls(detector, Severity(str(severity)), metric, step, float(value), message, remedy)

    def line(self) -> str:
        """One line for a terminal."""
        return f"{self.message}; try: {self.remedy}"


def verdict(findings: Iterable[Finding]) -> str:
    """`healthy`, or how many findings of which detectors there are, the worst first: `critical: divergence, spike (2)`.

    Those that are no fault do not count.
    """
    faults = [finding for finding in findings if finding.severity is not Severity.INFO]
    if not faults:
        return HEALTHY
    worst = Severity.CRITICAL if any(fault.severity is Severity.CRITICAL for fault in faults) else Severity.WARNING
    ordered = sorted(faults, key=lambda fault: fault.severity is not Severity.CRITICAL)
    counts: dict[str, int] = {}
    for fault in ordered:
        counts[fault.detector] = counts.get(fault.detector, 0) + 1
    return f"{worst}: {', '.join(name if n == 1 else f'{name} ({n})' for name, n in counts.items())}"
