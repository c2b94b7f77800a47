"""What happens besides training: records, evaluations, log files and checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass

from accelerate import Accelerator

from vlatrack.data.loading import even_subset, load_batches
from vlatrack.data.samples import SampleSet
from vlatrack.evaluation.open_loop import evaluate_open_loop
from vlatrack.models.policy import VlaPolicy
from vlatrack.reports.epoch_log import LOG_FILES
from vlatrack.runner.directory import RunDirectory, append_epoch
from vlatrack.runner.display import Display
from vlatrack.schema.metrics import TRAIN, VAL_IND, VAL_OOD, MetricSchema
from vlatrack.spec.models import ExperimentSpec, OpenLoopSpec
from vlatrack.tracking.run import TrackedRun
from vlatrack.training.checkpoints import Identity, remove_old, save_checkpoint
from vlatrack.training.loop import Training
from vlatrack.training.state import TrainState


@dataclass
class RunObserver:
    """Follows a training and keeps its run directory and trackers up to date."""

    spec: ExperimentSpec
    directory: RunDirectory
    training: Training
    validation: Mapping[str, SampleSet]
    identity: Identity
    tracked: TrackedRun
    display: Display
    schema: MetricSchema

    def on_step(self, state: TrainState) -> None:
        self.display.training(state.step, self.training.total_steps)
        every = self.spec.train.checkpoint.every_steps
        if every is not None and state.step % every == 0:
            self._save(state)

    def on_record(self, state: TrainState, metrics: dict[str, float]) -> None:
        epoch = state.epoch + state.step_in_epoch / self.training.steps_per_epoch
        self._log(state, {**_prefixed(TRAIN, metrics), "epoch": epoch})

    def on_epoch(self, state: TrainState, metrics: dict[str, float]) -> None:
        number = state.epoch - 1  # the log files count epochs from 0, as the reference does
        self._write_epoch(TRAIN, metrics, number)
        shown = _prefixed(TRAIN, metrics)
        for split, values in self._evaluate(state).items():
            self._write_epoch(split, values, number)
            named = _prefixed(split, values)
            self._log(state, {**named, "epoch": float(state.epoch)})
            shown |= named
        best = self._note_best(state, shown)
        if state.epoch % self.spec.train.checkpoint.every_epochs == 0 or best or self._is_last(state):
            self._save(state)
        self.display.epoch(state.epoch, self.spec.train.epochs, shown)

    def _write_epoch(self, split: str, metrics: dict[str, float], number: int) -> None:
        _, prefix = LOG_FILES[split]
        named = {f"{prefix}{name}": value for name, value in metrics.items()}
        append_epoch(self.directory.log_file(split), {**named, "epoch": number})

    def _evaluate(self, state: TrainState) -> dict[str, dict[str, float]]:
        settings = self.spec.evaluate.open_loop
        if settings is None or (state.epoch % settings.every_epochs and not self._is_last(state)):
            return {}
        return {
            split: evaluate_split(self.training.policy, self.validation[split], settings, self.training.accelerator)
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

    def _log(self, state: TrainState, metrics: dict[str, float]) -> None:
        self.schema.check(metrics)
        self.tracked.log(metrics, step=state.step)
        self.display.losses(metrics)

    def _save(self, state: TrainState) -> None:
        training, keep = self.training, self.spec.train.checkpoint.keep_last
        path = save_checkpoint(
            self.directory.checkpoints,
            policy=training.policy,
            optimizer=training.optimizer,
            state=state,
            identity=self.identity,
        )
        self.tracked.event("checkpoint", {"step": state.step, "epoch": state.epoch, "name": path.name})
        remove_old(self.directory.checkpoints, keep_last=keep, best_step=state.best_step)


def evaluate_split(
    policy: VlaPolicy, samples: SampleSet, settings: OpenLoopSpec, accelerator: Accelerator
) -> dict[str, float]:
    """Open-loop means of one split, by schema name without prefix."""
    order = even_subset(len(samples), batch_size=settings.batch_size, limit=settings.max_samples)
    return evaluate_open_loop(policy, load_batches(samples, order, policy.layout), accelerator)


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in metrics.items()}
