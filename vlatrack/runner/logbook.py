"""What a run writes and shows while it trains: journal, log files, terminal. The first rank alone keeps one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vlatrack.metrics.schema import MetricSchema
from vlatrack.reports.epoch_log import LOG_FILES
from vlatrack.runner.directory import RunDirectory, append_epoch, drop_epochs_from
from vlatrack.runner.display import Display
from vlatrack.tracking.run import TrackedRun
from vlatrack.training.checkpoint.files import set_aside_later
from vlatrack.training.state import TrainState


class Logbook(Protocol):
    """Called while a run is made ready and trains, in this order of events."""

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""
        ...

    def encoding(self, split: str, done: int, total: int) -> None:
        """Frames of a split turned into tokens."""
        ...

    def resumed(self, state: TrainState, checkpoint: Path) -> None: ...

    def training(self, step: int, total: int) -> None: ...

    def record(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Values of one training step, by schema name."""
        ...

    def split(self, split: str, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Means of a split over an epoch, counted from 0, by schema name without the split's prefix."""
        ...

    def epoch(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        """An epoch and its evaluations are done; number counts from 1."""
        ...

    def checkpoint(self, state: TrainState, path: Path) -> None: ...


@dataclass(frozen=True)
class RunLogbook:
    """Journal, log files and display of a run."""

    directory: RunDirectory
    tracked: TrackedRun
    display: Display
    schema: MetricSchema
    processes: int

    def stage(self, text: str) -> None:
        self.display.stage(text)

    def encoding(self, split: str, done: int, total: int) -> None:
        self.display.encoding(split, done, total)

    def resumed(self, state: TrainState, checkpoint: Path) -> None:
        """What was made beyond the checkpoint gives way to what comes now."""
        set_aside_later(self.directory.checkpoints, state.step)
        self.tracked.event("resume", {"step": state.step, "checkpoint": checkpoint.name, "processes": self.processes})
        for split in LOG_FILES:
            drop_epochs_from(self.directory.log_file(split), state.epoch)

    def training(self, step: int, total: int) -> None:
        self.display.training(step, total)

    def record(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        self.schema.check(metrics)
        self.tracked.log(metrics, step=state.step)
        self.display.losses(dict(metrics))

    def split(self, split: str, metrics: Mapping[str, float], *, epoch: int) -> None:
        _, prefix = LOG_FILES[split]
        named = {f"{prefix}{name}": value for name, value in metrics.items()}
        append_epoch(self.directory.log_file(split), {**named, "epoch": epoch})

    def epoch(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        self.display.epoch(number, total, dict(metrics))

    def checkpoint(self, state: TrainState, path: Path) -> None:
        self.tracked.event("checkpoint", {"step": state.step, "epoch": state.epoch, "name": path.name})


class NoLogbook:
    """Of a rank that is not the first."""

    def stage(self, text: str) -> None: ...

    def encoding(self, split: str, done: int, total: int) -> None: ...

    def resumed(self, state: TrainState, checkpoint: Path) -> None: ...

    def training(self, step: int, total: int) -> None: ...

    def record(self, state: TrainState, metrics: Mapping[str, float]) -> None: ...

    def split(self, split: str, metrics: Mapping[str, float], *, epoch: int) -> None: ...

    def epoch(self, number: int, total: int, metrics: Mapping[str, float]) -> None: ...

    def checkpoint(self, state: TrainState, path: Path) -> None: ...
