"""Train, evaluate and track one experiment, from the start or from where it was stopped."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatrack import builders
from vlatrack.data.cache import CodeCache
from vlatrack.errors import CheckpointError, SpecError
from vlatrack.metrics.schema import TRAIN, MetricSchema
from vlatrack.models.backbones.base import BackboneSource
from vlatrack.reports.epoch_log import LOG_FILES
from vlatrack.reports.figures import write_figures
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.display import Display, SilentDisplay
from vlatrack.runner.endings import StopSignals, forget_reasons, keep_traceback, leave_reason, why_it_ended
from vlatrack.runner.logbook import Logbook, NoLogbook, RunLogbook
from vlatrack.runner.manifest import describe_run, write_manifest
from vlatrack.runner.observer import RunObserver
from vlatrack.spec.identity import canonical_hash, flatten
from vlatrack.spec.load import dump_spec
from vlatrack.spec.models import ExperimentSpec
from vlatrack.tracking.backends.registry import check_backend
from vlatrack.tracking.privacy import secret_within
from vlatrack.tracking.run import DatasetInput, TrackedRun
from vlatrack.tracking.system import SystemSampler
from vlatrack.training.checkpoint.files import (
    Identity,
    list_checkpoints,
    load_policy,
    load_training,
    read_state,
    step_of,
)
from vlatrack.training.loop import Training
from vlatrack.training.ranks import Ranks
from vlatrack.training.state import TrainState, seed_rank

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What is known of an experiment before anything slow begins."""

    spec: ExperimentSpec
    splits: dict[str, builders.Split]
    ranges: builders.Ranges
    backbone: BackboneSource
    manifest: dict[str, Any]


def run_experiment(
    spec: ExperimentSpec,
    *,
    runs: Path,
    command: Sequence[str] = (),
    display: Display | None = None,
    ranks: Ranks | None = None,
) -> RunDirectory:
    """Train ``spec`` in a new run directory below ``runs``; each of several ranks calls this.

    Raises:
        VlatrackError: the spec and its data do not fit; nothing is created then, if it shows early.
    """
    ranks = ranks or Ranks()
    with ranks.first_before_others():
        prepared = _prepare(spec, command, ranks)
    directory = RunDirectory.create(runs, spec) if ranks.is_first else None
    directory = ranks.from_first(directory)
    assert directory is not None, "the first rank has made it"
    if ranks.is_first:
        write_manifest(directory.manifest_file, prepared.manifest)
    _execute(prepared, directory, display or SilentDisplay(), None, ranks)
    return directory


def resume_run(
    path: Path,
    *,
    checkpoint: str = "last",
    command: Sequence[str] = (),
    display: Display | None = None,
    ranks: Ranks | None = None,
) -> RunDirectory:
    """Continue the run at ``path`` from a checkpoint, to the same end as if it had never stopped.

    ``checkpoint`` is ``last``, ``best`` or a folder's name. Later checkpoints move to ``checkpoints/rewound``, and what
    was logged beyond it is marked as rewound. There may be more or fewer ranks than before.

    Raises:
        VlatrackError: there is no run, no checkpoint, or the data has changed since.
    """
    ranks = ranks or Ranks()
    with ranks.first_before_others():
        directory = RunDirectory.open(path)
        chosen = directory.checkpoint(checkpoint)
        prepared = _prepare(directory.spec(), command, ranks)
    _execute(prepared, directory, display or SilentDisplay(), ranks.from_first(chosen), ranks)
    return directory


def _prepare(spec: ExperimentSpec, command: Sequence[str], ranks: Ranks) -> Prepared:
    if variable := secret_within(dump_spec(spec)):
        raise SpecError(f"the experiment holds the value of {variable}, and it goes to the trackers: take it out")
    builders.check_ranks(spec, ranks)
    builders.build_schema(spec)  # a loss term that cannot be used shows at once
    for backend in builders.build_backends(spec.tracking.backends):
        check_backend(backend)
    splits = builders.open_splits(spec)
    ranges = builders.value_ranges(spec, splits[TRAIN])
    builders.check_data(spec, splits, ranges)
    backbone = builders.new_backbone(spec)
    return Prepared(spec, splits, ranges, backbone, describe_run(spec, splits, ranges, command, ranks.count))


