"""What happens besides training: records, evaluations and checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from vlatrack.data.loading import even_subset, load_batches
from vlatrack.data.samples import SampleSet
from vlatrack.evaluation.open_loop import evaluate_open_loop
from vlatrack.metrics.schema import TRAIN, VAL_IND, VAL_OOD
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.logbook import Logbook
from vlatrack.spec.models import ExperimentSpec, OpenLoopSpec
from vlatrack.training.checkpoint.files import Identity, remove_old, save_checkpoint
from vlatrack.training.loop import Training
from vlatrack.training.ranks import Ranks
from vlatrack.training.state import TrainState


@dataclass
class RunObserver:
    """Follows a training, on every rank: all evaluate and save together, the logbook is the first one's."""

    spec: ExperimentSpec
    training: Training
    validation: Mapping[str, SampleSet]
    identity: Identity
    checkpoints: Path
    logbook: Logbook

    def on_step(self, state: TrainState) -> None:
        self.logbook.training(state.step, self.training.total_steps)
        every = self.spec.train.checkpoint.every_steps
        if every is not None and state.step % every == 0:
            self._save(state)

    def on_record(self, state: TrainState, metrics: dict[str, float]) -> None:
        epoch = state.epoch + state.step_in_epoch / self.training.steps_per_epoch
        self.logbook.record(state, {**_prefixed(TRAIN, metrics), "epoch": epoch})

    def on_epoch(self, state: TrainState, metrics: dict[str, float]) -> None:
        number = state.epoch - 1  # the log files count epochs from 0, as the reference does
        self.logbook.split(TRAIN, metrics, epoch=number)
        shown = _prefixed(TRAIN, metrics)
        for split, values in self._evaluate(state).items():
            self.logbook.split(split, values, epoch=number)
            named = _prefixed(split, values)
            self.logbook.record(state, {**named, "epoch": float(state.epoch)})
            shown |= named
        best = self._note_best(state, shown)
        if state.epoch % self.spec.train.checkpoint.every_epochs == 0 or best or self._is_last(state):
            self._save(state)
        self.logbook.epoch(state.epoch, self.spec.train.epochs, shown)

    def _evaluate(self, state: TrainState) -> dict[str, dict[str, float]]:
        settings, training = self.spec.evaluate.open_loop, self.training
        if settings is None or (state.epoch % settings.every_epochs and not self._is_last(state)):
            return {}
        return {
            split: evaluate_split(
                training.policy, self.validation[split], settings, training.accelerator, training.ranks
            )
            for split in (VAL_IND, VAL_OOD)
            if split in self.validation
        }

    def _is_last(self, state: TrainState) -> bool:
        return state.step >= self.training.total_steps

    def _note_best(self, state: TrainState, metrics: Mapping[str, float]) -> bool:
        value = metrics.get(self.spec.train.checkpoint.best_metric)
        if value is None or (state.best_value is not None and value >= state.best_value):
            return False
        state.best_value, state.best_step = value, state.step
        return True

    def _save(self, state: TrainState) -> None:
        training, keep = self.training, self.spec.train.checkpoint.keep_last
        path = save_checkpoint(
            self.checkpoints,
            policy=training.policy,
            optimizer=training.optimizer,
            state=state,
            identity=self.identity,
            ranks=training.ranks,
        )
        if training.ranks.is_first:
            self.logbook.checkpoint(state, path)
            remove_old(self.checkpoints, keep_last=keep, best_step=state.best_step)


def evaluate_split(
    policy: VlaPolicy, samples: SampleSet, settings: OpenLoopSpec, accelerator: Accelerator, ranks: Ranks
) -> dict[str, float]:
    """Open-loop means of one split over all ranks, by schema name without prefix."""
    order = even_subset(len(samples), batch_size=settings.batch_size, limit=settings.max_samples)
    mine = [rows for rows in map(ranks.share, order) if rows]
    sums = evaluate_open_loop(policy, load_batches(samples, mine, policy.layout), accelerator)
    return policy.metric_values(ranks.total_sums(sums))


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in metrics.items()}
