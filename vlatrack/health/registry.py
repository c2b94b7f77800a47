"""All detectors, in the order in which their findings are told."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from vlatrack.health.detector import Detector
from vlatrack.health.detectors.actions import ChunkStepDetector, QuantisationFloorDetector
from vlatrack.health.detectors.divergence import DivergenceDetector, ZLossDetector
from vlatrack.health.detectors.gradients import GradientBurstDetector
from vlatrack.health.detectors.not_finite import NotFiniteDetector
from vlatrack.health.detectors.one_head import OneHeadDetector
from vlatrack.health.detectors.overfitting import OverfittingDetector
from vlatrack.health.detectors.plateau import PlateauDetector
from vlatrack.health.detectors.speed import DataWaitDetector, GpuIdleDetector, ThroughputDetector
from vlatrack.health.detectors.spike import SpikeDetector
from vlatrack.health.thresholds import Thresholds

DETECTORS: dict[str, Callable[[Any], Detector]] = {
    kind.name: kind
    for kind in (
        NotFiniteDetector,
        DivergenceDetector,
        SpikeDetector,
        OneHeadDetector,
        ZLossDetector,
        OverfittingDetector,
        PlateauDetector,
        ChunkStepDetector,
        QuantisationFloorDetector,
        GradientBurstDetector,
        DataWaitDetector,
        ThroughputDetector,
        GpuIdleDetector,
    )
}
"""By the name of their thresholds."""


def detectors(thresholds: Thresholds) -> list[Detector]:
    """Those that are switched on, new."""
    assert DETECTORS.keys() == {part.name for part in fields(thresholds)}, (
        "a detector without thresholds, or the reverse"
    )
    return [make(settings) for name, make in DETECTORS.items() if (settings := getattr(thresholds, name)) is not None]
