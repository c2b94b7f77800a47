"""Evaluate a policy on the validation splits: while it trains, or a checkpoint of a run at any later time."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from accelerate import Accelerator

from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import StoredPolicy
from vlatrack.builders.trackers import build_backends
from vlatrack.builders.training import build_accelerator
from vlatrack.data.cache import CodeCache, user_cache
from vlatrack.data.loading import even_subset
from vlatrack.data.samples import SampleSet
from vlatrack.errors import CheckpointError, SpecError
from vlatrack.metrics.declarations import calibration_table
from vlatrack.metrics.schema import EVALUATE, VAL_IND, VAL_OOD
from vlatrack.metrics.tasks import task_metric_values
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.directory import RunDirectory, find_checkpoint, verify_checkpoint, write_in_run
from vlatrack.runner.open_loop_details import DetailedEvaluation, SplitDetails, metrics_of, task_metrics_of
from vlatrack.runner.open_loop_files import write_files
from vlatrack.runner.open_loop_samples import SamplePass
from vlatrack.runner.recorder import check_no_secret, start_tracking
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import differences, flatten
from vlatrack.spec.load import load_spec
from vlatrack.spec.training import OpenLoopSpec
from vlatrack.tracking.backends.base import Status
from vlatrack.tracking.backends.registry import check_backend
from vlatrack.tracking.delivery.report import DeliveryReport
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.privacy import redact
from vlatrack.tracking.trust import Trust
from vlatrack.training.callback import Callback, EpochResults, SplitResult
from vlatrack.training.checkpoint.store import step_of
from vlatrack.training.loop import EvaluationStopped, Training
from vlatrack.training.out_of_memory import telling_out_of_memory
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState

EVENT = "evaluation"
"""The event in the journal."""

_REMEDY = "lower evaluate.open_loop.batch_size"
_OF_AN_EVALUATION = ("data.val_ind", "data.val_ood", "evaluate", "train.device")
"""Settings that may differ from those of the training."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one checkpoint."""

    checkpoint: Path
    policy_sha256: str
    metrics: dict[str, float]  # by full metric name, such as val_ind_closs
    file: Path  # the JSON file they were written to
    data: Mapping[str, str]  # digests of the validation data, by name
    calibration: Mapping[str, list[dict[str, float]]]  # of the action tokens by split, as `calibration_table` has it
    changes: tuple[str, ...]  # settings that differ from those of the checkpoint
    tasks: Mapping[str, Mapping[str, Mapping[str, float]]]  # by split and task: its metrics, and its number of samples
    image_decoder: str | None  # how predicted images became pixels; None: the policy predicts none
    files: tuple[Path, ...] = ()  # tables and figures beside the JSON file
    delivery: DeliveryReport | None = None  # what became of the run's records at its trackers; None if nothing was sent


@dataclass(frozen=True)
class OpenLoopEvaluation:
    """The evaluation at the end of an epoch (implements ``vlatrack.training.loop.Evaluate``)."""

    settings: OpenLoopSpec | None
    training: Training
    samples: Mapping[str, SampleSet]
    world_model: bool = False  # whether the training has world-model samples

    def __call__(self, state: TrainState) -> EpochResults:
        settings, training = self.settings, self.training
        if settings is None or (state.epoch % settings.every_epochs and not training.is_complete(state)):
            return {}
        with nullcontext() if training.average is None else training.average.applied():
            return {
                split: evaluate_split(
                    training.policy,
                    self.samples[split],
                    settings,
                    training.accelerator,
                    training.group,
                    world_model=self.world_model,
                    length_multiple=training.settings.length_multiple,
                    before_batch=self._check_signals,
                )
                for split in (VAL_IND, VAL_OOD)
                if split in self.samples
            }

    def _check_signals(self) -> None:
        """Stop for a signal, all ranks at the same batch."""
        if self.training.interruption.agree_to_stop():
            raise EvaluationStopped


