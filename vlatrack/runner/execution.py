"""Execute a run on every rank: start its tracking, train, record how it ended, upload what it made."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from vlatrack.builders.closed_loop import ClosedLoop, simulated_metrics
from vlatrack.builders.experiment import EncodeProgress, Experiment
from vlatrack.builders.policy import build_schema
from vlatrack.builders.training import (
    build_early_stopping,
    build_training,
    build_training_parts,
    compiles_layers,
    home_of,
    keeps_on_host,
    training_warnings,
)
from vlatrack.builders.unfilled import Fill
from vlatrack.data.baselines import baseline_errors, median_action
from vlatrack.data.episodes import NamesActions, action_names
from vlatrack.data.row_samples import RowSamples
from vlatrack.data.samples import Encoding, Samples, SampleSet
from vlatrack.data.store.episode_table import Floats
from vlatrack.health.finding import Finding
from vlatrack.metrics.schema import TRAIN, MetricSchema
from vlatrack.models.policy import VlaPolicy
from vlatrack.reports.action_references import FILE as REFERENCES
from vlatrack.reports.action_references import ActionReferences
from vlatrack.reports.error_heat_maps import draw_action_errors
from vlatrack.reports.figures import write_figures
from vlatrack.reports.html_report import write_report
from vlatrack.runner.data_digests import FILE as DATA_DIGESTS
from vlatrack.runner.data_digests import SplitDigests, write_data_digests
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.endings import Ending, describe_ending, remove_reasons, write_reason, write_traceback
from vlatrack.runner.evaluate import OpenLoopEvaluation
from vlatrack.runner.profiling import StepProfiler
from vlatrack.runner.recorder import RunRecorder, start_tracking
from vlatrack.runner.simulations import Simulations
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.run_name import overrides_text, run_name
from vlatrack.tracking.health import verdict_of
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.journal.progress import JOB
from vlatrack.tracking.privacy import private_files, shareable_files
from vlatrack.tracking.run import DatasetInput, TrackedRun
from vlatrack.tracking.system import SystemSampler
from vlatrack.training.callback import Callback, RunEnd
from vlatrack.training.checkpoint.contents import TrainingParts
from vlatrack.training.checkpoint.saving import RunCheckpoints
from vlatrack.training.checkpoint.store import CheckpointStore, name_of, step_of
from vlatrack.training.determinism import deterministic_algorithms
from vlatrack.training.early_stopping import EarlyStopping
from vlatrack.training.interruption import Interruption
from vlatrack.training.out_of_memory import WHAT_FITS, telling_out_of_memory
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState, seed_rank
from vlatrack.training.torch_process_group import process_group_of_one

_REFERENCE_STEPS = 500_000
"""Of the data, from which it is told what errors are compared with."""
_STREAMING = " (images are streamed: read and encoded while the policy trains)"
OVERRIDES_TAG = "vlatrack.overrides"
_JOB_IDS = {"SLURM_JOB_ID": "slurm", "SUBMITIT_LOCAL_JOB_ID": "local"}
"""The variables that say as which job of a scheduler this process runs."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A training to start or to resume."""

    experiment: Experiment
    accelerator: Accelerator
    manifest: dict[str, Any]
    resume_from: Path | None = None  # a checkpoint
    changes: tuple[str, ...] = ()  # settings that differ from those of that checkpoint
    closed_loops: Sequence[ClosedLoop] = ()
    name: str | None = None  # what trackers show; None: what the overrides change
    overrides: Sequence[str] = ()  # of the command line

    def schema(self) -> MetricSchema:
        """Every metric that the run can log."""
        return build_schema(self.experiment.spec, simulated_metrics(self.closed_loops))


def execute(job: Job, directory: RunDirectory, callbacks: Sequence[Callback], group: ProcessGroup) -> None:
    """Train to the end of the experiment. All ranks call this; only the main process writes and calls callbacks.

    The files of the run are for those who may read its folder, mostly this user alone; for whom the cache of image
    codes is, the user's umask says.
    """
    spec = job.experiment.spec
    with (
        Interruption(group, grace_s=spec.train.grace_s) as interruption,
        private_files(directory.path),
        process_group_of_one(needed=keeps_on_host(spec) and group.world_size == 1),
        deterministic_algorithms(wanted=spec.train.deterministic),
    ):
        if group.is_main_process:
            _run_main_process(job, directory, callbacks, group, interruption)
            return
        group.broadcast(None)
        try:
            early_stopping = build_early_stopping(spec, job.schema())  # which asks rank 0
            _train(job, directory, (), group, interruption, early_stopping)
        except BaseException as error:
            interruption.ending = True
            write_reason(directory, group.rank, error)
            raise


