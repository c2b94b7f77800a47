"""AdamW, its learning-rate schedule, and one optimiser step over its micro batches."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.process_group import ProcessGroup


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


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step yields; the tensors are still on the device."""

    states: MetricStates  # of this process's samples; nothing for a step that was not taken
    loss: Tensor  # [] this process's share of the loss
    grad_norm: Tensor  # [] over all processes, before clipping
    finite: Tensor  # bool []; false: the step was not taken


def train_step(
    policy: VlaPolicy,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    counts: Mapping[str, float],
    *,
    accelerator: Accelerator,
    group: ProcessGroup,
    lr: float,
    clip_grad: float | None,
) -> StepResult:
    """One optimiser step; its gradient is that of the samples of all processes in a single batch.

    Where the loss of any process or the gradient norm is not finite, weights and optimiser stay as they are. That is
    decided on the device: nothing waits for it.

    Args:
        counts: what each loss term's total is divided by: over the whole step and all processes.
    """
    for parameters in optimizer.param_groups:
        parameters["lr"] = lr
    states, total = MetricStates(), torch.zeros((), device=accelerator.device)
    for batch in micro_batches:
        with accelerator.autocast():
            output = policy(batch.to(accelerator.device))
        loss = policy.loss(output, counts)
        accelerator.backward(loss)
        states, total = states + output.states, total + loss.detach()
    _mark_non_finite(policy.parameters(), total)
    group.all_reduce_gradients(policy.parameters())
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), clip_grad if clip_grad is not None else math.inf)
    finite = norm.isfinite()
    # The fused AdamW reads this on the device and leaves weights and moments alone where it is 1 (as for GradScaler).
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(states.where(finite), total, norm, finite)


def _mark_non_finite(parameters: Iterable[nn.Parameter], loss: Tensor) -> None:
    """Let a loss that is not finite reach the gradient norm of all processes, whatever its own gradient is."""
    gradient = next((parameter.grad for parameter in parameters if parameter.grad is not None), None)
    if gradient is not None:
        gradient[(0,) * gradient.ndim] += (loss * 0).to(gradient.dtype)
