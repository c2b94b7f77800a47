"""What a run shows while it works; the command line draws it, a notebook may ignore it."""

from pathlib import Path
from typing import Protocol

from vlatrack.tracking.run import DeliveryReport


class Display(Protocol):
    """Called by the runner, in this order of events."""

    def started(self, directory: Path) -> None: ...

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""
        ...

    def encoding(self, split: str, done: int, total: int) -> None:
        """Frames of a split turned into tokens."""
        ...

    def training(self, step: int, total: int) -> None: ...

    def losses(self, metrics: dict[str, float]) -> None:
        """The latest means, by schema name with the split's prefix."""
        ...

    def epoch(self, number: int, total: int, metrics: dict[str, float]) -> None:
        """An epoch and its evaluations are done; number counts from 1."""
        ...

    def finished(self, directory: Path, delivery: DeliveryReport, horizon: int) -> None: ...

    def stopped(
        self, directory: Path, status: str, can_resume: bool, delivery: DeliveryReport, reason: str | None
    ) -> None:
        """The run ended before its time, FAILED or KILLED; a reason that no exception of this process tells."""
        ...


class SilentDisplay:
    """Shows nothing."""

    def started(self, directory: Path) -> None: ...

    def stage(self, text: str) -> None: ...

    def encoding(self, split: str, done: int, total: int) -> None: ...

    def training(self, step: int, total: int) -> None: ...

    def losses(self, metrics: dict[str, float]) -> None: ...

    def epoch(self, number: int, total: int, metrics: dict[str, float]) -> None: ...

    def finished(self, directory: Path, delivery: DeliveryReport, horizon: int) -> None: ...

    def stopped(
        self, directory: Path, status: str, can_resume: bool, delivery: DeliveryReport, reason: str | None
    ) -> None: ...
