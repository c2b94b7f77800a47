"""Sums over any window of batches as the named numbers of the metric schema."""

from vlatrack.metrics.schema import step_slot
from vlatrack.models.losses.sums import LossSums, LossWeights, documented_losses


def measurements(sums: LossSums, weights: LossWeights) -> dict[str, float]:
    """The documented means of ``sums``, by name without the split's prefix.

    Reads the device once. A name whose count is 0 (action errors of a window without action rows,
    accuracies of image slots that never came up) is left out.
    """
    sums = sums.cpu()
    losses = documented_losses(sums, weights)
    named = {
        "closs": losses.closs.item(),
        "z_loss": losses.z_loss.item(),
        "loss_ct": losses.loss_ct.item(),
        "loss": losses.loss.item(),
        "weighted_loss_ct": weights.loss_ct_weights * losses.loss_ct.item(),
        "weighted_z_loss": weights.z_loss_weight * losses.z_loss.item(),
    }
    if sums.action_rows > 0:
        named |= _action_measurements(sums)
    if sums.floor_rows > 0:
        named["quantisation_floor"] = (sums.floor_error / sums.floor_rows).mean().item()
    for slot, (hits, tokens) in enumerate(zip(sums.image_hits.tolist(), sums.image_tokens.tolist(), strict=True)):
        if tokens:
            named[f"acc_image_{slot}"] = hits / tokens
    return named


def _action_measurements(sums: LossSums) -> dict[str, float]:
    token, head, hits = (total / sums.action_rows for total in (sums.token_error, sums.head_error, sums.token_hits))
    horizon, dims = token.shape
    named: dict[str, float] = {}
    for step in range(horizon):
        x = step_slot(step, horizon)
        named[f"l1_loss_action_{x}"] = token[step].mean().item()
        named[f"acc_action_{x}"] = hits[step].mean().item()
        named[f"l1_loss_head_{x}"] = head[step].mean().item()
    for dim in range(dims):
        named[f"l1_loss_dim_{dim}"] = token[:, dim].mean().item()
        named[f"l1_loss_head_dim_{dim}"] = head[:, dim].mean().item()
    return named | {"l1_loss_action": token.mean().item(), "acc_action": hits.mean().item()}