def _execute(
    prepared: Prepared, directory: RunDirectory, display: Display, resume_from: Path | None, ranks: Ranks
) -> None:
    with StopSignals(ranks) as signals:
        if ranks.is_first:
            _lead(prepared, directory, display, resume_from, ranks, signals)
        else:
            _follow(prepared, directory, resume_from, ranks, signals)


def _lead(
    prepared: Prepared,
    directory: RunDirectory,
    display: Display,
    resume_from: Path | None,
    ranks: Ranks,
    signals: StopSignals,
) -> None:
    """Run under the tracker's eye: however it ends, the journal and every backend say so."""
    display.started(directory.path)
    forget_reasons(directory)
    tracked = _start_tracking(prepared, directory, resume_from)
    for notice in tracked.notices:
        display.stage(notice)
    logbook = RunLogbook(directory, tracked, display, builders.build_schema(prepared.spec), ranks.count)
    try:
        with SystemSampler(tracked, every_s=prepared.spec.tracking.system_every_s):
            _train(prepared, directory, logbook, resume_from, ranks)
        tracked.end("FINISHED")
    except BaseException as error:
        signals.ending = True
        ending = why_it_ended(error, signals, directory, ranks)
        tracked.end(ending.status, ending.reason)
        keep_traceback(directory, error)
        _report_results(directory, tracked)
        report = tracked.close()
        can_resume = bool(list_checkpoints(directory.checkpoints))
        display.stopped(directory.path, ending.status, can_resume, report, ending.reason if ending.foreign else None)
        raise
    _report_results(directory, tracked)
    display.stage("delivering to the trackers")
    report = tracked.close()
    display.finished(directory.path, report, head.time_horizon)


def _follow(
    prepared: Prepared, directory: RunDirectory, resume_from: Path | None, ranks: Ranks, signals: StopSignals
) -> None:
    """Train along with the first rank, which writes; only a reason to end is left for it to find."""
    try:
        _train(prepared, directory, NoLogbook(), resume_from, ranks)
    except BaseException as error:
        signals.ending = True
        leave_reason(directory, ranks.number, error)
        raise


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
    prepared: Prepared, directory: RunDirectory, logbook: Logbook, resume_from: Path | None, ranks: Ranks
) -> None:
    spec, splits = prepared.spec, prepared.splits
    with ranks.first_before_others():  # it fits the tokenizer and encodes the pictures; the others find them
        accelerator = builders.build_accelerator(spec)
        policy = builders.build_policy(spec, prepared.backbone)  # first: one that does not fit shows at once
        logbook.stage("reading the image tokenizer" if directory.tokenizer.is_dir() else "fitting the image tokenizer")
        encoding = builders.build_encoding(
            spec, splits, prepared.ranges, prepared.backbone, policy.layout, directory.tokenizer, accelerator.device
        )
        samples = builders.build_samples(spec, splits, encoding, CodeCache(directory.code_cache), logbook.encoding)
        training = builders.build_training(spec, policy, samples.pop(TRAIN), accelerator, ranks)
        identity = builders.build_identity(spec, prepared.ranges)
        state = _initial_state(training, identity, resume_from, seed=spec.seed)
        if resume_from is not None:
            logbook.resumed(state, resume_from)
    ranks.copy_weights(policy)
    logbook.training(state.step, training.total_steps)
    training.run(state, RunObserver(spec, training, samples, identity, directory.checkpoints, logbook))


def _initial_state(training: Training, identity: Identity, resume_from: Path | None, *, seed: int) -> TrainState:
    """Where the training begins, and the generators of this rank; weights and optimiser as a checkpoint has them."""
    ranks, device = training.ranks, training.accelerator.device
    if not ranks.is_first:  # the first one goes on with what drew the weights, as a process alone does
        seed_rank(seed, ranks.number, step=0 if resume_from is None else step_of(resume_from))
    if resume_from is None:
        return TrainState.fresh()
    counters, stored = read_state(resume_from)
    stored.check_equal(identity, resume_from)
    load_policy(resume_from, training.policy)
    return load_training(resume_from, training.optimizer, counters, device, rank=ranks.number)


def _report_results(directory: RunDirectory, tracked: TrackedRun) -> None:
    """After the end of the run, which a figure that cannot be drawn does not change."""
    try:
        _upload_results(directory, tracked)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        _log.warning("%s: figures and files are not complete (%s)", directory.path, reason)
        tracked.event("report_failed", {"reason": reason})


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
