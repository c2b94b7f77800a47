"""AdamW, its learning-rate schedule, and one optimiser step over micro batches."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.distributed import total_norm
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.throughput import Phase


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
    """AdamW with weight decay on every parameter, as in the reference."""
    return torch.optim.AdamW(policy.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


@dataclass(frozen=True)
class StepResult:
    """The result of one optimiser step, as tensors on the device."""

    states: MetricStates  # of this rank's samples; zero if the step was not taken
    loss: Tensor  # [] this rank's part of the loss
    loss_totals: Mapping[str, Tensor]  # [] each; this rank's total of each loss term
    grad_norm: Tensor  # [] over all ranks, before clipping
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
    trains_head: bool,
    enter: Callable[[Phase], None] = lambda phase: None,
) -> StepResult:
    """One optimiser step; the gradient equals that of one batch with the samples of all ranks. All ranks call this.

    If the loss of any rank or the gradient norm is not finite, weights, buffers and optimiser stay unchanged. This is
    decided on the device, without a synchronisation.

    Args:
        micro_batches: this rank's samples, as many batches as on every other rank; those without samples are idle.
        counts: the divisor of each loss term's total, summed over all micro batches and ranks.
        clip_grad: largest gradient norm; None: no clipping.
        trains_head: whether any rank has rows with actions. If not, the ActionHead stays as it is, moments included.
        enter: called when a phase of the step begins.
    """
    for param_group in optimizer.param_groups:
        param_group["lr"] = lr
    states, total = MetricStates(), torch.zeros((), device=accelerator.device)
    buffers = [(buffer, buffer.clone()) for buffer in policy.buffers() if buffer.is_floating_point()]
    loss_totals: dict[str, Tensor] = {}
    for batch in micro_batches:
        enter("forward")
        with accelerator.autocast():
            output = policy(batch.to(accelerator.device))
        loss = policy.loss(output, counts)
        enter("backward")
        if loss.requires_grad:  # it need not where all that is trained is frozen
            accelerator.backward(loss)
        enter("metrics")
        states, total = states + output.states, total + loss.detach()
        loss_totals = {name: loss_totals.get(name, 0) + own.detach() for name, own in output.totals.items()}
    enter("exchange")
    # A loss may be infinite or NaN, on any rank, where its gradient is finite.
    not_finite = group.sum_on_device((total * 0).float())
    enter("optimiser")
    if not trains_head:
        for parameter in policy.action_head.parameters():
            parameter.grad = None
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    norm = total_norm(gradients) + not_finite
    clip_grads_with_norm_(policy.parameters(), clip_grad if clip_grad is not None else math.inf, norm)
    finite = norm.isfinite()
    # Fused AdamW reads found_inf on the device, as it does for GradScaler: 1 leaves weights and moments unchanged.
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for buffer, before in buffers:  # such as the running means of a backbone's batch norm
        buffer.copy_(torch.where(finite, buffer, before))
    enter("metrics")
    return StepResult(states.where(finite), total, loss_totals, norm, finite)
