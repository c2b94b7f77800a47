"""One optimiser step over micro batches."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.distributed import total_norm
from vlatrack.training.forensics import ModuleNorm, module_norms
from vlatrack.training.optimizers import prepare_step
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.throughput import Phase


@dataclass(frozen=True)
class StepResult:
    """The result of one optimiser step, as tensors on the device."""

    states: MetricStates  # of this rank's samples; zero if the step was not taken
    loss: Tensor  # [] this rank's part of the loss
    loss_totals: Mapping[str, Tensor]  # [] each; this rank's total of each loss term
    grad_norm: Tensor  # [] over all ranks, before clipping
    finite: Tensor  # bool []; false: the step was not taken
    gradients: Mapping[str, ModuleNorm] | None = None
    """By module, before clipping, of a step that was not taken; None if they were not examined."""


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
    step: int = 0,
    examines: bool = False,
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
        step: the number of steps before this one; stochastic rounding draws other numbers in each.
        examines: measure the gradients if the step is not taken; this waits for the device.
        enter: called when a phase of the step begins.
    """
    prepare_step(optimizer, lr=lr, step=step)
    states, total = MetricStates(), torch.zeros((), device=accelerator.device)
    buffers = [(buffer, buffer.clone()) for buffer in policy.buffers() if buffer.is_floating_point()]
    loss_totals: dict[str, Tensor] = {}
    for batch in micro_batches:
        enter("forward")
        with accelerator.autocast():
            output = policy(batch.to(accelerator.device), before_metrics=partial(enter, "metrics"))
        enter("forward")
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
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}
    norm = total_norm([*gradients.values()])  # on the host, as they are, if the parameters are offloaded
    norm = norm + not_finite.to(norm.device)
    norms = module_norms(gradients.items()) if examines and not norm.isfinite() else None
    clip_grads_with_norm_(policy.parameters(), clip_grad if clip_grad is not None else math.inf, norm)
    finite = norm.isfinite()
    # The optimisers read found_inf on the device, as for GradScaler: 1 leaves weights and moments unchanged.
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    norm, finite = norm.to(total.device), finite.to(total.device)
    for buffer, before in buffers:  # such as the running means of a backbone's batch norm
        buffer.copy_(torch.where(finite, buffer, before))
    enter("metrics")
    return StepResult(states.where(finite), total, loss_totals, norm, finite, norms)
