"""Each loss term's share of the gradient."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator

from vlatrack.metrics.losses import gradient_share_name
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch


def gradient_shares(
    policy: VlaPolicy, batch: Batch, counts: Mapping[str, float], accelerator: Accelerator
) -> dict[str, float]:
    """The gradient norm of each weighted loss term divided by the sum of these norms.

    Takes one forward pass over one micro batch, and a backward pass for each term whose weight is above 0. It changes
    neither `.grad` nor the random generators, so the training stays bitwise the same.

    Args:
        counts: the divisors of the terms' totals, as for `policy.loss`.

    Returns:
        fractions in [0, 1] that add up to 1, by metric name without the split; all 0 if no term has a gradient, NaN if
        a gradient is not finite.
    """
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    device = accelerator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), accelerator.autocast():
        output = policy(batch.to(device))
    parts = policy.weighted_terms(output, counts)
    norms = {}
    for term in policy.losses:
        if term.weight > 0 and term.name in parts and parts[term.name].requires_grad:
            gradients = torch.autograd.grad(parts[term.name], parameters, retain_graph=True, allow_unused=True)
            norms[term.name] = torch.nn.utils.get_total_norm([g for g in gradients if g is not None]).double()
    total = sum(norms.values())
    shares = {name: float(norm / total) if total else 0.0 for name, norm in norms.items()}
    named = [term.name for term in policy.losses if term.weight > 0]
    return {gradient_share_name(name): shares.get(name, 0.0) for name in named}
