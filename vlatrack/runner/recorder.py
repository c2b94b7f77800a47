"""Records a run: its journal, its log files and its table of action errors."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlatrack.builders.health import build_thresholds
from vlatrack.builders.trackers import build_backends
from vlatrack.errors import SpecError, TrackerError
from vlatrack.health.finding import Finding
from vlatrack.metrics.declarations import action_error_grids
from vlatrack.metrics.schema import TRAIN, MetricSchema
from vlatrack.reports.action_errors import append_action_errors, drop_action_errors_from
from vlatrack.reports.epoch_log import LOG_FILES, append_epoch, drop_epochs_from
from vlatrack.runner.directory import RunDirectory
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import flatten
from vlatrack.spec.load import dump_spec
from vlatrack.tracking.backends.base import Scalar
from vlatrack.tracking.journal.encoding import encode
from vlatrack.tracking.journal.history import last_start
from vlatrack.tracking.privacy import private_directory, secret_within, write_private
from vlatrack.tracking.run import DatasetInput, TrackedRun
from vlatrack.tracking.trust import OWN_RUN, Trust
from vlatrack.training.callback import Callback, EpochResults
from vlatrack.training.forensics import MOST_OF_A_RUN, Forensics
from vlatrack.training.state import TrainState

LAST_RECORDS = 50
"""Records of metrics that the forensics of a step hold."""
_log = logging.getLogger(__name__)


def start_tracking(
    directory: RunDirectory,
    spec: ExperimentSpec,
    *,
    tags: Mapping[str, str],
    name: str | None = None,
    datasets: Sequence[DatasetInput] = (),
    resume: bool = False,
    resume_step: int | None = None,
    trust: Trust = OWN_RUN,
    on_health: Callable[[Finding], None] | None = None,
) -> TrackedRun:
    """Open a run's journal and start the delivery to the trackers of its spec; see ``TrackedRun.start``.

    Without ``on_health`` the run is not watched: what it was trained like is no news when it is evaluated or exported.

    Args:
        name: what trackers show; None: as before on a resume, else the run's id.
    """
    if name is None and resume and (start := last_start(directory.journal)) is not None:
        name = start.data["name"]
    return TrackedRun.start(
        directory.path,
        uid=directory.uid,
        name=name or directory.run_id,
        experiment=spec.name,
        backends=build_backends(spec.tracking.backends),
        params=flatten(spec),
        tags=tags,
        datasets=datasets,
        group=spec.tracking.group,
        resume=resume,
        resume_step=resume_step,
        trust=trust,
        health=None if on_health is None else build_thresholds(spec.health),
        on_health=on_health or (lambda finding: None),
    )


def check_no_secret(spec: ExperimentSpec) -> None:
    """Check that what is sent to the trackers has no key in it.

    Raises:
        SpecError: a value of the spec is that of an environment variable which holds a secret.
    """
    if variable := secret_within(dump_spec(spec)):
        raise SpecError(f"the experiment holds the value of {variable} and is sent to the trackers; remove it")


class RunRecorder(Callback):
    """Writes a run's metrics and events into its directory; delivery takes them to the trackers from there."""

    def __init__(
        self, directory: RunDirectory, tracked: TrackedRun, schema: MetricSchema, *, keep_last: int, processes: int
    ) -> None:
        self._directory, self._tracked, self._schema = directory, tracked, schema
        self._keep_last, self._processes = keep_last, processes
        self._has_alerted = False
        self._last_records = deque[dict[str, Any]](maxlen=LAST_RECORDS)
        directory.evaluation.mkdir(exist_ok=True)  # runs of vlatrack 0.1.0 have none

    def on_resume(self, state: TrainState, checkpoint: Path, changes: tuple[str, ...]) -> None:
        """Remove what the run recorded after the checkpoint: it trains those steps again."""
        self._rewind(state)
        event: dict[str, Scalar] = {"step": state.step, "checkpoint": checkpoint.name, "processes": self._processes}
        if changes:
            event["changes"] = "; ".join(changes)
        self._tracked.event("resume", event)

    def on_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        self._schema.check(metrics)
        self._last_records.append({"step": state.step, "metrics": dict(metrics)})
        self._tracked.log(metrics, step=state.step)

    def on_epoch(self, state: TrainState, results: EpochResults) -> None:
        number = state.epoch - 1  # the log files count epochs from 0, as the reference does
        for split, result in results.items():
            _, prefix = LOG_FILES[split]
            line = {f"{prefix}{name}": value for name, value in result.metrics.items()}
            append_epoch(self._directory.log_files[split], {**line, "epoch": number})
            append_action_errors(self._directory.action_errors, split, number, action_error_grids(result.states))
            if split != TRAIN:  # training metrics are logged every log_every steps instead
                named = {f"{split}_{name}": value for name, value in result.metrics.items()}
                self.on_log(state, named | {"epoch": float(state.epoch)})

    def on_checkpoint(self, state: TrainState, path: Path, policy_sha256: str) -> None:
        named = {"name": path.name, "policy_sha256": policy_sha256}
        self._tracked.event("checkpoint", {"step": state.step, "epoch": state.epoch, **named})

    def on_early_stop(self, state: TrainState, reason: str) -> None:
        self._tracked.event("early_stop", {"step": state.step, "epoch": state.epoch, "reason": reason})

    def on_forensics(self, forensics: Forensics) -> None:
        folder = self._directory.path / "forensics"
        file = folder / f"step-{forensics.step:08d}.json"
        try:
            private_directory(folder, within=self._directory.path)
            if len(list(folder.glob("step-*.json"))) >= MOST_OF_A_RUN and not file.exists():
                return
            write_private(file, encode(asdict(forensics) | {"last_records": list(self._last_records)}))
            self._tracked.log_artifact(file, name=f"forensics/{file.name}")
        except (OSError, TrackerError) as error:  # the training is not to end for that
            _log.warning("%s: cannot be written (%s)", file, error)

    def on_non_finite(self, step: int, reason: str) -> None:
        # One alert, not one for each of the steps that train.non_finite: skip may leave out.
        self._tracked.event("non_finite", {"step": step, "reason": reason}, alert=not self._has_alerted)
        self._has_alerted = True

    def on_rollback(self, state: TrainState, from_step: int) -> None:
        self._rewind(state)
        self._tracked.rewind(state.step + 1, from_step)
        self._tracked.event("rollback", {"step": state.step, "from_step": from_step}, alert=True)

    def _rewind(self, state: TrainState) -> None:
        self._directory.checkpoints.set_aside_later(state.step, keep_last=self._keep_last)
        for file in self._directory.log_files.values():
            drop_epochs_from(file, state.epoch)
        drop_action_errors_from(self._directory.action_errors, state.epoch)
