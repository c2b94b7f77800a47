"""The training loop."""

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from vlatrack.data.loading import epoch_order, load_batches
from vlatrack.data.samples import SampleSet
from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.optimisation import Schedule, optimise
from vlatrack.training.ranks import Ranks, Rule
from vlatrack.training.state import TrainState


class Observer(Protocol):
    """What the loop tells the outside; it waits for each call to return."""

    def on_step(self, state: TrainState) -> None: ...

    def on_record(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Means since the last record, by schema name without the split's prefix."""
        ...

    def on_epoch(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Means of the epoch that just ended; ``state.epoch`` counts it already."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """Plain settings of the loop (field meanings as in the experiment's YAML)."""

    epochs: int
    max_steps: int | None
    batch_size: int
    accumulate: int
    clip_grad: float | None
    log_every: int
    seed: int
    workers: int


@dataclass
class Training:
    """Everything a training is made of."""

    policy: VlaPolicy
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    samples: SampleSet
    settings: LoopSettings
    accelerator: Accelerator
    ranks: Ranks

    @property
    def steps_per_epoch(self) -> int:
        batches = -(-len(self.samples) // self.settings.batch_size)
        return -(-batches // self.settings.accumulate)

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.settings.epochs
        return steps if self.settings.max_steps is None else min(steps, self.settings.max_steps)

    def run(self, state: TrainState, observer: Observer) -> None:
        """Train from where ``state`` stands to the end of the last epoch or to ``max_steps``."""
        settings, clock = self.settings, WindowClock(self.accelerator.device)
        while not self._is_complete(state):
            self.policy.train()
            for window in clock.waiting_for(self._windows(state)):
                lr = self.schedule.at(state.step / self.steps_per_epoch)
                sums, grad_norm = optimise(
                    self.policy,
                    self.optimizer,
                    window,
                    accelerator=self.accelerator,
                    ranks=self.ranks,
                    lr=lr,
                    clip_grad=settings.clip_grad,
                )
                state.add(sums)
                clock.count(window)
                if state.step % settings.log_every == 0:
                    observer.on_record(state, self._record(state.take_window(), grad_norm, lr, clock))
                observer.on_step(state)
                if state.step == self.total_steps:
                    break
            observer.on_epoch(state, self._means(state.finish_epoch()))
            clock.restart()

    def _is_complete(self, state: TrainState) -> bool:
        """The last step alone is not the end: its epoch must have been closed, also after a resume."""
        return state.step >= self.total_steps and state.step_in_epoch == 0

    def _windows(self, state: TrainState) -> Iterator[list[Batch]]:
        """This rank's share of the rest of the current epoch, in groups of ``accumulate`` batches.

        A group has fewer where a batch has no row for this rank.
        """
        settings = self.settings
        order = epoch_order(len(self.samples), batch_size=settings.batch_size, seed=settings.seed, epoch=state.epoch)[
            state.step_in_epoch * settings.accumulate :
        ]
        shares = [self.ranks.share(batch) for batch in order]
        mine = [rows for rows in shares if rows]
        on_gpu = self.accelerator.device.type == "cuda"
        batches = load_batches(self.samples, mine, self.policy.layout, workers=settings.workers, pin=on_gpu)
        for start in range(0, len(shares), settings.accumulate):
            group = shares[start : start + settings.accumulate]
            yield list(itertools.islice(batches, sum(len(rows) > 0 for rows in group)))

    def _record(self, sums: MetricStates, grad_norm: Tensor, lr: float, clock: "WindowClock") -> dict[str, float]:
        speeds = self.ranks.combine(clock.take(), SPEEDS)
        return self._means(sums) | {"grad_norm": grad_norm.item(), "lr": lr} | speeds

    def _means(self, sums: MetricStates) -> dict[str, float]:
        return self.policy.metric_values(self.ranks.total_sums(sums))


SPEEDS: Mapping[str, Rule] = {
    "samples_per_s": "sum",
    "tokens_per_s": "sum",
    "step_time_s": "max",
    "data_wait_s": "max",
    "memory_mb": "max",
}
"""What `WindowClock` measures, and how it is combined over ranks: of times and memory, the worst rank counts."""


class WindowClock:
    """Speed between two records: what was processed, how long it took, how much of that was waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
        self.restart()

    def restart(self) -> None:
        self._started = time.perf_counter()
        self._waited, self._steps, self._samples, self._tokens = 0.0, 0, 0, 0

    def waiting_for(self, windows: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The same windows; the time until each one is there counts as data wait."""
        while True:
            asked = time.perf_counter()
            window = next(windows, None)
            self._waited += time.perf_counter() - asked
            if window is None:
                return
            yield window

    def count(self, window: list[Batch]) -> None:
        self._steps += 1
        self._samples += sum(batch.rows for batch in window)
        self._tokens += sum(batch.input_ids.numel() for batch in window)

    def take(self) -> dict[str, float]:
        """The window's speeds; the next window starts."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        speeds = {
            "samples_per_s": self._samples / elapsed,
            "tokens_per_s": self._tokens / elapsed,
            "step_time_s": elapsed / max(self._steps, 1),
            "data_wait_s": self._waited / max(self._steps, 1),
            "memory_mb": self._memory() / 2**20,
        }
        self.restart()
        return speeds

    def _memory(self) -> float:
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        return float(self._process.memory_info().rss)