def evaluate_run(
    path: str | Path,
    *,
    checkpoint: str | None = None,
    overrides: Iterable[str] = (),
    callbacks: Sequence[Callback] = (),
    group: ProcessGroup | None = None,
) -> Evaluation:
    """Open-loop evaluation of a checkpoint; needs only the checkpoint and the validation data.

    ``path`` is a run, one of its checkpoints, or an exported policy. The metrics of a run's checkpoint go into its
    journal, as ``evaluate/val_ind_closs`` at the checkpoint's step, together with the policy's digest, and from there
    to the trackers; those of an exported policy into its ``evaluation.json``. Tables and figures are logged with them.
    Several ranks share the samples; the main process writes.

    Args:
        checkpoint: of a run: ``best``, ``last`` or the name of a checkpoint folder; None: the best.
        overrides: ``key=value`` changes to the validation data and to how it is evaluated, such as
            ``data.val_ind.path=/data/held-out`` or ``evaluate.open_loop.batch_size=4``.

    Raises:
        VlatrackError: there is no such checkpoint, it is damaged, an override changes the policy, or the validation
            data is missing.
    """
    group = group or ProcessGroup()
    with group.main_process_first():
        chosen, run = find_checkpoint(Path(path), checkpoint, default="best")
        if group.is_main_process:
            verify_checkpoint(chosen, run, training=False)
        stored = StoredPolicy.open(chosen, {} if run is None else run.settings_at_start())
        spec = load_spec(stored.record.spec_file, tuple(overrides), stored=True)
        changes = _checked_changes(stored, spec)
        check_no_secret(spec)
        file = _result_file(chosen, run)
        for backend in [] if run is None else build_backends(run.spec().tracking.backends):
            check_backend(backend)
        accelerator = build_accelerator(spec)
        experiment = Experiment.of(stored, spec, (VAL_IND, VAL_OOD))
        policy = experiment.policy(accelerator.device)
        encoding = experiment.encoding(policy.layout, stored.record.image_tokenizer, accelerator.device)

        def on_encode(split: str, done: int, total: int) -> None:
            for callback in callbacks:
                callback.on_encode(split, done, total)

        cache = CodeCache(user_cache() if run is None else run.code_cache)
        samples = experiment.samples(encoding, cache, on_encode)
    evaluate = DetailedEvaluation(
        policy.eval(), encoding, accelerator, group, spec.evaluate, world_model="world_model" in spec.data.samples
    )
    results: dict[str, SplitDetails] = {}
    for split, split_samples in samples.items():
        for callback in callbacks:
            callback.on_stage(f"evaluating {chosen.name} on {split}: {len(split_samples)} samples")
        with group.noticing_lost_ranks(), telling_out_of_memory("open-loop evaluation", remedy=_REMEDY):
            results[split] = evaluate.of_split(experiment.splits[split], split_samples)
    evaluation = Evaluation(
        checkpoint=chosen,
        policy_sha256=stored.record.policy_sha256,
        metrics=metrics_of(results, policy),
        file=file,
        data={name: digest for name, digest in experiment.fingerprints.items() if name.startswith("data.")},
        calibration={split: calibration_table(result.states) for split, result in results.items()},
        changes=changes,
        tasks=task_metrics_of(results, policy),
        image_decoder=evaluate.image_decoder,
    )
    if not group.is_main_process:
        return evaluation
    _write(evaluation)
    title = f"{spec.name} {chosen.name}"
    files = write_files(results, evaluation.tasks, file, name=title, image_decoder=evaluation.image_decoder)
    evaluation = replace(evaluation, files=tuple(files))
    return evaluation if run is None else replace(evaluation, delivery=_record(run, evaluation))


def _checked_changes(stored: StoredPolicy, spec: ExperimentSpec) -> tuple[str, ...]:
    """The settings that overrides have changed.

    Raises:
        SpecError: one of them is about something else than the evaluation, or there is no validation data.
    """
    changes = differences(flatten(stored.spec), flatten(spec))
    others = [str(change) for change in changes if not change.path.startswith(_OF_AN_EVALUATION)]
    if others:
        raise SpecError(
            f"{stored.record.checkpoint}: an evaluation cannot change {'; '.join(others)}; it can change "
            f"{', '.join(_OF_AN_EVALUATION)}"
        )
    if spec.data.val_ind is None and spec.data.val_ood is None:
        raise SpecError(
            f"{stored.record.checkpoint}: its experiment has no validation data; name it: "
            "'data.val_ind={kind: lerobot, path: FOLDER}'"
        )
    return tuple(map(str, changes))


