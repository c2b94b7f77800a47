"""Start an experiment as a new run, or resume a run from a checkpoint."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vlatrack.builders.closed_loop import ClosedLoop, deciding_sets, load_closed_loops, simulated_metrics
from vlatrack.builders.data import deltas_of
from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import StoredPolicy, adapter_of, build_schema
from vlatrack.builders.simulator import build_simulator
from vlatrack.builders.trackers import build_backends
from vlatrack.builders.training import build_accelerator, check_device, check_processes
from vlatrack.data.recorded import Recorded
from vlatrack.errors import CheckpointError, SpecError
from vlatrack.inference.observation import Interface
from vlatrack.runner.closed_loop import check_evaluation
from vlatrack.runner.directory import RunDirectory, find_checkpoint, store_of, verify_checkpoint
from vlatrack.runner.execution import Job, execute
from vlatrack.runner.manifest import describe_run, write_manifest
from vlatrack.runner.recorder import check_no_secret
from vlatrack.runner.unfinished import ClaimedRun, claim_of_job, claim_unfinished
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import differences, flatten, split_by_resume
from vlatrack.tracking.backends.registry import check_backend
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.sharing import check_may_write
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.contents import read_counters
from vlatrack.training.process_group import ProcessGroup

MERGING = "; start from its export, in which the adapter is merged into the weights"


def run_experiment(
    spec: ExperimentSpec,
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    overrides: Sequence[str] = (),
    command: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    group: ProcessGroup | None = None,
    job: str | None = None,
) -> RunDirectory:
    """Train ``spec`` in a new run directory below ``runs``. All ranks call this.

    Args:
        name: what trackers and tables call the run; None: what ``overrides`` change, then when it began.
        overrides: the ``key=value`` changes with which ``spec`` was loaded, which tell the run from others.
        job: the name of the job that begins the run, by which ``resume_or_run`` finds it again.

    Raises:
        VlatrackError: the spec, its data or its trackers cannot be used. What can be checked without reading frames is
            checked before the run directory is created.
    """
    group = group or ProcessGroup()
    with group.main_process_first():
        closed_loops = load_closed_loops(spec)
        accelerator = _check_setup(spec, group, closed_loops)
        experiment = Experiment.new(spec, initial_policy(spec), store=store_of(Path(runs)))
        sets = deciding_sets(spec, closed_loops)
        experiment = replace(experiment, fingerprints={**experiment.fingerprints, **sets})
        manifest = describe_run(experiment, command, group.world_size, runs=Path(runs), job=job)
        training = Job(experiment, accelerator, manifest, closed_loops=closed_loops, name=name, overrides=overrides)
        if group.is_main_process:
            _check_simulators(training, callbacks)
    directory = RunDirectory.create(Path(runs), spec) if group.is_main_process else None
    directory = group.broadcast(directory)
    assert directory is not None, "the main process created it"
    if group.is_main_process:
        write_manifest(directory.manifest_file, training.manifest)
    execute(training, directory, callbacks, group)
    return directory


def resume_or_run(
    spec: ExperimentSpec,
    *,
    runs: str | Path = "runs",
    job: str | None = None,
    overrides: Sequence[str] = (),
    command: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    group: ProcessGroup | None = None,
) -> RunDirectory:
    """Continue a run below ``runs``, or else start a new one, as a job that a scheduler starts again does. All ranks
    call this.

    Args:
        job: its name, the same each time that it is started: it continues the run that it began, and where that is
            finished, delivers what trackers still lack of it. None: it continues the last unfinished run of the same
            experiment; a run that a living process writes is left to it, and of two jobs that start at once one gets
            the run.

    Raises:
        VlatrackError: as ``run_experiment`` or ``resume_run``, or the run of the job is being written.
    """
    group = group or ProcessGroup()
    claimed = None
    if group.is_main_process:
        claimed = claim_unfinished(Path(runs), spec) if job is None else claim_of_job(Path(runs), spec, job)
    path = group.broadcast(None if claimed is None else claimed.directory.path)
    is_finished = claimed is not None and run_status(claimed.directory.path).status == "FINISHED"
    told = _told(claimed, Path(runs) / spec.name, job, is_finished=is_finished)
    for callback in callbacks:
        callback.on_warning(told)
    try:
        if path is None:
            return run_experiment(
                spec, runs=runs, overrides=overrides, command=command, callbacks=callbacks, group=group, job=job
            )
        if is_finished:  # and was killed, perhaps, before all of it was delivered
            sync_run(path)
        return resume_run(path, spec=spec, command=command, callbacks=callbacks, group=group)
    finally:
        if claimed is not None:
            claimed.release()


def _told(claimed: ClaimedRun | None, folder: Path, job: str | None, *, is_finished: bool) -> str:
    """What a job is going to do, for the one who reads its log."""
    who = "--resume auto" if job is None else f"--job {job}"
    if claimed is None:
        what = "unfinished run of this experiment" if job is None else "run of it"
        return f"{who}: no {what} in {folder}; a new one begins"
    if is_finished:
        return f"{who}: {claimed.directory.path} is finished"
    return f"{who}: continues {claimed.directory.path} from {claimed.checkpoint.name}"


def resume_run(
    path: str | Path,
    *,
    checkpoint: str = "last",
    overrides: Iterable[str] = (),
    spec: ExperimentSpec | None = None,
    command: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    group: ProcessGroup | None = None,
) -> RunDirectory:
    """Resume the run at ``path`` from a checkpoint, with the same result as if it had never stopped.

    Later checkpoints move to ``checkpoints/rewound``, and what was logged after the chosen one is marked as rewound.
    The number of ranks may differ from before. All ranks call this.

    Args:
        checkpoint: ``last``, ``best`` or the name of a checkpoint folder.
        overrides: ``key=value`` changes to settings that do not decide the result (trackers, paths, device) or that
            extend the training (``train.epochs=80``).
        spec: goes on with this spec, which differs from the run's in such settings alone; None: with the run's own.

    Raises:
        VlatrackError: there is no such run or checkpoint, or a setting or data that decides the result has changed.
    """
    group, overrides = group or ProcessGroup(), tuple(overrides)
    with group.main_process_first():
        resumed = open_resumed(Path(path), checkpoint, overrides, spec, writes=group.is_main_process)
        directory, spec, stored, chosen = resumed.directory, resumed.spec, resumed.stored, resumed.checkpoint
        if resumed.nothing_left is not None:
            for callback in callbacks:
                callback.on_warning(resumed.nothing_left)
            return directory
        closed_loops = load_closed_loops(spec)
        accelerator = _check_setup(spec, group, closed_loops)
        experiment = Experiment.of(stored, spec, store=directory.store)
        fingerprints = {**experiment.fingerprints, **deciding_sets(spec, closed_loops)}
        changes = check_same_experiment(directory, stored, spec, fingerprints)
        manifest = describe_run(experiment, command, group.world_size, runs=directory.runs)
        job = Job(experiment, accelerator, manifest, chosen, changes, closed_loops, overrides=overrides)
        if group.is_main_process:
            _check_simulators(job, callbacks)
    execute(job, directory, callbacks, group)
    return directory


@dataclass(frozen=True)
class Resumed:
    """A run that can be resumed, the checkpoint to go on from, and the settings to go on with."""

    directory: RunDirectory
    checkpoint: Path
    stored: StoredPolicy
    spec: ExperimentSpec
    nothing_left: str | None
    """why there is nothing to train; None if there is"""


def open_resumed(
    path: Path, checkpoint: str, overrides: Sequence[str], spec: ExperimentSpec | None, *, writes: bool
) -> Resumed:
    """The run at ``path`` as `resume_run` is to go on with it; its data is not looked at.

    Args:
        writes: whether this process, of several the main one, may repair and read the whole checkpoint.

    Raises:
        VlatrackError: there is no such run or checkpoint, or a setting that decides the result has changed.
    """
    directory = RunDirectory.open(path)
    instead = f"begin one of yours with its weights: vlatrack run EXPERIMENT.yaml init_from={directory.path}"
    check_may_write(directory.path, instead=instead)
    store = directory.checkpoints
    if writes and directory.journal.exists() and not is_being_written(directory.journal):
        store.recover()
    chosen = store.find(checkpoint)
    if writes:
        store.check(chosen)
    spec = spec or directory.spec(overrides)
    stored = StoredPolicy.open(chosen, directory.settings_at_start())
    check_same_experiment(directory, stored, spec)
    counters = read_counters(chosen)
    if spec.train.max_steps is not None and spec.train.max_steps < counters["step"]:
        raise SpecError(
            f"train.max_steps = {spec.train.max_steps} is below the {counters['step']} steps of {chosen.name}; "
            "raise it, or go on from an earlier --checkpoint"
        )
    return Resumed(directory, chosen, stored, spec, _nothing_left(directory, counters, spec))


def check_same_experiment(
    directory: RunDirectory, stored: StoredPolicy, spec: ExperimentSpec, fingerprints: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The settings that have changed since a checkpoint, if the run may be resumed with them.

    Args:
        fingerprints: of the data as it is now; None: only the settings are compared.

    Raises:
        SpecError: a setting or data that decides the result has changed; the message names every change.
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


def _nothing_left(directory: RunDirectory, counters: Mapping[str, Any], spec: ExperimentSpec) -> str | None:
    """A message that there is nothing left to train; None if there is."""
    train = spec.train
    is_done = counters["epoch"] >= train.epochs or (train.max_steps is not None and counters["step"] >= train.max_steps)
    stopped_early = (
        counters.get("stopped_early", False) and directory.spec().train.early_stopping == train.early_stopping
    )
    if (
        not (is_done or stopped_early) or run_status(directory.path).status != "FINISHED"
    ):  # killed between its last step and its end
        return None
    if stopped_early:
        return (
            f"nothing left to train: {directory.path} ended early after {counters['step']} steps · "
            f"go on: vlatrack run --resume {directory.path} train.early_stopping=null"
        )
    longer = f"train.max_steps={2 * train.max_steps}" if train.max_steps else f"train.epochs={2 * train.epochs}"
    return (
        f"nothing left to train: {directory.path} is done after {counters['step']} steps · "
        f"extend it: vlatrack run --resume {directory.path} {longer}"
    )


def _check_setup(spec: ExperimentSpec, group: ProcessGroup, closed_loops: Sequence[ClosedLoop]) -> Accelerator:
    """Check everything that needs no data, and return the device and precision to train with."""
    check_settings(spec, closed_loops)
    check_processes(spec, group)
    for closed_loop in closed_loops:
        if closed_loop.settings.device == "cuda" and not torch.cuda.is_available():
            raise SpecError("evaluate.closed_loop.device: cuda, but torch sees no GPU here; use auto or cpu")
    accelerator = build_accelerator(spec)
    check_device(spec, accelerator.device)
    return accelerator


def check_settings(spec: ExperimentSpec, closed_loops: Sequence[ClosedLoop]) -> None:
    """Check everything that needs neither data nor the device that will train.

    Raises:
        VlatrackError: a metric, simulator or tracker cannot be used.
    """
    check_no_secret(spec)
    build_schema(spec, simulated_metrics(closed_loops))
    for closed_loop in closed_loops:
        build_simulator(closed_loop.evaluation)
    for backend in build_backends(spec.tracking.backends):
        check_backend(backend)


def _check_simulators(job: Job, callbacks: Sequence[Callback]) -> None:
    """Start each simulator once: better now than after the first epoch.

    Raises:
        VlatrackError: one of them does not start, or the policy does not fit it.
    """
    if not job.closed_loops:
        return
    spec, norm_stats = job.experiment.spec, job.experiment.norm_stats
    interface = Interface(
        cameras=spec.data.cameras,
        state_dim=None if norm_stats.states is None else norm_stats.states.dimensions,
        history=spec.data.moments,
        horizon=spec.action_head.time_horizon,
        action_dim=spec.action_head.action_dim,
        repeats_start=spec.data.history_start == "repeat",
        statistics=norm_stats.digest(),
        deltas=deltas_of(spec),
        recorded=Recorded(job.experiment.image_sizes(), **spec.data.as_recorded.model_dump()),
    )
    for closed_loop in job.closed_loops:
        for callback in callbacks:
            callback.on_stage(f"starting {closed_loop.evaluation.suite.name} once, to see that it works")
        check_evaluation(closed_loop.evaluation, interface, spec.name, timeout_s=closed_loop.settings.timeout_s)


def initial_policy(spec: ExperimentSpec) -> StoredPolicy | None:
    """The policy that `init_from` names, verified; None if the spec has none.

    Raises:
        VlatrackError: there is no such policy, its files are damaged, or its geometry is not the spec's.
    """
    if spec.init_from is None:
        return None
    named = re.fullmatch(r"(.+?)(?:@([A-Za-z0-9-]+))?", spec.init_from)
    assert named is not None, "the spec checks it"
    checkpoint, run = find_checkpoint(Path(named[1]), named[2], default="last")
    verify_checkpoint(checkpoint, run, training=False)
    stored = StoredPolicy.open(checkpoint, {} if run is None else run.settings_at_start())
    changed = [
        difference
        for difference in differences(stored.settings, flatten(spec))
        if difference.path.startswith(("backbone.", "tokenizer.image.", "tokenizer.bins"))
        and not difference.path.endswith(("dropout", "checkpoint", "max_seq_len"))
        and not (difference.path.startswith("backbone.adapter") and adapter_of(stored.spec) is None)
    ]
    if changed:
        merged = any(difference.path.startswith("backbone.adapter") for difference in changed)
        raise CheckpointError(
            f"init_from: {spec.init_from}: of another geometry than this experiment ({'; '.join(map(str, changed))}); "
            f"its weights and tokenizers are used as they are{MERGING if merged else ''}"
        )
    return stored