def _run_main_process(
    job: Job, directory: RunDirectory, callbacks: Sequence[Callback], group: ProcessGroup, interruption: Interruption
) -> None:
    """Train, and record the end in the journal and at every tracker, however the training ends."""
    for callback in callbacks:
        callback.on_run_start(directory.path)
    tracked, spec = _start_tracking(job, directory, callbacks), job.experiment.spec
    remove_reasons(directory)
    group.broadcast(None)  # the run is ours: until now, its directory may have been that of a living one
    failure: BaseException | None = None
    ending = Ending("FAILED", "why it failed could not be found out")
    simulations = None
    try:
        if job.resume_from is not None and directory.spec() != spec:
            directory.replace_spec(spec)
        tracked.log_artifact(directory.spec_file, name="spec.yaml")
        tracked.log_artifact(directory.manifest_file, name="manifest.json")
        for notice in tracked.notices:
            for callback in callbacks:
                callback.on_warning(notice)
        if (costs := job.experiment.token_costs) is not None:
            for callback in callbacks:
                callback.on_notice(costs.line())
        early_stopping = _early_stopping(job, directory)
        simulations = _simulations(job, directory, tracked, callbacks, early_stopping)
        recorder = RunRecorder(
            directory,
            tracked,
            job.schema(),
            keep_last=spec.train.checkpoint.keep_last,
            processes=group.world_size,
        )
        profiled = None if spec.train.profile is None else spec.train.profile.steps
        with (
            SystemSampler(tracked, every_s=spec.tracking.system_every_s),
            StepProfiler(directory.path, tracked, profiled) as profiler,
        ):
            own = [part for part in (recorder, profiler, simulations, early_stopping) if part is not None]
            _train(job, directory, [*own, *callbacks], group, interruption, early_stopping, simulations)
            if early_stopping is not None and not early_stopping.has_values:
                _say_never_measured(early_stopping, tracked, callbacks)
        ending = Ending("FINISHED")
    except BaseException as error:
        interruption.ending = True
        failure, ending = error, describe_ending(error, interruption, directory, group)
        raise
    finally:  # the end is written first: a kill or an error while drawing figures must not leave the run RUNNING
        interruption.ending = True
        tracked.end(ending.status, reason=ending.reason)
        if simulations is not None:
            simulations.close()
        _finish(directory, tracked, callbacks, ending, failure, spec)


def _start_tracking(job: Job, directory: RunDirectory, callbacks: Sequence[Callback]) -> TrackedRun:
    def tell(finding: Finding) -> None:
        for callback in callbacks:
            callback.on_health(finding)

    experiment, manifest, resume_from = job.experiment, job.manifest, job.resume_from
    spec, git, resumes = experiment.spec, manifest["git"] or {}, resume_from is not None
    tags = {
        "vlatrack.spec_hash": experiment.hash,
        "vlatrack.version": manifest["vlatrack"],
        "vlatrack.commit": git.get("commit") or manifest["image_commit"] or "none",
        "vlatrack.dirty": str(git.get("dirty", False)).lower(),
        "vlatrack.host": manifest["hardware"]["host"],
        "vlatrack.gpu": ", ".join(manifest["hardware"]["gpus"]) or "none",
    }
    if job_ids := [f"{scheduler} {os.environ[name]}" for name, scheduler in _JOB_IDS.items() if os.environ.get(name)]:
        tags[JOB] = job_ids[0]
    if reproduces := os.environ.get("VLATRACK_REPRODUCES"):
        tags["vlatrack.reproduces"] = reproduces
    if experiment.lineage:
        tags["vlatrack.init_from"] = " < ".join(parent["policy_sha256"][:12] for parent in reversed(experiment.lineage))
    earlier = directory.tags_at_start().get(OVERRIDES_TAG, "") if resumes else ""
    if overrides := overrides_text(job.overrides, earlier):
        tags[OVERRIDES_TAG] = overrides
    return start_tracking(
        directory,
        spec,
        tags=tags,
        name=job.name if resumes or job.name else run_name(spec.name, job.overrides, directory.began),
        datasets=[
            DatasetInput(data["source"], getattr(spec.data, split).model_dump_json(), data["sha256"], split)
            for split, data in manifest["data"].items()
        ],
        resume=resumes,
        resume_step=None if resume_from is None else step_of(resume_from),
        on_health=tell,
    )


