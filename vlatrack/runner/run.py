"""Train, evaluate and track one experiment, from the start or from where it was stopped."""

import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from vlatrack import builders
from vlatrack.data.cache import CodeCache
from vlatrack.errors import CheckpointError, VlatrackError
from vlatrack.models.importing import Checkpoint
from vlatrack.reports.epoch_log import LOG_FILES
from vlatrack.reports.figures import write_figures
from vlatrack.runner.directory import RunDirectory, drop_epochs_from
from vlatrack.runner.display import Display, SilentDisplay
from vlatrack.runner.manifest import describe_run, write_manifest
from vlatrack.runner.observer import RunObserver
from vlatrack.schema.metrics import TRAIN, MetricSchema
from vlatrack.spec.identity import canonical_hash, flatten
from vlatrack.spec.models import ExperimentSpec
from vlatrack.tracking.backend import Status
from vlatrack.tracking.registry import check_backend
from vlatrack.tracking.run import DatasetInput, TrackedRun
from vlatrack.tracking.system import SystemSampler
from vlatrack.training.checkpoints import (
    list_checkpoints,
    load_policy,
    load_training,
    read_state,
    set_aside_later,
    step_of,
)
from vlatrack.training.state import TrainState

TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM arrived: the run ends as KILLED."""


@dataclass(frozen=True)
class Prepared:
    """What is known of an experiment before anything slow begins."""

    spec: ExperimentSpec
    splits: dict[str, builders.Split]
    ranges: builders.Ranges
    checkpoint: Checkpoint | None
    manifest: dict[str, Any]


def run_experiment(
    spec: ExperimentSpec, *, runs: Path, command: Sequence[str] = (), display: Display | None = None
) -> RunDirectory:
    """Train ``spec`` in a new run directory below ``runs``.

    Raises:
        VlatrackError: the spec and its data do not fit; nothing is created then, if it shows early.
    """
    prepared = _prepare(spec, command)
    directory = RunDirectory.create(runs, spec)
    write_manifest(directory.manifest_file, prepared.manifest)
    _execute(prepared, directory, display or SilentDisplay(), resume_from=None)
    return directory


def resume_run(
    path: Path, *, checkpoint: str = "last", command: Sequence[str] = (), display: Display | None = None
) -> RunDirectory:
    """Continue the run at ``path`` from a checkpoint, to the same end as if it had never stopped.

    ``checkpoint`` is ``last``, ``best`` or a folder's name. Later checkpoints move to ``checkpoints/rewound``, and what
    was logged beyond it is marked as rewound.

    Raises:
        VlatrackError: there is no run, no checkpoint, or the data has changed since.
    """
    directory = RunDirectory.open(path)
    chosen = directory.checkpoint(checkpoint)
    prepared = _prepare(directory.spec(), command)
    _execute(prepared, directory, display or SilentDisplay(), resume_from=chosen)
    return directory


def _prepare(spec: ExperimentSpec, command: Sequence[str]) -> Prepared:
    for backend in builders.build_backends(spec.tracking.backends):
        check_backend(backend)
    splits = builders.open_splits(spec)
    ranges = builders.value_ranges(spec, splits[TRAIN])
    builders.check_data(spec, splits, ranges)
    checkpoint = builders.foreign_checkpoint(spec)
    return Prepared(spec, splits, ranges, checkpoint, describe_run(spec, splits, ranges, command))


def _execute(prepared: Prepared, directory: RunDirectory, display: Display, resume_from: Path | None) -> None:
    """Run under the tracker's eye: however it ends, the journal and every backend say so."""
    display.started(directory.path)
    with _sigterm_raises():
        tracked = _start_tracking(prepared, directory, resume_from)
        for notice in tracked.notices:
            display.stage(notice)
        try:
            with SystemSampler(tracked, every_s=prepared.spec.tracking.system_every_s):
                _train(prepared, directory, tracked, display, resume_from)
            _upload_results(directory, tracked)
        except BaseException as error:
            status: Status = "KILLED" if isinstance(error, KeyboardInterrupt | Terminated) else "FAILED"
            try:
                _keep_traceback(directory, error)
                _upload_results(directory, tracked)
            finally:  # whatever else goes wrong now, the run must not stay RUNNING
                report = tracked.finish(status, reason=_reason(error))
            can_resume = bool(list_checkpoints(directory.checkpoints))
            display.stopped(directory.path, status, can_resume, report)
            raise
        display.stage("delivering to the trackers")
        report = tracked.finish("FINISHED")
    display.finished(directory.path, report, prepared.spec.action_head.time_horizon)


