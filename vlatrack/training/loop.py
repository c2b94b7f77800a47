"""The training loop."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from accelerate import Accelerator

from vlatrack.data.loading import epoch_order, load_batches
from vlatrack.data.samples import SampleSet
from vlatrack.errors import NonFiniteError
from vlatrack.metrics.schema import TRAIN, MetricSchema, split_and_name
from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.callback import Callback, EpochResults, SplitResult
from vlatrack.training.gradient_share import gradient_shares
from vlatrack.training.interruption import Interruption
from vlatrack.training.non_finite import NonFiniteGuard, RollbackError
from vlatrack.training.optimisation import Schedule, StepResult, train_step
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState
from vlatrack.training.throughput import SPEEDS, Throughput


class Checkpoints(Protocol):
    """What the loop needs of a run's checkpoints. All ranks call these together."""

    def save(self, state: TrainState) -> None:
        """Write the training as it stands."""
        ...

    @property
    def last_name(self) -> str | None:
        """The name of the last checkpoint."""
        ...

    def restore_last(self) -> TrainState:
        """Bring weights, optimiser and generators back to the last checkpoint; there must be one."""
        ...


class Evaluate(Protocol):
    def __call__(self, state: TrainState) -> EpochResults:
        """Results by split after an epoch; nothing where it is not due. All ranks call it together."""
        ...


class EvaluationStopped(Exception):  # noqa: N818 (a request, no error)
    """A signal asks the run to end, and an evaluation may take long."""


@dataclass(frozen=True)
class LoopSettings:
    """Plain settings of the loop (field meanings as in the experiment's YAML)."""

    epochs: int
    max_steps: int | None
    batch_size: int
    micro_batch: int | None
    clip_grad: float | None
    log_every: int
    seed: int
    workers: int
    non_finite: Literal["halt", "skip", "rollback"]
    max_rollbacks: int
    save_every_epochs: int
    save_every_steps: int | None
    best_metric: str
    gradient_share_every: int | None


