"""Train, evaluate and track one experiment, from the start or from where it was stopped."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vlatrack.builders.experiment import Experiment, build_accelerator, check_processes
from vlatrack.builders.policy import StoredPolicy, build_schema
from vlatrack.builders.trackers import build_backends
from vlatrack.data.cache import CodeCache
from vlatrack.errors import CheckpointError, SpecError
from vlatrack.metrics.schema import TRAIN
from vlatrack.reports.action_errors import draw_action_errors
from vlatrack.reports.figures import write_figures
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.endings import Ending, forget_reasons, keep_traceback, leave_reason, why_it_ended
from vlatrack.runner.evaluate import OpenLoopEvaluation
from vlatrack.runner.manifest import describe_run, write_manifest
from vlatrack.runner.recorder import RunRecorder
from vlatrack.spec.identity import differences, flatten, split_by_resume
from vlatrack.spec.load import dump_spec
from vlatrack.spec.models import ExperimentSpec
from vlatrack.tracking.backends.registry import check_backend
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.privacy import secret_within
from vlatrack.tracking.run import DatasetInput, TrackedRun
from vlatrack.tracking.system import SystemSampler
from vlatrack.training.callback import Callback, RunEnd
from vlatrack.training.checkpoint.contents import TrainingParts, read_counters
from vlatrack.training.checkpoint.store import RunCheckpoints, step_of
from vlatrack.training.interruption import Interruption
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState, seed_rank

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A training that is about to begin or to go on."""

    experiment: Experiment
    accelerator: Accelerator
    manifest: dict[str, Any]
    resume_from: Path | None = None  # a checkpoint
    changes: tuple[str, ...] = ()  # of the settings since that checkpoint


def run_experiment(
    spec: ExperimentSpec,
    *,
    runs: Path = Path("runs"),
    command: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    group: ProcessGroup | None = None,
) -> RunDirectory:
    """Train ``spec`` in a new run directory below ``runs``; each of several ranks calls this.

    Raises:
        VlatrackError: the spec and its data do not fit; nothing is created then, if it shows early.
    """
    group = group or ProcessGroup()
    with group.main_process_first():
        accelerator = _check(spec, group)
        experiment = Experiment.new(spec, _init_from(spec))
        job = Job(experiment, accelerator, describe_run(experiment, command, group.world_size))
    directory = RunDirectory.create(runs, spec) if group.is_main_process else None
    directory = group.broadcast(directory)
    assert directory is not None, "the main process has made it"
    if group.is_main_process:
        write_manifest(directory.manifest_file, job.manifest)
    _execute(job, directory, callbacks, group)
    return directory


def resume_run(
    path: Path,
    *,
    checkpoint: str = "last",
    overrides: Iterable[str] = (),
    command: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    group: ProcessGroup | None = None,
) -> RunDirectory:
    """Continue the run at ``path`` from a checkpoint, to the same end as if it had never stopped.

    ``checkpoint`` is ``last``, ``best`` or a folder's name. Later checkpoints move to ``checkpoints/rewound``, and what
    was logged beyond it is marked as rewound. There may be more or fewer ranks than before. ``overrides`` may change
    what does not make another experiment of it: trackers, paths, device, or more epochs.

    Raises:
        VlatrackError: there is no run or checkpoint, or settings or data have changed in a way that decides the result.
    """
    group = group or ProcessGroup()
    with group.main_process_first():
        directory = RunDirectory.open(path)
        store = directory.checkpoints
        if group.is_main_process and directory.journal.exists() and not is_being_written(directory.journal):
            store.recover()
        chosen = store.find(checkpoint)
        if group.is_main_process:
            store.check(chosen)
        spec = directory.spec(overrides)
        stored = StoredPolicy.open(chosen, directory.settings_at_start())
        check_same_experiment(directory, stored, spec)
        if nothing_left := _nothing_left(directory, chosen, spec):
            for callback in callbacks:
                callback.on_warning(nothing_left)
            return directory
        accelerator = _check(spec, group)
        experiment = Experiment.of(stored, spec)
        changes = check_same_experiment(directory, stored, spec, experiment.fingerprints)
        manifest = describe_run(experiment, command, group.world_size)
        job = Job(experiment, accelerator, manifest, chosen, changes)
    _execute(job, directory, callbacks, group)
    return directory