def _train(
    job: Job,
    directory: RunDirectory,
    callbacks: Sequence[Callback],
    group: ProcessGroup,
    interruption: Interruption,
    early_stopping: EarlyStopping | None,
    simulations: Simulations | None = None,
) -> None:
    experiment, device = job.experiment, job.accelerator.device
    settings = experiment.spec.train.checkpoint

    def notify(event: str, *details: object) -> None:
        for callback in callbacks:
            getattr(callback, event)(*details)

    with group.main_process_first():  # rank 0 fits the tokenizer; the others read its files
        # Built first, so that weights of another geometry fail before the frames are encoded.
        with telling_out_of_memory("building the policy", remedy=WHAT_FITS):
            policy, fill = _policy(job)
        notify("on_stage", f"preparing the image tokenizer{_STREAMING if experiment.streams else ''}")
        encoding = experiment.encoding(policy.layout, directory.tokenizer, device)
    vocabulary = len(policy.backbone.output_layer)
    samples, rows = _samples(experiment, encoding, vocabulary, partial(notify, "on_encode"), group)
    if group.is_main_process:
        if TRAIN in samples:
            _write_references(experiment, samples, directory)
        digests = {
            name: SplitDigests.of(split, encoding, experiment.store) for name, split in experiment.splits.items()
        }
        write_data_digests(directory.path / DATA_DIGESTS, digests)
    if fill is None:
        group.broadcast_weights(policy)
    validation: dict[str, Samples] = {**samples, **rows}
    train_samples = validation.pop(TRAIN)
    with telling_out_of_memory("building the policy", remedy=WHAT_FITS):
        training = build_training(
            experiment,
            policy,
            train_samples,
            job.accelerator,
            group,
            interruption,
            callbacks,
            fill=fill,
            early_stopping=early_stopping,
        )
    parts = build_training_parts(experiment, training, encoding, directory.tokenizer)
    state = _initial_state(job, parts, directory.checkpoints, group)  # together: an optimiser's step may be collective
    if job.resume_from is not None:
        notify("on_resume", state, job.resume_from, job.changes)
    for warning in training_warnings(experiment, training, state):
        notify("on_warning", warning)
    checkpoints = RunCheckpoints(
        directory.checkpoints,
        parts,
        keep_last=settings.keep_last,
        callbacks=callbacks,
        asynchronous=settings.asynchronous,
        used=tuple if simulations is None else simulations.in_use,
    )
    if training.settings.non_finite == "rollback" and checkpoints.last_name is None:
        checkpoints.save(state)
        checkpoints.wait()
    if compiles_layers(experiment.spec, device):
        notify("on_stage", "compiling the decoder layers in the first step")
    notify("on_train_start", state, training.total_steps, training.settings.epochs)
    evaluate = OpenLoopEvaluation(
        experiment.spec.evaluate.open_loop,
        training,
        validation,
        world_model="world_model" in experiment.spec.data.samples,
    )
    training.run(state, checkpoints, evaluate)
    if simulations is not None:
        interruption.deferred = False  # from now on a signal ends the run at once
        interruption.raise_if_stopped()
        simulations.finish()
        checkpoints.prune(state.best_step)
        checkpoints.wait()


def _samples(
    experiment: Experiment, encoding: Encoding, vocabulary: int, report: EncodeProgress, group: ProcessGroup
) -> tuple[dict[str, SampleSet], dict[str, RowSamples]]:
    """The samples of the splits with episodes, and of those with finished token rows. All ranks call this."""
    with shareable_files():
        samples = experiment.samples(encoding, report, group=group)
        with group.main_process_first():
            return samples, experiment.row_samples(encoding.layout, vocabulary)


def _write_references(experiment: Experiment, samples: Mapping[str, SampleSet], directory: RunDirectory) -> None:
    """What the L1 errors of the run are compared with; see ``ActionReferences``."""
    data, source = experiment.spec.data, experiment.splits[TRAIN].source
    constant = median_action(_evenly_chosen_actions(samples[TRAIN]))
    horizon = experiment.spec.action_head.time_horizon
    baselines = {
        split: baseline_errors(_evenly_chosen_actions(of_split), constant, horizon=horizon, every=data.sample_every)
        for split, of_split in samples.items()
    }
    named = action_names(source) if isinstance(source, NamesActions) else ()
    ActionReferences(named, baselines).write(directory.evaluation)


def _evenly_chosen_actions(samples: SampleSet) -> list[Floats]:
    """The actions of episodes that are evenly spread, of all unless there are too many to read at each start."""
    episodes = samples.episodes
    share = min(1.0, _REFERENCE_STEPS / int(episodes.lengths.sum()))
    chosen = np.linspace(0, len(episodes) - 1, max(1, int(len(episodes) * share))).round().astype(int)
    return [samples.actions(number) for number in chosen.tolist()]


def _early_stopping(job: Job, directory: RunDirectory) -> EarlyStopping | None:
    """What ends the training early, with what an earlier part of the run has measured."""
    early_stopping = build_early_stopping(job.experiment.spec, job.schema())
    if early_stopping is not None and job.resume_from is not None:
        early_stopping.observe(metric_history(directory.journal).get(early_stopping.metric, []))
    return early_stopping


