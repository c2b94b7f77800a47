"""The states of the token metrics: errors and hits of the most probable ids.

Legend: V supervised positions, R rows with an action chunk, H steps, A numbers of an action.
"""

import torch
from torch import Tensor

from vlatrack.metrics.states import MetricStates
from vlatrack.metrics.world_model import CODE_HITS, CODE_NLL
from vlatrack.models.losses.base import LossInputs
from vlatrack.tokens.batch import IMAGE_SLOTS
from vlatrack.tokens.bins import decode_ids
from vlatrack.tokens.layout import TokenLayout


def token_metric_states(inputs: LossInputs, layout: TokenLayout, centres: Tensor) -> MetricStates:
    """The states of `acc_image`, `l1_loss_action`, `acc_action` and `quantisation_floor`, as far as the batch has them.

    The argmax of logits that are not finite is still a plausible id, so metrics are NaN there.

    Args:
        centres: float32 [bins - 1], the bin centres, on the device.
    """
    is_finite = inputs.logsumexp.isfinite()
    hits = torch.where(is_finite, (inputs.predicted == inputs.batch.targets).to(centres.dtype), torch.nan)
    states: dict[str, tuple[Tensor, Tensor | float]] = {}
    batch = inputs.batch
    if len(batch.image_index):
        slots = centres.new_zeros(IMAGE_SLOTS)
        image_hits = hits[batch.image_index]
        tokens = slots.index_add(0, batch.image_slot, torch.ones_like(image_hits))
        states["acc_image"] = slots.index_add(0, batch.image_slot, image_hits), tokens
    if inputs.label_actions is not None:
        index, rows = batch.action_index, float(len(batch.action_rows))
        guess = decode_ids(inputs.predicted[index], centres, start=layout.action_start)
        error = torch.where(is_finite[index], (guess - inputs.label_actions).abs(), torch.nan)
        states["l1_loss_action"] = error.sum(0), rows
        states["acc_action"] = hits[index].sum(0), rows
        if batch.actions is not None:
            states["quantisation_floor"] = (inputs.label_actions - batch.actions).abs().sum(0), rows
    return MetricStates.of(states)


def image_code_states(inputs: LossInputs, layout: TokenLayout) -> MetricStates:
    """The states of `acc_image_codes` and `closs_image_codes`; both NaN where logits are not finite.

    Unlike `acc_image`, they leave out the sizes and row ends of images, which are the same in all of them.
    """
    index = inputs.batch.image_index
    targets, nll = inputs.batch.targets[index], inputs.nll[index].detach()
    is_code = (targets >= layout.first_image_code) & (targets < layout.first_image_code + layout.image_codes)
    hits = torch.where(nll.isfinite(), (inputs.predicted[index] == targets).to(nll.dtype), torch.nan)
    count = is_code.sum()
    return MetricStates.of(
        {
            CODE_HITS: (torch.where(is_code, hits, 0.0).double().sum(), count),
            CODE_NLL: (torch.where(is_code, nll, 0.0).double().sum(), count),
        }
    )