def _start_tracking(prepared: Prepared, directory: RunDirectory, resume_from: Path | None) -> TrackedRun:
    spec, manifest = prepared.spec, prepared.manifest
    git = manifest["git"] or {}
    tracked = TrackedRun.start(
        directory.path,
        uid=directory.uid,
        name=directory.run_id,
        experiment=spec.name,
        backends=builders.build_backends(spec.tracking.backends),
        params=flatten(spec),
        tags={
            "vlatrack.spec_hash": canonical_hash(spec),
            "vlatrack.version": manifest["vlatrack"],
            "vlatrack.commit": git.get("commit", "none"),
            "vlatrack.dirty": str(git.get("dirty", False)).lower(),
            "vlatrack.host": manifest["hardware"]["host"],
            "vlatrack.gpu": ", ".join(manifest["hardware"]["gpus"]) or "none",
        },
        datasets=[
            DatasetInput(data["source"], getattr(spec.data, split).model_dump_json(), data["sha256"], split)
            for split, data in manifest["data"].items()
        ],
        group=spec.tracking.group,
        resume=resume_from is not None,
        resume_step=None if resume_from is None else step_of(resume_from),
    )
    tracked.log_artifact(directory.spec_file, name="spec.yaml")
    tracked.log_artifact(directory.manifest_file, name="manifest.json")
    return tracked


def _train(
    prepared: Prepared, directory: RunDirectory, tracked: TrackedRun, display: Display, resume_from: Path | None
) -> None:
    spec, splits = prepared.spec, prepared.splits
    accelerator = builders.build_accelerator(spec)
    policy = builders.build_policy(spec, prepared.checkpoint)  # first: a checkpoint that does not fit shows at once
    display.stage("reading the image tokenizer" if directory.tokenizer.is_dir() else "fitting the image tokenizer")
    encoding = builders.build_encoding(
        spec, splits, prepared.ranges, prepared.checkpoint, directory.tokenizer, accelerator.device
    )
    samples = builders.build_samples(spec, splits, encoding, CodeCache(directory.code_cache), display.encoding)
    training = builders.build_training(spec, policy, samples.pop(TRAIN), accelerator)
    identity = builders.build_identity(spec, prepared.ranges)
    head = spec.action_head
    state = TrainState.fresh(head.time_horizon, head.action_dim, accelerator.device)
    if resume_from is not None:
        counters, stored = read_state(resume_from)
        stored.check_equal(identity, resume_from)
        load_policy(resume_from, policy)
        state = load_training(resume_from, training.optimizer, counters, accelerator.device)
        set_aside_later(directory.checkpoints, state.step)
        tracked.event("resume", {"step": state.step, "checkpoint": resume_from.name})
        for split in LOG_FILES:
            drop_epochs_from(directory.log_file(split), state.epoch)
    schema = MetricSchema.for_experiment(horizon=head.time_horizon, action_dim=head.action_dim)
    display.training(state.step, training.total_steps)
    training.run(state, RunObserver(spec, directory, training, samples, identity, tracked, display, schema))


def _upload_results(directory: RunDirectory, tracked: TrackedRun) -> None:
    """Log files, figures and the best checkpoint; what a run that died early lacks is left out."""
    for name, _ in LOG_FILES.values():
        if (directory.path / name).exists():
            tracked.log_artifact(directory.path / name, name=name)
    if not directory.log_file(TRAIN).exists():
        return
    for figure in write_figures(directory.path, output=directory.report):
        tracked.log_artifact(figure, name=f"figures/{figure.name}")
    tracked.log_artifact(directory.tokenizer, name="tokenizer")
    try:
        best = directory.checkpoint("best")
    except CheckpointError:
        return
    tracked.log_artifact(best, name=f"checkpoints/{best.name}", aliases=["best"])


def _keep_traceback(directory: RunDirectory, error: BaseException) -> None:
    if not isinstance(error, VlatrackError | KeyboardInterrupt | Terminated):
        (directory.path / "error.txt").write_text("".join(traceback.format_exception(error)))


def _reason(error: BaseException) -> str:
    if isinstance(error, Terminated):
        return "SIGTERM"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard"
    return f"{type(error).__name__}: {error}"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM (a cluster's or a container's way to stop a run) into an exception meanwhile."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Terminated:
        sys.exit(TERMINATED)
    finally:
        signal.signal(signal.SIGTERM, before)
