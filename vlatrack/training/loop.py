"""The training loop: epochs of optimiser steps, with logging, evaluation, checkpoints and rollbacks."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from accelerate import Accelerator

from vlatrack.data.dealing import Rows, deal_rows
from vlatrack.data.loading import load_batches
from vlatrack.data.order import EpochOrders
from vlatrack.data.samples import Samples
from vlatrack.data.worker_watch import WorkerWatch
from vlatrack.errors import NonFiniteError
from vlatrack.metrics.declarations import lr_name
from vlatrack.metrics.schema import TRAIN, MetricSchema, split_and_name
from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.callback import Callback, EpochResults, SplitResult
from vlatrack.training.early_stopping import EarlyStopping
from vlatrack.training.ema import WeightAverage
from vlatrack.training.flops import step_flops
from vlatrack.training.forensics import Forensics, module_norms
from vlatrack.training.gradient_share import gradient_shares
from vlatrack.training.interruption import Interruption
from vlatrack.training.non_finite import NonFiniteGuard, RollbackError
from vlatrack.training.optimisation import StepResult, train_step
from vlatrack.training.out_of_memory import telling_out_of_memory
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.records import PendingRecord
from vlatrack.training.schedule import Schedule
from vlatrack.training.state import TrainState
from vlatrack.training.throughput import SPEEDS, Throughput


class Checkpoints(Protocol):
    """The checkpoints of a run, as the loop uses them. All ranks call these methods together."""

    def save(self, state: TrainState) -> None:
        """Begin to write a checkpoint of the training at ``state``; the training may go on meanwhile."""
        ...

    def poll(self) -> None:
        """Finish the checkpoint that is being written if its files are there, without waiting for them."""
        ...

    def wait(self) -> None:
        """Finish the checkpoint that is being written, if there is one."""
        ...

    @property
    def last_name(self) -> str | None:
        """The folder name of the last checkpoint; None if there is none yet."""
        ...

    def restore_last(self) -> TrainState:
        """Restore weights, optimiser and random generators from the last checkpoint; there must be one."""
        ...


class Evaluate(Protocol):
    def __call__(self, state: TrainState) -> EpochResults:
        """Results by split after an epoch; empty if no evaluation is due. All ranks call it together.

        Raises:
            EvaluationStopped: a signal asked for the end of the run.
        """
        ...


class EvaluationStopped(Exception):  # noqa: N818 (a request, not an error)
    """A signal asked for the end of the run, so the evaluation was abandoned: the grace period may be too short."""


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop; the fields mean what they mean in the experiment's YAML."""

    epochs: int
    max_steps: int | None
    micro_batch: int | None
    clip_grad: float | None
    log_every: int
    workers: int
    group_by_length: bool
    length_multiple: int
    non_finite: Literal["halt", "skip", "rollback"]
    max_rollbacks: int
    save_every_epochs: int
    save_every_steps: int | None
    best_metric: str
    gradient_share_every: int | None
    group_rates: Mapping[str, float] = field(default_factory=dict)
    """The learning rates of parameter groups as multiples of that of the others, by name."""


