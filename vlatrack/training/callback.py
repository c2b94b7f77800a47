"""Callbacks: what a run reports while it prepares, trains and ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the command line imports this before it sets the environment variables that torch reads
    from vlatrack.metrics.states import MetricStates
    from vlatrack.training.forensics import Forensics
    from vlatrack.training.state import TrainState


@dataclass(frozen=True)
class SplitResult:
    """The metrics of one split over an epoch or an evaluation, over all ranks."""

    metrics: Mapping[str, float]  # by name without the prefix of the split, such as "closs"
    states: "MetricStates"  # that the metrics were computed from, on the host


EpochResults = Mapping[str, SplitResult]
"""By split: ``train``, ``val_ind``, ``val_ood``."""


class DeliveryState(Protocol):
    """How far the delivery of a run to one tracker has come."""

    @property
    def label(self) -> str: ...

    @property
    def delivered(self) -> int: ...

    @property
    def undelivered(self) -> int: ...

    @property
    def dead_letters(self) -> int:
        """Records that the tracker refused and that are not sent again."""

    @property
    def url(self) -> str | None:
        """The run's page, if the tracker has one."""

    @property
    def error(self) -> str | None: ...


class HealthFinding(Protocol):
    """What a detector has found wrong with a run."""

    @property
    def detector(self) -> str: ...

    @property
    def severity(self) -> str:
        """``info`` (no fault), ``warning`` or ``critical``."""

    @property
    def metric(self) -> str: ...

    @property
    def step(self) -> int: ...

    @property
    def message(self) -> str:
        """One sentence that says what was seen."""

    @property
    def remedy(self) -> str:
        """What to try."""

    def line(self) -> str:
        """Both in one line."""


@dataclass(frozen=True)
class RunEnd:
    """How a run ended."""

    directory: Path
    status: str  # FINISHED, FAILED or KILLED
    reason: str | None = None  # why it did not finish, unless an exception of this process says so
    resumable: bool = False  # whether there is a checkpoint to resume from
    horizon: int = 0  # H, steps of an action chunk
    backends: Sequence[DeliveryState] = ()
    health: str | None = None  # "healthy", or what the detectors found; None: the run was not watched


class StopTraining(Exception):  # noqa: N818 (a request, not an error)
    """A callback raises it to end the run, which then is KILLED with this reason, a line. What was done since the last
    checkpoint is lost."""


class Callback:
    """Base class of callbacks; override the methods you need, the others do nothing.

    Only the main process calls them, and the run waits for each call to return. A step is an optimiser step.
    """

    def on_run_start(self, directory: Path) -> None:
        """The run directory exists."""

    def on_warning(self, text: str) -> None:
        """Something is allowed but probably not intended; ``text`` is one line."""

    def on_notice(self, text: str) -> None:
        """Something worth knowing before the first step; ``text`` is one line."""

    def on_stage(self, text: str) -> None:
        """A stage that takes a while begins."""

    def on_encode(self, split: str, done: int, total: int) -> None:
        """``done`` of ``total`` frames of a split have been encoded as tokens."""

    def on_resume(self, state: "TrainState", checkpoint: Path, changes: tuple[str, ...]) -> None:
        """Training resumes from a checkpoint; ``changes`` are the settings that differ from those it was made with."""

    def on_train_start(self, state: "TrainState", total_steps: int, epochs: int) -> None:
        """The first step is about to begin; ``total_steps`` and ``epochs`` count the whole training."""

    def on_step(self, state: "TrainState") -> None:
        """A step is done."""

    def on_log(self, state: "TrainState", metrics: Mapping[str, float]) -> None:
        """Training metrics over the steps since the last call, by full name such as ``train_closs``."""

    def on_epoch(self, state: "TrainState", results: EpochResults) -> None:
        """An epoch and its evaluations are done; ``state.epoch`` already counts it. Its checkpoint follows."""

    def on_evaluate(self, part: str, done: int, total: int, unit: str) -> None:
        """``done`` of ``total`` batches, episodes or images (``unit``, in the singular) of a part of an open-loop
        evaluation, such as ``val_ind``, have been evaluated."""

    def on_early_stop(self, state: "TrainState", reason: str) -> None:
        """The training ends with this epoch, before its last one; ``reason`` is one line."""

    def on_checkpoint(self, state: "TrainState", path: Path, policy_sha256: str) -> None:
        """A checkpoint has been written to ``path``."""

    def on_forensics(self, forensics: "Forensics") -> None:
        """What is known of a step that was not taken because its loss or gradient was not finite, of the first few."""

    def on_non_finite(self, step: int, reason: str) -> None:
        """A step was not taken because its loss or gradient was not finite."""

    def on_health(self, finding: HealthFinding) -> None:
        """A detector has found something. Called from a thread beside the training, which does not wait for it."""

    def on_rollback(self, state: "TrainState", from_step: int) -> None:
        """Training went back from ``from_step`` to the checkpoint whose state is ``state``."""

    def on_episodes(self, evaluation: str, done: int, total: int) -> None:
        """The training is done and waits for an evaluation in a simulator; ``done`` of its episodes have ended."""

    def on_simulation(self, evaluation: str, checkpoint: Path, metrics: Mapping[str, float]) -> None:
        """An evaluation of a checkpoint beside the training is complete, with metrics as ``sim/metaworld/success``."""

    def on_run_end(self, end: RunEnd) -> None:
        """The run is over, and its delivery to the trackers has finished or timed out."""