def check_same_experiment(
    directory: RunDirectory, stored: StoredPolicy, spec: ExperimentSpec, fingerprints: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """What has changed since a checkpoint, as far as the run may go on with it.

    Args:
        fingerprints: of the data as it is now; None: only the settings are compared.

    Raises:
        SpecError: something has changed that makes another experiment of it; all of it is named.
    """
    forbidden, allowed = split_by_resume(differences(stored.settings, flatten(spec)))
    known = stored.record.fingerprints
    changed_data = [
        f"{what} is not what it was"
        for what, digest in (fingerprints or {}).items()
        if what in known and known[what] != digest
    ]
    checkpoint = stored.record.checkpoint.name
    if forbidden or changed_data:
        changes = "; ".join([*map(str, forbidden), *changed_data])
        raise SpecError(
            f"{directory.path}: would go on as another experiment than {checkpoint} ({changes}): undo it, or start "
            f"a new run with these weights: init_from={directory.path}@{checkpoint}"
        )
    return tuple(map(str, allowed))


def _nothing_left(directory: RunDirectory, checkpoint: Path, spec: ExperimentSpec) -> str | None:
    """Why there is nothing to train, if a run is done."""
    counters, train = read_counters(checkpoint), spec.train
    is_done = counters["epoch"] >= train.epochs or (train.max_steps is not None and counters["step"] >= train.max_steps)
    if not is_done or counters["step_in_epoch"]:
        return None
    longer = f"train.max_steps={2 * train.max_steps}" if train.max_steps else f"train.epochs={2 * train.epochs}"
    return (
        f"nothing left to train: {directory.path} is done after {counters['epoch']} epochs, {counters['step']} steps · "
        f"extend it: vlatrack run --resume {directory.path} {longer}"
    )


def _check(spec: ExperimentSpec, group: ProcessGroup) -> Accelerator:
    """The device of the run, once everything is checked that needs no data."""
    if variable := secret_within(dump_spec(spec)):
        raise SpecError(f"the experiment holds the value of {variable}, and it goes to the trackers: take it out")
    check_processes(spec, group)
    build_schema(spec)
    accelerator = build_accelerator(spec)
    for backend in build_backends(spec.tracking.backends):
        check_backend(backend)
    return accelerator


def _init_from(spec: ExperimentSpec) -> StoredPolicy | None:
    if spec.init_from is None:
        return None
    place, _, which = spec.init_from.partition("@")
    directory = RunDirectory.open(Path(place))
    checkpoint = directory.checkpoints.find(which or "last")
    directory.checkpoints.check(checkpoint)
    stored = StoredPolicy.open(checkpoint, directory.settings_at_start())
    other = [
        difference
        for difference in differences(stored.settings, flatten(spec))
        if difference.path.startswith("backbone.")
        and not difference.path.endswith(("dropout", "checkpoint", "max_seq_len"))
    ]
    if other:
        raise CheckpointError(
            f"init_from: {spec.init_from}: of another geometry than this experiment ({'; '.join(map(str, other))})"
        )
    return stored


def _execute(job: Job, directory: RunDirectory, callbacks: Sequence[Callback], group: ProcessGroup) -> None:
    with Interruption(group) as interruption:
        if group.is_main_process:
            _lead(job, directory, callbacks, group, interruption)
        else:
            _follow(job, directory, group, interruption)


def _lead(
    job: Job, directory: RunDirectory, callbacks: Sequence[Callback], group: ProcessGroup, interruption: Interruption
) -> None:
    """Run under the tracker's eye: however it ends, the journal and every backend say so."""
    for callback in callbacks:
        callback.on_run_start(directory.path)
    forget_reasons(directory)
    tracked = _start_tracking(job, directory)
    for notice in tracked.notices:
        for callback in callbacks:
            callback.on_warning(notice)
    spec = job.experiment.spec
    failure: BaseException | None = None
    ending: Ending | None = None
    recorder = RunRecorder(
        directory,
        tracked,
        build_schema(spec),
        keep_last=spec.train.checkpoint.keep_last,
        processes=group.world_size,
    )
    try:
        with SystemSampler(tracked, every_s=spec.tracking.system_every_s):
            _train(job, directory, [recorder, *callbacks], group, interruption)
    except BaseException as error:
        interruption.ending = True
        failure, ending = error, why_it_ended(error, interruption, directory, group)
        raise
    finally:  # first the end, then what a kill or a failing figure may cost: nobody is to find the run RUNNING
        interruption.ending = True
        tracked.end(ending.status if ending else "FINISHED", reason=ending.reason if ending else None)
        if failure is not None:
            keep_traceback(directory, failure)
        _finish(directory, tracked, callbacks, ending, spec)


def _finish(
    directory: RunDirectory,
    tracked: TrackedRun,
    callbacks: Sequence[Callback],
    ending: Ending | None,
    spec: ExperimentSpec,
) -> None:
    """After the end is written: figures, uploads, and the wait for the trackers."""
    for callback in callbacks:
        callback.on_stage("drawing figures and delivering to the trackers")
    _upload_results(directory, tracked)
    end = RunEnd(
        directory=directory.path,
        status=ending.status if ending else "FINISHED",
        reason=ending.reason if ending is not None and ending.foreign else None,
        resumable=bool(directory.checkpoints.all()),
        horizon=spec.action_head.time_horizon,
        backends=tracked.close().backends,
    )
    for callback in callbacks:
        callback.on_run_end(end)


def _follow(job: Job, directory: RunDirectory, group: ProcessGroup, interruption: Interruption) -> None:
    """Train along with the main process, which writes; only a reason to end is left for it to find."""
    try:
        _train(job, directory, (), group, interruption)
    except BaseException as error:
        interruption.ending = True
        leave_reason(directory, group.rank, error)
        raise


def _start_tracking(job: Job, directory: RunDirectory) -> TrackedRun:
    experiment, manifest, resume_from = job.experiment, job.manifest, job.resume_from
    spec, git = experiment.spec, manifest["git"] or {}
    tags = {
        "vlatrack.spec_hash": experiment.hash,
        "vlatrack.version": manifest["vlatrack"],
        "vlatrack.commit": git.get("commit", "none"),
        "vlatrack.dirty": str(git.get("dirty", False)).lower(),
        "vlatrack.host": manifest["hardware"]["host"],
        "vlatrack.gpu": ", ".join(manifest["hardware"]["gpus"]) or "none",
    }
    if experiment.lineage:
        tags["vlatrack.init_from"] = " < ".join(parent["policy_sha256"][:12] for parent in reversed(experiment.lineage))
    tracked = TrackedRun.start(
        directory.path,
        uid=directory.uid,
        name=directory.run_id,
        experiment=spec.name,
        backends=build_backends(spec.tracking.backends),
        params=flatten(spec),
        tags=tags,
        datasets=[
            DatasetInput(data["source"], getattr(spec.data, split).model_dump_json(), data["sha256"], split)
            for split, data in manifest["data"].items()
        ],
        group=spec.tracking.group,
        resume=resume_from is not None,
        resume_step=None if resume_from is None else step_of(resume_from),
    )
    if job.changes:
        directory.replace_spec(spec)
    tracked.log_artifact(directory.spec_file, name="spec.yaml")
    tracked.log_artifact(directory.manifest_file, name="manifest.json")
    return tracked


def _train(
    job: Job,
    directory: RunDirectory,
    callbacks: Sequence[Callback],
    group: ProcessGroup,
    interruption: Interruption,
) -> None:
    experiment, device = job.experiment, job.accelerator.device
    settings = experiment.spec.train.checkpoint

    def tell(event: str, *details: object) -> None:
        for callback in callbacks:
            getattr(callback, event)(*details)

    with group.main_process_first():  # it fits the tokenizer and encodes the frames; the others find them
        policy = experiment.policy(device, with_weights=job.resume_from is None)  # one that does not fit shows at once
        tell("on_stage", "preparing the image tokenizer")
        encoding = experiment.encoding(policy.layout, directory.tokenizer, device)
        samples = experiment.samples(encoding, CodeCache(directory.code_cache), partial(tell, "on_encode"))
        train_samples = samples.pop(TRAIN)
        training = experiment.training(policy, train_samples, job.accelerator, group, interruption, callbacks)
        parts = experiment.training_parts(training, encoding, directory.tokenizer)
        state = _initial_state(job, parts, group)
        if job.resume_from is not None:
            tell("on_resume", state, job.resume_from, job.changes)
    group.broadcast_weights(policy)
    for warning in experiment.warnings(training):
        tell("on_warning", warning)
    checkpoints = RunCheckpoints(directory.checkpoints, parts, keep_last=settings.keep_last, callbacks=callbacks)
    if training.settings.non_finite == "rollback" and checkpoints.last_name is None:
        checkpoints.save(state)
    tell("on_train_start", state, training.total_steps, training.settings.epochs)
    training.run(state, checkpoints, OpenLoopEvaluation(experiment.spec.evaluate.open_loop, training, samples))


def _initial_state(job: Job, parts: TrainingParts, group: ProcessGroup) -> TrainState:
    """Where the training begins, and this rank's generators; weights and optimiser as a checkpoint has them."""
    step = 0 if job.resume_from is None else step_of(job.resume_from)
    if not group.is_main_process:  # rank 0 goes on with what drew the weights, as a process alone does
        seed_rank(job.experiment.spec.seed, group.rank, step)
    return TrainState() if job.resume_from is None else parts.restore(job.resume_from)


def _upload_results(directory: RunDirectory, tracked: TrackedRun) -> None:
    """Log files, figures and the best checkpoint; what a run that died early lacks is left out.

    The run has ended by now: what goes wrong here is told, and changes nothing of how it ended.
    """
    try:
        for file in [*directory.log_files.values(), directory.action_errors]:
            if file.exists():
                tracked.log_artifact(file, name=file.relative_to(directory.path).as_posix())
        if not directory.has_epochs:
            return
        figures = write_figures(directory.path, output=directory.report)
        heat_map = directory.report / "action_errors.png"
        run_name = f"{directory.path.parent.name} / {directory.run_id}"
        if directory.action_errors.exists() and draw_action_errors(
            directory.action_errors, heat_map, run_name=run_name
        ):
            figures.append(heat_map)
        for figure in figures:
            tracked.log_artifact(figure, name=f"figures/{figure.name}")
        tracked.log_artifact(directory.tokenizer, name="tokenizer")
        if directory.checkpoints.all():
            best = directory.checkpoints.find("best")
            digests = directory.checkpoints.check(best).sha256
            tracked.log_artifact(best, name=f"checkpoints/{best.name}", aliases=["best"], sha256=digests)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        _log.warning("%s: figures or uploads are incomplete (%s)", directory.path, reason)
        tracked.event("report_failed", {"reason": reason})