@dataclass
class Training:
    """A policy with everything that trains it."""

    policy: VlaPolicy
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    samples: Samples
    order: EpochOrders  # of the samples
    settings: LoopSettings
    accelerator: Accelerator
    group: ProcessGroup
    interruption: Interruption
    schema: MetricSchema
    callbacks: Sequence[Callback] = ()  # of the main process alone
    average: WeightAverage | None = None
    early_stopping: EarlyStopping | None = None
    peak_flops: float | None = None  # operations per second of the device, if known
    _pending: PendingRecord | None = field(default=None, init=False)

    @property
    def _logs_late(self) -> bool:
        """Whether metrics are read one step later: a GPU would have nothing to do while they are logged."""
        return self.accelerator.device.type == "cuda"

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.settings.epochs
        return steps if self.settings.max_steps is None else min(steps, self.settings.max_steps)

    def is_complete(self, state: TrainState) -> bool:
        """Whether the last step is done and its epoch finished; a resume may come between the two."""
        return state.stopped_early or (state.step >= self.total_steps and state.step_in_epoch == 0)

    def run(self, state: TrainState, checkpoints: Checkpoints, evaluate: Evaluate) -> TrainState:
        """Train from ``state`` to the end of the last epoch, or to ``max_steps``; returns the final state.

        Raises:
            NonFiniteError: a loss or gradient is not finite, and ``non_finite`` is ``halt``, or ``rollback`` has gone
                back ``max_rollbacks`` times.
            Terminated, KeyboardInterrupt: a signal asked for the end, and a checkpoint has been saved.
        """
        device = self.accelerator.device
        throughput = Throughput(device, flops_of=step_flops(self.policy), peak_flops=self.peak_flops)
        guard = NonFiniteGuard(device, self.settings.non_finite, self.callbacks, self._examine)
        while not self.is_complete(state):
            try:
                self._train_epoch(state, checkpoints, throughput, guard)
                self._finish_epoch(state, checkpoints, evaluate)
            except RollbackError as error:
                self._pending = None
                state = self._roll_back(error, state, checkpoints)
            except NonFiniteError as error:
                checkpoints.wait()
                raise NonFiniteError(f"{error}; {self._remedy(checkpoints.last_name)}") from None
            throughput.restart()
        checkpoints.wait()
        return state

    def _train_epoch(
        self, state: TrainState, checkpoints: Checkpoints, throughput: Throughput, guard: NonFiniteGuard
    ) -> None:
        """Take the remaining steps of the current epoch."""
        self.policy.train()
        self.interruption.deferred = True
        watch = WorkerWatch(self.settings.workers, self._describe_batch)
        with watch.explaining_deaths():
            self._take_steps(state, checkpoints, throughput, guard, watch)

    def _take_steps(
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        throughput: Throughput,
        guard: NonFiniteGuard,
        watch: WorkerWatch,
    ) -> None:
        for micro_batches in throughput.timed_data(self._micro_batches(state, watch)):
            if state.step + 1 in state.excluded_steps:
                state.count_step()
                save_requested = False
            else:
                save_requested = self._take_step(state, micro_batches, throughput, guard)
            throughput.watch.enter("tracking")
            for callback in self.callbacks:
                callback.on_step(state)
            checkpoints.poll()
            if save_requested or self._is_save_due(state):
                self._log_pending(state, throughput, guard)
                guard.check(state)
                with throughput.paused():
                    checkpoints.save(state)
                self._end_if_stopped(checkpoints)
        self._log_pending(state, throughput, guard)
        guard.check(state)

    def _take_step(
        self, state: TrainState, micro_batches: Sequence[Batch], throughput: Throughput, guard: NonFiniteGuard
    ) -> bool:
        """Take one step, and log it if it is due; returns whether a signal asks for a checkpoint after it."""
        lr = self.schedule.at(state.step / self.steps_per_epoch)
        throughput.watch.enter("exchange")
        counts, trains_head, save_requested = self._sum_counts_and_requests(micro_batches)
        largest = max(micro_batches, key=lambda batch: batch.input_ids.numel())
        with self.group.noticing_lost_ranks(), telling_out_of_memory(f"step {state.step + 1}", largest):
            throughput.watch.enter("metrics")
            shares = self._gradient_shares(state, micro_batches, counts)
            result = train_step(
                self.policy,
                self.optimizer,
                micro_batches,
                counts,
                accelerator=self.accelerator,
                group=self.group,
                lr=lr,
                clip_grad=self.settings.clip_grad,
                trains_head=trains_head,
                step=state.step,
                examines=not self._logs_late,  # else the GPU would be waited for in each step
                enter=throughput.watch.enter,
            )
        state.add_step(result.states)
        if self.average is not None:
            self.average.update(state.step, result.finite)
        guard.note(state, result)
        throughput.count(micro_batches)
        self._log_pending(state, throughput, guard)  # of an earlier step, while a GPU is busy with this one
        if shares:
            self._log(state, shares)
        if state.step % self.settings.log_every == 0 or state.step == self.total_steps:
            self._pending = PendingRecord.open(state, result, lr, throughput, guard)
            if not self._logs_late:
                self._log_pending(state, throughput, guard)
        return save_requested

    def _finish_epoch(self, state: TrainState, checkpoints: Checkpoints, evaluate: Evaluate) -> None:
        """Evaluate, report the epoch, and save a checkpoint if one is due."""
        settings, before = self.settings, copy(state)
        results = {TRAIN: self._reduce(state.finish_epoch())}
        try:
            results |= evaluate(state)
        except EvaluationStopped:
            checkpoints.save(before)  # a resumed run finishes this epoch again, with its evaluation
            self._end_if_stopped(checkpoints)
            raise
        except Exception:  # such as a GPU's memory that is too small for it: the epoch's steps are not lost
            if self.group.world_size == 1:  # several save together, and others may not have failed
                checkpoints.save(before)
                checkpoints.wait()
            raise
        is_best = self._update_best(state, results)
        every = settings.save_every_steps
        is_due = state.epoch % settings.save_every_epochs == 0 or (every is not None and state.step % every == 0)
        for callback in self.callbacks:  # before saving: a resume does not repeat the epoch of its checkpoint
            callback.on_epoch(state, results)
        state.stopped_early = self._stops_early(state)
        if self.is_complete(state) and before.step_in_epoch < self.steps_per_epoch:
            # max_steps ended the training inside the epoch, which an extended run completes.
            best = {name: getattr(state, name) for name in ("best_metric", "best_value", "best_step")}
            checkpoints.save(replace(before, **best))
        elif is_due or is_best or self.is_complete(state):
            checkpoints.save(state)
        self._end_if_stopped(checkpoints)

    def _stops_early(self, state: TrainState) -> bool:
        """Whether the training ends with this epoch, since a metric stands still. All ranks call this."""
        if self.early_stopping is None or self.is_complete(state):
            return False
        reason = self.early_stopping.reason_to_stop()
        (wanted,) = self.group.sum([float(reason is not None)])
        if reason is not None:
            for callback in self.callbacks:
                callback.on_early_stop(state, reason)
        return wanted > 0

    def _end_if_stopped(self, checkpoints: Checkpoints) -> None:
        if self.interruption.is_stopping:
            checkpoints.wait()
            self.interruption.raise_if_stopped()

    def _describe_batch(self, first: int) -> str:
        """A batch by its first sample."""
        told = self.samples.describe(first)
        return "a batch with " + ", ".join(f"{name} {value}" for name, value in told.items())

    def _micro_batches(self, state: TrainState, watch: WorkerWatch) -> Iterator[list[Batch]]:
        """This rank's micro batches of each remaining step of the epoch, as many as every other rank has of that step;
        those that it has no samples for are idle."""
        settings, group = self.settings, self.group
        left = max(0, self.total_steps - state.step)  # max_steps may end the training inside an epoch
        steps = self.order.of(state.epoch)[state.step_in_epoch :][:left]

        def deal(numbers: Rows) -> list[Rows]:
            return deal_rows(
                numbers,
                self.samples.lengths_of if settings.group_by_length else None,
                rank=group.rank,
                world_size=group.world_size,
                micro_batch=settings.micro_batch,
            )

        batches = load_batches(
            self.samples,
            itertools.chain.from_iterable(map(deal, steps)),
            workers=settings.workers,
            pin=self.accelerator.device.type == "cuda",
            length_multiple=settings.length_multiple,
            watch=watch,
        )
        for numbers in steps:
            yield list(itertools.islice(batches, len(deal(numbers))))

    def _sum_counts_and_requests(self, micro_batches: Sequence[Batch]) -> tuple[dict[str, float], bool, bool]:
        """The count of each loss term over all ranks, whether any rank has rows with actions, and whether any was asked
        for a checkpoint.

        All travel in one exchange, so that signals cost no exchange of their own.
        """
        names = [term.name for term in self.policy.losses]
        by_batch = [self.policy.loss_counts(batch) for batch in micro_batches]
        own = [sum(counts[name] for counts in by_batch) for name in names]
        own_rows = sum(len(batch.action_rows) for batch in micro_batches)
        *counts, rows, checkpoint, terminated, interrupted = self.group.sum(
            [*own, own_rows, *self.interruption.take_requests()]
        )
        save_requested = self.interruption.apply_requests([checkpoint, terminated, interrupted])
        return dict(zip(names, counts, strict=True)), rows > 0, save_requested

    def _gradient_shares(
        self, state: TrainState, micro_batches: Sequence[Batch], counts: Mapping[str, float]
    ) -> dict[str, float]:
        """Each loss term's share of the gradient, measured every few steps on the first micro batch of every rank."""
        every = self.settings.gradient_share_every
        if every is None or (state.step + 1) % every:
            return {}
        shares = gradient_shares(self.policy, micro_batches[0], counts, self.accelerator)
        return {f"{TRAIN}_{name}": value for name, value in shares.items()}

    def _log_pending(self, state: TrainState, throughput: Throughput, guard: NonFiniteGuard) -> None:
        """Log the record that waits for the device, if there is one. All ranks call this."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        with throughput.watch.within("metrics"):
            pending.check(guard, state)
            metrics = self._window_metrics(pending)
        with throughput.watch.within("tracking"):
            self._log(pending.state, metrics)

    def _window_metrics(self, pending: PendingRecord) -> dict[str, float]:
        """The training metrics of a window, by full name. All ranks call this."""
        state, means = pending.state, self._reduce(pending.states).metrics
        speeds = self.group.combine(pending.speeds(), SPEEDS)
        metrics = {f"{TRAIN}_{name}": value for name, value in {**means, **speeds}.items()}
        metrics |= {f"{TRAIN}_grad_norm": pending.grad_norm, f"{TRAIN}_lr": pending.lr}
        rates = self.settings.group_rates
        metrics |= {f"{TRAIN}_{lr_name(group)}": pending.lr * rate for group, rate in rates.items()}
        if state.skipped_steps:
            metrics[f"{TRAIN}_skipped_steps"] = float(state.skipped_steps)
        metrics["epoch"] = state.epoch + state.step_in_epoch / self.steps_per_epoch
        return metrics

    def _log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            callback.on_log(state, metrics)

    def _reduce(self, states: MetricStates) -> SplitResult:
        """Sum the states over all ranks, and compute the metrics from them."""
        summed = self.group.sum_states(states)
        return SplitResult(self.policy.metric_values(summed), summed)

    def _is_save_due(self, state: TrainState) -> bool:
        """Whether to save after a step inside an epoch; at its end `_finish_epoch` decides, so that it saves once."""
        every = self.settings.save_every_steps
        inside = state.step_in_epoch < self.steps_per_epoch and state.step < self.total_steps
        return inside and every is not None and state.step % every == 0

    def _examine(self, step: int, reason: str, result: StepResult | None) -> Forensics:
        """What is known of a step that was not taken, on this rank. Synchronises with the device."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        return Forensics(
            step=step,
            reason=reason,
            samples=[self.samples.describe(number) for number in self.order.of(epoch)[position].tolist()],
            loss=None if result is None else result.loss.item(),
            loss_terms=None if result is None else {name: t.item() for name, t in result.loss_totals.items()},
            gradients=None if result is None else result.gradients,
            parameters=module_norms(self.policy.named_parameters()),
        )

    def _update_best(self, state: TrainState, results: EpochResults) -> bool:
        """Keep the best value so far of ``best_metric`` in the state; returns whether this epoch has it."""
        metric = self.settings.best_metric
        if state.best_metric not in (None, metric):  # a resume may choose another metric
            state.best_value, state.best_step = None, None
        state.best_metric = metric
        split, name = split_and_name(metric)
        value = results[split].metrics.get(name) if split in results else None
        if value is None or not self.schema.is_better(metric, value, state.best_value):
            return False
        state.best_value, state.best_step = value, state.step
        return True

    def _roll_back(self, error: RollbackError, state: TrainState, checkpoints: Checkpoints) -> TrainState:
        """Restore the last checkpoint, and exclude the step that was not finite from then on."""
        if state.rollbacks >= self.settings.max_rollbacks:
            raise NonFiniteError(
                f"{error}, after {state.rollbacks} rollbacks; {self._remedy(checkpoints.last_name)}"
            ) from None
        restored = checkpoints.restore_last()
        restored.rollbacks, restored.skipped_steps = state.rollbacks + 1, state.skipped_steps
        restored.excluded_steps = (*state.excluded_steps, error.step)
        for callback in self.callbacks:
            callback.on_rollback(restored, state.step)
        return restored

    def _remedy(self, last_checkpoint: str | None) -> str:
        kept = (
            f"the last checkpoint, {last_checkpoint}, is as it was"
            if last_checkpoint
            else "no checkpoint was saved yet"
        )
        if self.settings.non_finite == "halt":
            return f"{kept}; lower optim.lr, look at the data of that step, or set train.non_finite to skip or rollback"
        return f"{kept}; lower optim.lr, or look at the data of that step"
