"""What a run tells the outside while it is prepared and trains: journal, log files, terminal, benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the command line draws a run, and must not import torch before it has set what torch reads
    from vlatrack.metrics.states import MetricStates
    from vlatrack.training.state import TrainState


@dataclass(frozen=True)
class SplitResult:
    """What one split came to over an epoch or an evaluation, over all processes."""

    metrics: Mapping[str, float]  # by name without the split's prefix
    states: "MetricStates"  # what they were computed from, on the host


EpochResults = Mapping[str, SplitResult]
"""By split: ``train``, ``val_ind``, ``val_ood``."""


class TrackerShare(Protocol):
    """What one tracker has of a run's records."""

    @property
    def label(self) -> str: ...

    @property
    def delivered(self) -> int: ...

    @property
    def undelivered(self) -> int: ...

    @property
    def dead_letters(self) -> int:
        """Records that it refuses for good."""

    @property
    def url(self) -> str | None:
        """Where a person finds the run."""

    @property
    def error(self) -> str | None: ...


@dataclass(frozen=True)
class RunEnd:
    """How a run ended."""

    directory: Path
    status: str  # FINISHED, FAILED or KILLED
    reason: str | None = None  # why it did not finish, where no exception of this process tells
    resumable: bool = False  # whether a checkpoint is there to resume from
    horizon: int = 0  # H, the steps of an action chunk
    backends: Sequence[TrackerShare] = ()  # what the trackers have by now


class Callback:
    """Base of all callbacks: each method does nothing, override what you need.

    The run waits for each call to return. Only the main process calls them. A step is an optimiser step.
    """

    def on_run_start(self, directory: Path) -> None:
        """The run directory exists."""

    def on_warning(self, text: str) -> None:
        """Something is allowed but probably not meant; one line."""

    def on_stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def on_encode(self, split: str, done: int, total: int) -> None:
        """So many frames of a split have been turned into tokens."""

    def on_resume(self, state: "TrainState", checkpoint: Path, changes: tuple[str, ...]) -> None:
        """Training continues from a checkpoint; ``changes`` are the settings that differ from the run's first part."""

    def on_train_start(self, state: "TrainState", total_steps: int, epochs: int) -> None:
        """The first step is about to begin; so many steps and epochs there are in all."""

    def on_step(self, state: "TrainState") -> None:
        """A step is done."""

    def on_log(self, state: "TrainState", metrics: Mapping[str, float]) -> None:
        """Means over the steps since the last call, by full metric name."""

    def on_epoch(self, state: "TrainState", results: EpochResults) -> None:
        """An epoch and its evaluations are done; ``state.epoch`` counts it already."""

    def on_checkpoint(self, state: "TrainState", path: Path, policy_sha256: str) -> None:
        """A checkpoint is on the disk."""

    def on_non_finite(self, step: int, reason: str) -> None:
        """A step was not taken because its loss or gradient was not finite."""

    def on_rollback(self, state: "TrainState", from_step: int) -> None:
        """Training went back from ``from_step`` to a checkpoint, where ``state`` stands."""

    def on_run_end(self, end: RunEnd) -> None:
        """The run is over, and the trackers have been waited for."""
