"""Each loss term's share of the gradient."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator

from vlatrack.metrics.losses import gradient_share_name
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.distributed import total_norm


def gradient_shares(
    policy: VlaPolicy, batch: Batch, counts: Mapping[str, float], accelerator: Accelerator
) -> dict[str, float]:
    """The gradient norm of each weighted loss term divided by the sum of these norms.

    The gradients are those of one micro batch of each rank together; all ranks call this. Takes a forward and a
    backward pass for each term whose weight is above 0. It changes neither `.grad` nor the random generators, so the
    training stays bitwise the same.

    Args:
        counts: the divisors of the terms' totals, as for `policy.loss`.

    Returns:
        fractions in [0, 1] that add up to 1, by metric name without the split; all 0 if no term has a gradient, NaN if
        a gradient is not finite.
    """
    named = [term.name for term in policy.losses if term.weight > 0]
    norms = {name: _gradient_norm(policy, batch, counts, accelerator, name) for name in named if counts[name] > 0}
    total = sum(norms.values())
    return {gradient_share_name(name): norms.get(name, 0.0) / total if total else 0.0 for name in named}


def _gradient_norm(
    policy: VlaPolicy, batch: Batch, counts: Mapping[str, float], accelerator: Accelerator, term: str
) -> float:
    device, parameters = accelerator.device, list(policy.parameters())
    kept = [parameter.grad for parameter in parameters]
    policy.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), accelerator.autocast():
        output = policy(batch.to(device))
    loss = policy.weighted_terms(output, counts)[term]
    if loss.requires_grad:
        accelerator.backward(loss)
    norm = total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient
    return float(norm.double())