def _result_file(checkpoint: Path, run: RunDirectory | None) -> Path:
    """Where the metrics go.

    Raises:
        CheckpointError: it cannot be written; to be known before the evaluation, not after it.
    """
    file = checkpoint / "evaluation.json" if run is None else run.evaluation / f"{checkpoint.name}.json"
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)  # runs of vlatrack 0.1.0 have none
        writable = os.access(file if file.exists() else file.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise CheckpointError(f"{file}: cannot be written; make it writable, or evaluate a copy")
    return file


def evaluate_split(
    policy: VlaPolicy,
    samples: SampleSet,
    settings: OpenLoopSpec,
    accelerator: Accelerator,
    group: ProcessGroup,
    *,
    world_model: bool = False,
    length_multiple: int = 1,
    before_batch: Callable[[], None] = lambda: None,
) -> SplitResult:
    """Open-loop metrics of one split over all ranks. All ranks call this.

    Args:
        world_model: whether to evaluate world-model samples of the split as well.
        length_multiple: see ``load_batches``.
    """
    run = SamplePass(policy, accelerator, group, length_multiple, before_batch)
    order = even_subset(len(samples), batch_size=settings.batch_size, limit=settings.max_samples)
    with group.noticing_lost_ranks(), telling_out_of_memory("open-loop evaluation", remedy=_REMEDY):
        own_states = run.own_states(samples, order)
        if world_model and settings.world_samples:
            limit, size = settings.world_samples, settings.batch_size
            own_states += run.own_image_states(samples, limit=limit, batch_size=size)
    states = group.sum_states(own_states)
    return SplitResult(policy.metric_values(states), states)


def _write(evaluation: Evaluation) -> None:
    content = {
        "checkpoint": evaluation.checkpoint.name,
        "policy_sha256": evaluation.policy_sha256,
        "fingerprints": evaluation.data,
        "changes": list(evaluation.changes),
        "calibration": evaluation.calibration,
        "tasks": evaluation.tasks,
        **({} if evaluation.image_decoder is None else {"image_decoder": evaluation.image_decoder}),
        **evaluation.metrics,
    }
    write_in_run(evaluation.file, redact(json.dumps(content, indent=1)) + "\n")


def _record(run: RunDirectory, evaluation: Evaluation) -> DeliveryReport | None:
    event: dict[str, str | int] = {"policy_sha256": evaluation.policy_sha256}
    if evaluation.changes:
        event["changes"] = "; ".join(evaluation.changes)
    if evaluation.image_decoder is not None:
        event["image_decoder"] = evaluation.image_decoder
    metrics = {f"{EVALUATE}{metric}": value for metric, value in evaluation.metrics.items()}
    for split, tasks in evaluation.tasks.items():
        metrics |= task_metric_values(split, tasks)
    artifacts = {
        f"{'figures' if file.suffix == '.png' else 'evaluation'}/{file.name}": file
        for file in (evaluation.file, *evaluation.files)
    }
    return record_evaluation(run, evaluation.checkpoint, EVENT, event, metrics, artifacts=artifacts)


def record_evaluation(
    run: RunDirectory,
    checkpoint: Path,
    name: str,
    event: Mapping[str, str | int],
    metrics: Mapping[str, float],
    *,
    artifacts: Mapping[str, Path],
) -> DeliveryReport | None:
    """Add the metrics of a checkpoint, at its step, to a run's journal and trackers, if the run is over; else None.

    Its folder may be somebody else's: a server that it alone names does not get this user's login.

    Args:
        name: of the event that says what was evaluated.
        artifacts: files and folders, by their names at the trackers.
    """
    before = run_status(run.path)
    if before.status == "RUNNING":
        return None  # another process holds the journal; the files have the numbers
    step, trust = step_of(checkpoint), Trust(backends=True)
    tracked = start_tracking(run, run.spec(), tags=run.tags_at_start(), resume=True, trust=trust)
    tracked.event(name, {"checkpoint": checkpoint.name, "step": step, **event})
    tracked.log(metrics, step=step)
    for artifact, path in artifacts.items():
        tracked.log_artifact(path, name=artifact)
    return tracked.finish(cast(Status, before.status), reason=before.reason)
