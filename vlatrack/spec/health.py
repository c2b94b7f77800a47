"""The detectors that watch a run, and their thresholds. A window is one record of training metrics
(`tracking.log_every` optimiser steps)."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vlatrack.health import thresholds as default
from vlatrack.spec.base import Model

Windows = Annotated[int, Field(ge=1, le=default.MOST_WINDOWS)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(gt=1)]


def _off(value: Any) -> Any:
    return None if value is False else value


OrOff = BeforeValidator(_off)


class NotFiniteSpec(Model):
    """A loss, an L1 error or the gradient norm is NaN or infinite."""

    windows: Windows = Field(default.NotFinite.windows, description="windows in a row in which it is so")


class SpikeSpec(Model):
    """A training metric jumps for the worse, by its declared direction."""

    z: Positive = Field(
        default.Spike.z, description="jump as a multiple of the metric's noise (robust z-score: median and MAD)"
    )
    factor: Factor = Field(default.Spike.factor, description="least ratio to the median of the last values")
    windows: Annotated[int, Field(ge=8, le=default.MOST_WINDOWS)] = Field(
        default.Spike.windows, description="windows from which the noise is estimated"
    )


class DivergenceSpec(Model):
    """A training loss stays far above the best level that it had reached."""

    factor: Factor = Field(default.Divergence.factor, description="ratio to the lowest median of five windows so far")
    windows: Windows = Field(default.Divergence.windows, description="last windows whose median is compared")


class PlateauSpec(Model):
    """The training loss no longer falls, at a learning rate at which it could."""

    windows: Annotated[int, Field(ge=20, le=default.MOST_WINDOWS)] = Field(
        default.Plateau.windows, description="least windows that a plateau lasts; at least a third of the run so far"
    )
    improvement: Share = Field(
        default.Plateau.improvement, description="part of the loss by which it must fall in that time, with 95 % surety"
    )


class OverfittingSpec(Model):
    """A loss of val_ind rises while that of train falls."""

    rise: Positive = Field(default.Overfitting.rise, description="above its best value, as a part of that")
    evaluations: Windows = Field(default.Overfitting.evaluations, description="evaluations in a row")


class OneHeadSpec(Model):
    """closs falls and loss_ct does not, or the other way round."""

    learned: Share = Field(default.OneHead.learned, description="fall of the one, as a part of where it began")
    stuck: Share = Field(default.OneHead.stuck, description="most that the other has fallen, as a part")
    windows: Windows = Field(default.OneHead.windows, description="windows from the beginning before it is judged")


class ZLossSpec(Model):
    """z_loss grows without bound."""

    factor: Factor = Field(default.ZLoss.factor, description="ratio to its level in the first five windows")


class ChunkStepSpec(Model):
    """The L1 error of one chunk step is out of line with those of the others."""

    factor: Factor = Field(
        default.ChunkStep.factor, description="ratio to the median of, and the line through the others"
    )
    windows: Windows = Field(default.ChunkStep.windows, description="windows, or evaluations, in a row")


class QuantisationFloorSpec(Model):
    """The error of decoded tokens is nearly that of rounding to bins: an information, no fault."""

    factor: Factor = Field(
        default.QuantisationFloor.factor, description="ratio of l1_loss_action to quantisation_floor"
    )
    windows: Windows = Field(default.QuantisationFloor.windows, description="windows, or evaluations, in a row")


class GradientBurstSpec(Model):
    """Two of three gradient norms in a row are far above the usual one."""

    factor: Factor = Field(default.GradientBurst.factor, description="ratio to the median")
    windows: Annotated[int, Field(ge=8, le=default.MOST_WINDOWS)] = Field(
        default.GradientBurst.windows, description="windows of that median"
    )


class DataWaitSpec(Model):
    """Steps wait for their data."""

    share: Share = Field(default.DataWait.share, description="part of a step's time")
    windows: Windows = Field(default.DataWait.windows, description="windows in a row")


class ThroughputSpec(Model):
    """Training has become slower than it was since it started."""

    share: Share = Field(default.Throughput.share, description="part of the usual tokens per second")
    z: Positive = Field(default.Throughput.z, description="least drop as a multiple of the usual variation")
    windows: Windows = Field(default.Throughput.windows, description="windows in a row")
    seconds: Positive = Field(default.Throughput.seconds, description="least time that it lasts")


class GpuIdleSpec(Model):
    """A GPU that the run has used stands idle while steps are taken."""

    percent: Annotated[float, Field(gt=0, le=100)] = Field(default.GpuIdle.percent, description="load below this, in %")
    samples: Windows = Field(
        default.GpuIdle.samples, description="samples in a row, one every tracking.system_every_s seconds"
    )


class HealthSpec(Model):
    """What is watched while a run trains, in a process beside it; null or false turns a detector off."""

    not_finite: Annotated[NotFiniteSpec | None, OrOff] = Field(NotFiniteSpec(), description=NotFiniteSpec.__doc__)
    spike: Annotated[SpikeSpec | None, OrOff] = Field(SpikeSpec(), description=SpikeSpec.__doc__)
    divergence: Annotated[DivergenceSpec | None, OrOff] = Field(DivergenceSpec(), description=DivergenceSpec.__doc__)
    plateau: Annotated[PlateauSpec | None, OrOff] = Field(PlateauSpec(), description=PlateauSpec.__doc__)
    overfitting: Annotated[OverfittingSpec | None, OrOff] = Field(
        OverfittingSpec(), description=OverfittingSpec.__doc__
    )
    one_head: Annotated[OneHeadSpec | None, OrOff] = Field(OneHeadSpec(), description=OneHeadSpec.__doc__)
    z_loss: Annotated[ZLossSpec | None, OrOff] = Field(ZLossSpec(), description=ZLossSpec.__doc__)
    chunk_step: Annotated[ChunkStepSpec | None, OrOff] = Field(ChunkStepSpec(), description=ChunkStepSpec.__doc__)
    quantisation_floor: Annotated[QuantisationFloorSpec | None, OrOff] = Field(
        QuantisationFloorSpec(), description=QuantisationFloorSpec.__doc__
    )
    gradient_burst: Annotated[GradientBurstSpec | None, OrOff] = Field(
        GradientBurstSpec(), description=GradientBurstSpec.__doc__
    )
    data_wait: Annotated[DataWaitSpec | None, OrOff] = Field(DataWaitSpec(), description=DataWaitSpec.__doc__)
    throughput: Annotated[ThroughputSpec | None, OrOff] = Field(ThroughputSpec(), description=ThroughputSpec.__doc__)
    gpu_idle: Annotated[GpuIdleSpec | None, OrOff] = Field(GpuIdleSpec(), description=GpuIdleSpec.__doc__)

    @property
    def any_on(self) -> bool:
        """Whether at least one detector is on."""
        return any(detector is not None for _, detector in self)
