"""Evaluate a policy on the validation splits: while it trains, or a checkpoint of a run at any later time."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from accelerate import Accelerator

from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import StoredPolicy
from vlatrack.builders.training import build_accelerator
from vlatrack.data.cache import CodeCache
from vlatrack.data.loading import even_subset, load_batches
from vlatrack.data.samples import SampleSet
from vlatrack.evaluation.open_loop import evaluate_open_loop
from vlatrack.metrics.schema import EVALUATE, VAL_IND, VAL_OOD
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.recorder import start_tracking
from vlatrack.spec.models import OpenLoopSpec
from vlatrack.tracking.backends.base import Status
from vlatrack.tracking.journal.history import run_status
from vlatrack.training.callback import Callback, EpochResults, SplitResult
from vlatrack.training.checkpoint.store import step_of
from vlatrack.training.loop import EvaluationStopped, Training
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one checkpoint."""

    checkpoint: Path
    policy_sha256: str
    metrics: dict[str, float]  # by full metric name, such as val_ind_closs
    file: Path  # the JSON file they were written to


@dataclass(frozen=True)
class OpenLoopEvaluation:
    """The evaluation at the end of an epoch (implements ``vlatrack.training.loop.Evaluate``)."""

    settings: OpenLoopSpec | None
    training: Training
    samples: Mapping[str, SampleSet]

    def __call__(self, state: TrainState) -> EpochResults:
        settings, training = self.settings, self.training
        if settings is None or (state.epoch % settings.every_epochs and not training.is_complete(state)):
            return {}
        return {
            split: evaluate_split(
                training.policy,
                self.samples[split],
                settings,
                training.accelerator,
                training.group,
                before_batch=self._check_signals,
            )
            for split in (VAL_IND, VAL_OOD)
            if split in self.samples
        }

    def _check_signals(self) -> None:
        """Stop for a signal, if this process is alone: several ranks would have to stop at the same batch."""
        if self.training.interruption.stop_wanted and self.training.group.world_size == 1:
            raise EvaluationStopped


def evaluate_run(
    path: str | Path,
    *,
    checkpoint: str = "best",
    callbacks: Sequence[Callback] = (),
    group: ProcessGroup | None = None,
) -> Evaluation:
    """Open-loop evaluation of a checkpoint of the run at ``path``; needs only the checkpoint and the validation data.

    The metrics go into the run's journal, as ``evaluate/val_ind_closs`` at the checkpoint's step, together with the
    policy's digest, and from there to the trackers. Several ranks share the samples; the main process writes.

    Args:
        checkpoint: ``best``, ``last`` or the name of a checkpoint folder.

    Raises:
        VlatrackError: there is no such run or checkpoint, it is damaged, or the validation data is missing.
    """
    group = group or ProcessGroup()
    with group.main_process_first():
        directory = RunDirectory.open(Path(path))
        chosen = directory.checkpoints.find(checkpoint)
        if group.is_main_process:
            directory.checkpoints.check(chosen)
        stored = StoredPolicy.open(chosen, directory.settings_at_start())
        spec = stored.spec
        accelerator = build_accelerator(spec)
        experiment = Experiment.of(stored, spec, (VAL_IND, VAL_OOD))
        policy = experiment.policy(accelerator.device)
        encoding = experiment.encoding(policy.layout, stored.record.image_tokenizer, accelerator.device)

        def on_encode(split: str, done: int, total: int) -> None:
            for callback in callbacks:
                callback.on_encode(split, done, total)

        samples = experiment.samples(encoding, CodeCache(directory.code_cache), on_encode)
    settings = spec.evaluate.open_loop or OpenLoopSpec()
    results: dict[str, SplitResult] = {}
    for split, split_samples in samples.items():
        for callback in callbacks:
            callback.on_stage(f"evaluating {chosen.name} on {split}: {len(split_samples)} samples")
        results[split] = evaluate_split(policy, split_samples, settings, accelerator, group)
    metrics = {f"{split}_{name}": v for split, result in results.items() for name, v in result.metrics.items()}
    evaluation = Evaluation(chosen, stored.record.policy_sha256, metrics, directory.evaluation / f"{chosen.name}.json")
    if group.is_main_process:
        _record(directory, evaluation)
    return evaluation


def evaluate_split(
    policy: VlaPolicy,
    samples: SampleSet,
    settings: OpenLoopSpec,
    accelerator: Accelerator,
    group: ProcessGroup,
    before_batch: Callable[[], None] = lambda: None,
) -> SplitResult:
    """Open-loop metrics of one split over all ranks. All ranks call this."""
    order = even_subset(len(samples), batch_size=settings.batch_size, limit=settings.max_samples)
    own_rows = [rows for rows in map(group.shard, order) if rows]
    batches = load_batches(samples, own_rows, policy.layout)
    states = group.sum_states(evaluate_open_loop(policy, batches, accelerator, before_batch=before_batch))
    return SplitResult(policy.metric_values(states), states)


def _record(directory: RunDirectory, evaluation: Evaluation) -> None:
    """Write the JSON file and, if the run is over, add the metrics to its journal and trackers."""
    name, step = evaluation.checkpoint.name, step_of(evaluation.checkpoint)
    content = {"checkpoint": name, "policy_sha256": evaluation.policy_sha256, **evaluation.metrics}
    evaluation.file.parent.mkdir(exist_ok=True)
    evaluation.file.write_text(json.dumps(content, indent=1) + "\n")
    before = run_status(directory.path)
    if before.status == "RUNNING":
        return  # another process holds the journal; the JSON file has the numbers
    tracked = start_tracking(directory, directory.spec(), tags=directory.tags_at_start(), resume=True)
    tracked.event("evaluation", {"checkpoint": name, "step": step, "policy_sha256": evaluation.policy_sha256})
    tracked.log({f"{EVALUATE}{metric}": value for metric, value in evaluation.metrics.items()}, step=step)
    tracked.log_artifact(evaluation.file, name=f"evaluation/{evaluation.file.name}")
    tracked.finish(cast(Status, before.status), reason=before.reason)
