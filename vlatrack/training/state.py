"""Where a training stands: all that a checkpoint must hold besides weights and optimiser."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vlatrack.metrics.states import MetricStates, states_from_v1


@dataclass
class TrainState:
    """Counters and running sums. A step is an optimiser step. The sums are those of this rank alone."""

    epoch_sums: MetricStates  # since the epoch began
    window_sums: MetricStates  # since the last record
    step: int = 0
    epoch: int = 0  # epochs completed
    step_in_epoch: int = 0
    best_value: float | None = None  # lowest value so far of the metric that decides
    best_step: int | None = None

    @classmethod
    def fresh(cls) -> Self:
        return cls(epoch_sums=MetricStates(), window_sums=MetricStates())

    def add(self, sums: MetricStates) -> None:
        """Count one optimiser step."""
        self.epoch_sums, self.window_sums = self.epoch_sums + sums, self.window_sums + sums
        self.step += 1
        self.step_in_epoch += 1

    def take_window(self) -> MetricStates:
        """The sums since the last record; the next window starts empty."""
        sums, self.window_sums = self.window_sums, MetricStates()
        return sums

    def finish_epoch(self) -> MetricStates:
        """The epoch's sums; the next epoch starts."""
        sums, self.epoch_sums = self.epoch_sums, MetricStates()
        self.epoch += 1
        self.step_in_epoch = 0
        return sums

    def without_sums(self) -> Self:
        """The same place in the training, with nothing summed up."""
        return replace(self, epoch_sums=MetricStates(), window_sums=MetricStates())

    # --- for checkpoints --------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.endswith("_sums")}

    def sums(self) -> dict[str, dict[str, Tensor]]:
        return {"epoch_sums": self.epoch_sums.state_dict(), "window_sums": self.window_sums.state_dict()}

    @classmethod
    def restored(cls, counters: dict[str, Any], sums: dict[str, dict[str, Tensor]], device: torch.device | str) -> Self:
        """The inverse of ``counters`` and ``sums``."""
        epoch, window = (
            (states_from_v1 if "cross_entropy" in sums[name] else MetricStates.from_state_dict)(sums[name]).to(device)
            for name in ("epoch_sums", "window_sums")
        )
        return cls(epoch, window, **counters)


@dataclass(frozen=True)
class RandomState:
    """The generators that dropout draws from; of the GPUs, the one that this process computes on."""

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
    """Start this rank's generators, which dropout draws from, at what depends on these numbers alone."""
    (mixed,) = np.random.SeedSequence([seed, rank, step]).generate_state(1)
    torch.manual_seed(int(mixed))