@dataclass
class Training:
    """Everything a training is made of."""

    policy: VlaPolicy
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    samples: SampleSet
    settings: LoopSettings
    accelerator: Accelerator
    group: ProcessGroup
    interruption: Interruption
    schema: MetricSchema
    callbacks: Sequence[Callback] = ()  # of the main process alone

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.samples) // self.settings.batch_size)

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.settings.epochs
        return steps if self.settings.max_steps is None else min(steps, self.settings.max_steps)

    def is_complete(self, state: TrainState) -> bool:
        """The last step alone is not the end: its epoch must have been closed, also after a resume."""
        return state.step >= self.total_steps and state.step_in_epoch == 0

    def run(self, state: TrainState, checkpoints: Checkpoints, evaluate: Evaluate) -> TrainState:
        """Train from where ``state`` stands to the end of the last epoch or to ``max_steps``.

        Raises:
            TrainingError: a loss or gradient is not finite, and the settings say to halt.
        """
        device = self.accelerator.device
        clock, guard = Throughput(device), NonFiniteGuard(device, self.settings.non_finite, self.callbacks)
        while not self.is_complete(state):
            try:
                self._train_epoch(state, checkpoints, clock, guard)
                self._close_epoch(state, checkpoints, evaluate)
            except RollbackError as error:
                state = self._roll_back(error, state, checkpoints)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error}; {_remedy(checkpoints.last_name)}") from None
            clock.restart()
        return state

    def _train_epoch(
        self, state: TrainState, checkpoints: Checkpoints, clock: Throughput, guard: "NonFiniteGuard"
    ) -> None:
        settings = self.settings
        self.policy.train()
        self.interruption.deferred = True
        for micro_batches in clock.waiting_for(self._steps(state)):
            wants_checkpoint = False
            if state.step + 1 in state.excluded_steps:
                state.pass_step()
            else:
                lr = self.schedule.at(state.step / self.steps_per_epoch)
                counts, wants_checkpoint = self._agree(micro_batches)
                shares = self._gradient_shares(state, micro_batches, counts)
                step = train_step(
                    self.policy,
                    self.optimizer,
                    micro_batches,
                    counts,
                    accelerator=self.accelerator,
                    group=self.group,
                    lr=lr,
                    clip_grad=settings.clip_grad,
                )
                state.add(step.states)
                guard.note(state, step)
                clock.count(micro_batches)
                if shares:
                    self._tell_log(state, shares)
                if state.step % settings.log_every == 0:
                    guard.check(state)
                    self._log(state, step, lr, clock)
            for callback in self.callbacks:
                callback.on_step(state)
            if wants_checkpoint or self._is_save_due(state):
                guard.check(state)
                with clock.paused():
                    checkpoints.save(state)
                self.interruption.raise_if_stopped()
            if state.step == self.total_steps:
                break
        guard.check(state)

    def _steps(self, state: TrainState) -> Iterator[list[Batch]]:
        """For each step of the rest of the current epoch, the micro batches of this rank; none if it has no sample."""
        settings, size = self.settings, self.settings.micro_batch or self.settings.batch_size
        order = epoch_order(len(self.samples), batch_size=settings.batch_size, seed=settings.seed, epoch=state.epoch)
        shards = [self.group.shard(batch) for batch in order[state.step_in_epoch :]]
        cut = [[shard[i : i + size] for i in range(0, len(shard), size)] for shard in shards]
        on_gpu = self.accelerator.device.type == "cuda"
        rows = list(itertools.chain.from_iterable(cut))
        batches = load_batches(self.samples, rows, self.policy.layout, workers=settings.workers, pin=on_gpu)
        for micro_batches in cut:
            yield list(itertools.islice(batches, len(micro_batches)))

    def _agree(self, micro_batches: Sequence[Batch]) -> tuple[dict[str, float], bool]:
        """In one exchange: the counts of the step's loss terms, and whether any rank wants a checkpoint after it."""
        names = [term.name for term in self.policy.losses]
        of_batches = [self.policy.loss_counts(batch) for batch in micro_batches]
        own = [sum(counts[name] for counts in of_batches) for name in names]
        *counts, checkpoint, terminated, interrupted = self.group.sum([*own, *self.interruption.requests()])
        wants_checkpoint = self.interruption.heed([checkpoint, terminated, interrupted])
        return dict(zip(names, counts, strict=True)), wants_checkpoint

    def _log(self, state: TrainState, step: StepResult, lr: float, clock: Throughput) -> None:
        means = self._result(state.take_window()).metrics
        speeds = self.group.combine(clock.take(), SPEEDS)
        named = {f"{TRAIN}_{name}": value for name, value in {**means, **speeds}.items()}
        named |= {f"{TRAIN}_grad_norm": step.grad_norm.item(), f"{TRAIN}_lr": lr}
        if state.skipped_steps:
            named[f"{TRAIN}_skipped_steps"] = float(state.skipped_steps)
        named["epoch"] = state.epoch + state.step_in_epoch / self.steps_per_epoch
        self._tell_log(state, named)

    def _tell_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            callback.on_log(state, metrics)

    def _gradient_shares(
        self, state: TrainState, micro_batches: Sequence[Batch], counts: Mapping[str, float]
    ) -> dict[str, float]:
        """Every so many steps, of the main process's first micro batch."""
        every = self.settings.gradient_share_every
        if every is None or (state.step + 1) % every or not self.group.is_main_process:
            return {}
        shares = gradient_shares(self.policy, micro_batches[0], counts, self.accelerator)
        return {f"{TRAIN}_{name}": value for name, value in shares.items()}

    def _result(self, states: MetricStates) -> SplitResult:
        summed = self.group.sum_states(states)
        return SplitResult(self.policy.metric_values(summed), summed)

    def _is_save_due(self, state: TrainState) -> bool:
        """Whether a step inside an epoch is one to save; at its end, `_close_epoch` saves, once."""
        every = self.settings.save_every_steps
        inside = state.step_in_epoch < self.steps_per_epoch and state.step < self.total_steps
        return inside and every is not None and state.step % every == 0

    def _close_epoch(self, state: TrainState, checkpoints: Checkpoints, evaluate: Evaluate) -> None:
        settings, before = self.settings, copy(state)
        results = {TRAIN: self._result(state.finish_epoch())}
        try:
            results |= evaluate(state)
        except EvaluationStopped:
            checkpoints.save(before)  # resumed, the run closes this epoch anew
            self.interruption.raise_if_stopped()
            raise
        is_best = self._note_best(state, results)
        every = settings.save_every_steps
        is_due = state.epoch % settings.save_every_epochs == 0 or (every is not None and state.step % every == 0)
        if is_due or is_best or self.is_complete(state):
            checkpoints.save(state)
        for callback in self.callbacks:
            callback.on_epoch(state, results)
        self.interruption.raise_if_stopped()

    def _note_best(self, state: TrainState, results: EpochResults) -> bool:
        """Remember the best value so far of the metric that decides; whether it is this one."""
        metric = self.settings.best_metric
        if state.best_metric not in (None, metric):  # another metric decides since a resume
            state.best_value, state.best_step = None, None
        state.best_metric = metric
        split, name = split_and_name(metric)
        value = results[split].metrics.get(name) if split in results else None
        if value is None or not self.schema.is_better(metric, value, state.best_value):
            return False
        state.best_value, state.best_step = value, state.step
        return True

    def _roll_back(self, error: "RollbackError", state: TrainState, checkpoints: Checkpoints) -> TrainState:
        if state.rollbacks >= self.settings.max_rollbacks:
            raise NonFiniteError(
                f"{error}, after {state.rollbacks} rollbacks; {_remedy(checkpoints.last_name)}"
            ) from None
        restored = checkpoints.restore_last()
        restored.rollbacks = state.rollbacks + 1
        restored.excluded_steps = (*state.excluded_steps, error.step)
        for callback in self.callbacks:
            callback.on_rollback(restored, state.step)
        return restored


def _remedy(last_checkpoint: str | None) -> str:
    kept = f"the last checkpoint, {last_checkpoint}, is as it was" if last_checkpoint else "no checkpoint was saved yet"
    return f"{kept}; lower optim.lr, look at the data of that step, or set train.non_finite to skip or rollback"
