"""From the spec's detectors to their thresholds."""

from vlatrack.health.thresholds import Thresholds
from vlatrack.spec.health import HealthSpec


def build_thresholds(health: HealthSpec) -> Thresholds:
    """The thresholds of the detectors that are on."""
    return Thresholds.of(health.model_dump())
