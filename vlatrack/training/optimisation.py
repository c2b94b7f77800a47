"""AdamW, its learning-rate schedule, and one optimiser step over a window of batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.ranks import Ranks


@dataclass(frozen=True)
class Schedule:
    """Learning rate over (fractional) epochs: linear warm-up, then cosine to ``min_lr`` or constant."""

    lr: float
    min_lr: float
    warmup_epochs: float
    epochs: float
    shape: Literal["cosine", "constant"]

    def at(self, epoch: float) -> float:
        """The learning rate at ``epoch`` (0 .. epochs)."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.shape == "constant":
            return self.lr
        progress = min(1.0, (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-12))
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(
    policy: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW over every parameter, with decay on all of them as the reference has it."""
    return torch.optim.AdamW(policy.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def optimise(
    policy: VlaPolicy,
    optimizer: torch.optim.Optimizer,
    window: Sequence[Batch],
    *,
    accelerator: Accelerator,
    ranks: Ranks,
    lr: float,
    clip_grad: float | None,
) -> tuple[MetricStates, Tensor]:
    """One optimiser step; its gradient is that of the window's rows of all ranks in a single batch.

    Returns:
        the metric states of this rank's window, and the gradient norm before clipping, a scalar still on the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    by_batch = [policy.loss_counts(batch) for batch in window]
    names = [term.name for term in policy.losses]
    totals = ranks.total([sum(counts[name] for counts in by_batch) for name in names])
    counts = dict(zip(names, totals, strict=True))
    states = MetricStates()
    for batch in window:
        with accelerator.autocast():
            output = policy(batch.to(accelerator.device))
        accelerator.backward(policy.loss(output, counts))
        states = states + output.states
    ranks.sum_gradients(policy.parameters())
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), clip_grad if clip_grad is not None else math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return states, norm