def _simulations(
    job: Job,
    directory: RunDirectory,
    tracked: TrackedRun,
    callbacks: Sequence[Callback],
    early_stopping: EarlyStopping | None,
) -> Simulations | None:
    if not job.closed_loops:
        directory.checkpoints.write_best(None)  # of an earlier part of the run
        return None
    return Simulations(
        directory,
        tracked,
        job.closed_loops,
        job.schema(),
        callbacks,
        best_metric=job.experiment.spec.train.checkpoint.best_metric,
        early_stopping=early_stopping,
        device="cpu" if job.accelerator.device.type == "cpu" else "cuda",
    )


def _say_never_measured(early_stopping: EarlyStopping, tracked: TrackedRun, callbacks: Sequence[Callback]) -> None:
    reason = f"train.early_stopping: {early_stopping.metric} was never measured, so it could not end the training"
    tracked.event("early_stopping", {"reason": reason}, alert=True)
    for callback in callbacks:
        callback.on_warning(reason)


def _policy(job: Job) -> tuple[VlaPolicy, Fill | None]:
    """The policy of this process; with something that reads its weights once it is known which of them it holds."""
    with_weights = job.resume_from is None
    unfilled = job.experiment.unfilled_policy(with_weights=with_weights)
    if unfilled is not None:
        return unfilled
    home = home_of(job.experiment.spec, job.accelerator.device)
    return job.experiment.policy(home, with_weights=with_weights), None


def _initial_state(job: Job, parts: TrainingParts, checkpoints: CheckpointStore, group: ProcessGroup) -> TrainState:
    """The state to train from. Seeds this rank's generators; a resume restores weights and optimiser as well."""
    step = 0 if job.resume_from is None else step_of(job.resume_from)
    if not group.is_main_process:  # rank 0 keeps the generator that drew the weights, as a single process does
        seed_rank(job.experiment.spec.seed, group.rank, step)
    if job.resume_from is None:
        return TrainState()
    state = parts.restore(job.resume_from)
    stored = job.experiment.stored
    if stored is not None and stored.spec.train.early_stopping != job.experiment.spec.train.early_stopping:
        state.stopped_early = False
    if state.best_step is not None and name_of(state.best_step) not in {path.name for path in checkpoints.all()}:
        state.best_value, state.best_step = None, None  # a later one was better, so it was deleted
    return state


def _finish(
    directory: RunDirectory,
    tracked: TrackedRun,
    callbacks: Sequence[Callback],
    ending: Ending,
    failure: BaseException | None,
    spec: ExperimentSpec,
) -> None:
    """Draw figures, upload artifacts and wait for the trackers; the end is in the journal by now."""
    for callback in callbacks:
        callback.on_stage(f"{'drawing figures and ' if spec.tracking.figures else ''}delivering to the trackers")
    tracked.settle_health()  # so that figures are marked, and the verdict is whole
    _upload_results(directory, tracked, failure, has_figures=spec.tracking.figures)
    end = RunEnd(
        directory=directory.path,
        status=ending.status,
        reason=ending.reason if ending.from_other_rank else None,
        resumable=bool(directory.checkpoints.all()),
        horizon=spec.action_head.time_horizon,
        backends=tracked.close().backends,
        health=verdict_of(directory.journal) if spec.health.any_on else None,
    )
    for callback in callbacks:
        callback.on_run_end(end)


def _upload_results(
    directory: RunDirectory, tracked: TrackedRun, failure: BaseException | None, *, has_figures: bool
) -> None:
    """Upload log files, figures and the best checkpoint, as far as the run has them; keep the traceback of a failure.

    The run has ended, so an error here is logged and leaves its status as it is.
    """
    try:
        if failure is not None:
            write_traceback(directory, failure)
        for file in [*directory.log_files.values(), directory.action_errors, directory.evaluation / REFERENCES]:
            if file.exists():
                tracked.log_artifact(file, name=file.relative_to(directory.path).as_posix())
        if not directory.has_epochs:
            return
        for figure in _draw_figures(directory) if has_figures else ():
            tracked.log_artifact(figure, name=f"figures/{figure.name}")
        tracked.log_artifact(directory.tokenizer, name="tokenizer")
        if directory.checkpoints.all():
            best = directory.checkpoints.find("best")
            digests = directory.checkpoints.check(best).sha256
            tracked.log_artifact(best, name=f"checkpoints/{best.name}", aliases=["best"], sha256=digests)
        tracked.log_artifact(write_report(directory.path, directory.report / "report.html"), name="report/report.html")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        _log.warning("%s: figures or uploads are incomplete (%s)", directory.path, reason)
        tracked.event("report_failed", {"reason": reason})


def _draw_figures(directory: RunDirectory) -> list[Path]:
    figures = write_figures(directory.path, output=directory.report)
    heat_map = directory.report / "action_errors.png"
    run_name = f"{directory.path.parent.name} / {directory.run_id}"
    if directory.action_errors.exists() and draw_action_errors(directory.action_errors, heat_map, run_name=run_name):
        figures.append(heat_map)
    return figures
