"""Evaluate a policy on the validation splits: while it trains, or a checkpoint of a run at any later time."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import StoredPolicy
from vlatrack.builders.trackers import build_backends
from vlatrack.builders.training import build_accelerator
from vlatrack.data.order import even_subset
from vlatrack.data.samples import Samples, SampleSet
from vlatrack.errors import CheckpointError, SpecError
from vlatrack.metrics.declarations import calibration_table
from vlatrack.metrics.schema import EVALUATE, VAL_IND, VAL_OOD
from vlatrack.metrics.tasks import task_metric_values
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.directory import RunDirectory, find_checkpoint, verify_checkpoint, write_in_run
from vlatrack.runner.evaluation_record import EvaluationFiles, EvaluationRecord, record_evaluation
from vlatrack.runner.open_loop_details import DetailedEvaluation, SplitDetails, metrics_of, task_metrics_of
from vlatrack.runner.open_loop_files import write_files
from vlatrack.runner.open_loop_samples import Count, SamplePass
from vlatrack.runner.recorder import check_no_secret
from vlatrack.spec.data import sources_of
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import differences, flatten
from vlatrack.spec.load import load_spec
from vlatrack.spec.training import OpenLoopSpec
from vlatrack.tracking.backends.base import DatasetInput
from vlatrack.tracking.backends.registry import check_backend
from vlatrack.tracking.delivery.report import DeliveryReport
from vlatrack.tracking.evaluated import Result
from vlatrack.tracking.privacy import private_directory, redact
from vlatrack.training.callback import Callback, EpochResults, SplitResult
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
    samples: Mapping[str, Samples]
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
                    count_of=partial(Count, self._report, split),
                )
                for split in (VAL_IND, VAL_OOD)
                if split in self.samples
            }

    def _report(self, part: str, done: int, total: int, unit: str) -> None:
        for callback in self.training.callbacks:
            callback.on_evaluate(part, done, total, unit)

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
        store = None if run is None else run.store
        experiment = Experiment.of(stored, spec, (VAL_IND, VAL_OOD), store=store)
        policy = experiment.policy(accelerator.device)
        encoding = experiment.encoding(policy.layout, stored.record.image_tokenizer, accelerator.device)

        def on_encode(split: str, done: int, total: int) -> None:
            for callback in callbacks:
                callback.on_encode(split, done, total)

        def on_evaluate(part: str, done: int, total: int, unit: str) -> None:
            for callback in callbacks:
                callback.on_evaluate(part, done, total, unit)

    samples = experiment.samples(encoding, on_encode, group=group)
    evaluate = DetailedEvaluation(
        policy.eval(), encoding, accelerator, group, spec.evaluate, world_model="world_model" in spec.data.samples
    )
    results: dict[str, SplitDetails] = {}
    for split, split_samples in samples.items():
        for callback in callbacks:
            callback.on_stage(f"evaluating {chosen.name} on {split}: {len(split_samples)} samples")
        with group.noticing_lost_ranks(), telling_out_of_memory("open-loop evaluation", remedy=_REMEDY):
            results[split] = evaluate.of_split(split, experiment.splits[split], split_samples, on_evaluate)
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
    return evaluation if run is None else replace(evaluation, delivery=_record(run, evaluation, experiment))


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
    if not sources_of(spec.data.val_ind) and not sources_of(spec.data.val_ood):
        raise SpecError(
            f"{stored.record.checkpoint}: its experiment has no validation data with episodes; name it: "
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
        private_directory(file.parent, within=file.parent.parent)  # runs of vlatrack 0.1.0 have none
        writable = os.access(file if file.exists() else file.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise CheckpointError(f"{file}: cannot be written; make it writable, or evaluate a copy")
    return file


def evaluate_split(
    policy: VlaPolicy,
    samples: Samples,
    settings: OpenLoopSpec,
    accelerator: Accelerator,
    group: ProcessGroup,
    *,
    world_model: bool = False,
    length_multiple: int = 1,
    before_batch: Callable[[], None] = lambda: None,
    count_of: Callable[[int], Count] | None = None,
) -> SplitResult:
    """Open-loop metrics of one split over all ranks. All ranks call this.

    Args:
        world_model: whether to evaluate world-model samples of the split as well.
        length_multiple: see ``load_batches``.
        count_of: makes a count of so many batches.
    """
    run = SamplePass(policy, accelerator, group, length_multiple, before_batch)
    order = even_subset(len(samples), batch_size=settings.batch_size, limit=settings.max_samples)
    with group.noticing_lost_ranks(), telling_out_of_memory("open-loop evaluation", remedy=_REMEDY):
        own_states = run.own_states(samples, order, None if count_of is None else count_of(len(order)))
        if world_model and settings.world_samples and isinstance(samples, SampleSet):
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


def _record(run: RunDirectory, evaluation: Evaluation, experiment: Experiment) -> DeliveryReport | None:
    """Add it to the run's journal and trackers, each split with its data."""
    results = []
    for split, opened in experiment.splits.items():
        prefix, source = f"{split}_", getattr(experiment.spec.data, split).model_dump_json()
        data = DatasetInput(opened.source.name, source, evaluation.data[f"data.{split}"], split)
        metrics = {f"{EVALUATE}{name}": v for name, v in evaluation.metrics.items() if name.startswith(prefix)}
        results.append(Result(data, metrics | task_metric_values(split, evaluation.tasks.get(split, {}))))
    files = [
        EvaluationFiles(f"{'figures' if file.suffix == '.png' else 'evaluation'}/{file.name}", file)
        for file in (evaluation.file, *evaluation.files)
    ]
    details = {"changes": "; ".join(evaluation.changes)} if evaluation.changes else {}
    if evaluation.image_decoder is not None:
        details["image_decoder"] = evaluation.image_decoder
    name, sha256 = evaluation.checkpoint.name, evaluation.policy_sha256
    return record_evaluation(run, EvaluationRecord(EVENT, details, name, sha256, results, files))
