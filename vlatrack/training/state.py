"""The progress of a training: what a checkpoint holds besides weights and optimiser."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vlatrack.metrics.states import MetricStates

_STATES = ("epoch_states", "window_states")


@dataclass
class TrainState:
    """Counters and metric states. A step is an optimiser step; the metric states are this rank's own."""

    epoch_states: MetricStates = field(default_factory=MetricStates)  # since the epoch began
    window_states: MetricStates = field(default_factory=MetricStates)  # since the last record
    step: int = 0
    epoch: int = 0  # epochs completed
    step_in_epoch: int = 0
    best_metric: str | None = None  # the metric that the next two are about
    best_value: float | None = None  # its best value so far
    best_step: int | None = None
    skipped_steps: int = 0  # not taken, because a loss or gradient was not finite
    rollbacks: int = 0  # returns to a checkpoint for that reason
    stopped_early: bool = False  # by train.early_stopping
    excluded_steps: tuple[int, ...] = ()  # the steps (from 1) whose batches a rollback leaves out

    def add_step(self, states: MetricStates) -> None:
        """Count one optimiser step and add its metric states."""
        self.epoch_states, self.window_states = self.epoch_states + states, self.window_states + states
        self.count_step()

    def count_step(self) -> None:
        """Count one optimiser step without states, because its batch was left out."""
        self.step += 1
        self.step_in_epoch += 1

    def take_window(self) -> MetricStates:
        """The states since the last record; the next window starts empty."""
        states, self.window_states = self.window_states, MetricStates()
        return states

    def finish_epoch(self) -> MetricStates:
        """The epoch's states; the next epoch starts."""
        states, self.epoch_states = self.epoch_states, MetricStates()
        self.epoch += 1
        self.step_in_epoch = 0
        return states

    # --- for checkpoints --------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _STATES}

    @classmethod
    def restored(cls, counters: Mapping[str, Any], epoch: MetricStates, window: MetricStates) -> Self:
        """The inverse of ``counters``; a counter that an earlier version did not write has its initial value."""
        known = {f.name: counters[f.name] for f in fields(cls) if f.name in counters}
        if "excluded_steps" in known:
            known["excluded_steps"] = tuple(known["excluded_steps"])
        return cls(epoch, window, **known)


@dataclass(frozen=True)
class RandomState:
    """The random generators that dropout draws from: the CPU's, and that of this rank's GPU."""

    cpu: Tensor
    cuda: list[Tensor] = field(default_factory=list)

    @classmethod
    def capture(cls) -> Self:
        return cls(torch.get_rng_state(), [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda[0])


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seed this rank's generators for dropout from the experiment's seed, the rank and the step."""
    (mixed,) = np.random.SeedSequence([seed, rank, step]).generate_state(1)
    torch.manual_seed(int(mixed))
