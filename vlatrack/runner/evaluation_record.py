"""The evaluation of a run's checkpoint in the run's journal, from where it goes to the trackers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vlatrack.metrics.schema import SIMULATION
from vlatrack.reports.figures import draw_figures
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.recorder import start_tracking
from vlatrack.tracking.backends.base import Scalar, Status
from vlatrack.tracking.delivery.report import DeliveryReport
from vlatrack.tracking.evaluated import Evaluated, Result
from vlatrack.tracking.journal.history import last_event, metric_history, run_status, standing_events
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.trust import Trust
from vlatrack.training.checkpoint.store import step_of


@dataclass(frozen=True)
class EvaluationFiles:
    """A file or folder in the run, and what the trackers call it; see ``TrackedRun.log_artifact``."""

    name: str
    path: Path
    only: Sequence[str] = ()
    table: str | None = None


@dataclass(frozen=True)
class EvaluationRecord:
    """What an evaluation found."""

    event: str  # the name of the event that says what was evaluated
    details: Mapping[str, Scalar]  # of the event, which tell this evaluation from others
    checkpoint: str
    policy_sha256: str | None  # None: the checkpoint did not act itself
    results: Sequence[Result]
    files: Sequence[EvaluationFiles]

    def is_in(self, journal: Path) -> bool:
        """Whether a journal has it, for a checkpoint that the run has not gone back over since."""
        wanted = {"checkpoint": self.checkpoint, **self.details}.items()
        return any(wanted <= event.data["data"].items() for event in standing_events(journal, self.event))

    def write(self, tracked: TrackedRun, journal: Path) -> None:
        """Write it at the step of the checkpoint; the event comes last, and so with everything else before it."""
        for file in self.files:
            tracked.log_artifact(file.path, name=file.name, only=file.only, table=file.table)
        step, t_ms = step_of(Path(self.checkpoint)), time.time_ns() // 1_000_000
        metrics = {name: value for result in self.results for name, value in result.metrics.items()}
        tracked.log(metrics, step=step, t_ms=t_ms)
        seq = None
        if self.policy_sha256 is not None:
            known = {"name": self.checkpoint, "policy_sha256": self.policy_sha256}
            saved = last_event(journal, "checkpoint", known)
            seq = None if saved is None else saved.seq
        evaluated = Evaluated(self.checkpoint, step, self.policy_sha256, t_ms, tuple(self.results), seq)
        tracked.event(self.event, {**self.details, **evaluated.data})


def record_evaluation(run: RunDirectory, record: EvaluationRecord) -> DeliveryReport | None:
    """Add an evaluation to the journal and the trackers of a run that is over; None of one that another process writes:
    its files have the numbers.

    The run's folder may be somebody else's: a server that it alone names does not get this user's login.
    """
    before = run_status(run.path)
    if before.status == "RUNNING":
        return None
    trust = Trust(backends=True)
    tracked = start_tracking(run, run.spec(), tags=run.tags_at_start(), resume=True, trust=trust)
    try:
        record.write(tracked, run.journal)
        for figure in _draw_success(run):
            tracked.log_artifact(figure, name=f"figures/{figure.name}")
    finally:  # the run ends as it had ended before, also where its folder cannot be written
        delivery = tracked.finish(cast(Status, before.status), reason=before.reason)
    return delivery


def _draw_success(run: RunDirectory) -> list[Path]:
    """The figure of the success rates in simulators, of all checkpoints; none if there are none."""
    history = {name: points for name, points in metric_history(run.journal).items() if name.startswith(SIMULATION)}
    return draw_figures(history, output=run.report, run_name=f"{run.path.parent.name} / {run.run_id}")
