"""Metrics of real runs, and what the detectors make of them."""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlatrack.health.finding import Finding
from vlatrack.health.monitor import HealthMonitor
from vlatrack.health.thresholds import Thresholds

FIXTURES = Path(__file__).parents[1] / "health" / "fixtures"
CLEAN = tuple(sorted(file.name.removesuffix(".jsonl.gz") for file in FIXTURES.glob("*.jsonl.gz")))


@dataclass(frozen=True)
class Line:
    """One record of metrics."""

    step: int
    t_ms: int
    values: Mapping[str, float]

    @property
    def is_window(self) -> bool:
        return "train_loss" in self.values


def journal_text(name: str) -> str:
    """The journal of a real run."""
    return gzip.decompress((FIXTURES / f"{name}.jsonl.gz").read_bytes()).decode()


def curves(name: str) -> list[Line]:
    """The metrics of a real run."""
    records = [json.loads(line) for line in journal_text(name).splitlines()]
    return [Line(r["step"], r["t_ms"], r["data"]) for r in records if r["kind"] == "metrics"]


Change = Callable[[int, dict[str, float]], None]
"""Changes the values of a record in place; told how many windows (or evaluations) ago the fault began, 0 in the first
of them."""


def planted(lines: Iterable[Line], change: Change, *, at: int, of: str = "train_loss") -> list[Line]:
    """The lines with a fault from the `at`-th record on that has the metric `of`."""
    changed, count = [], 0
    for line in lines:
        values = dict(line.values)
        if of in values:
            if count >= at:
                change(count - at, values)
            count += 1
        changed.append(Line(line.step, line.t_ms, values))
    return changed


def findings(lines: Iterable[Line], thresholds: Thresholds | None = None) -> list[Finding]:
    """What the detectors find in them, those that are no fault included."""
    monitor, found = HealthMonitor(thresholds), list[Finding]()
    monitor.restart()
    for line in lines:
        found += monitor.observe(line.values, step=line.step, t_ms=line.t_ms)
    return found


def windows_until(lines: Iterable[Line], detector: str, *, at: int, of: str = "train_loss") -> int | None:
    """In which record of a fault that begins with the `at`-th the detector finds it, counted from 1; None: in none."""
    lines = list(lines)
    steps = [line.step for line in lines if of in line.values]
    first = next((found.step for found in findings(lines) if found.detector == detector), None)
    return None if first is None else sum(step <= first for step in steps) - at
