"""The error of action tokens that are decoded freely, as when the policy acts.

The documented token errors take each number's most probable token after the *recorded* ones of its action. Here it is
that after the policy's own, and only ids of bins can be chosen.

Legend: H steps of a chunk, A numbers of an action.
"""

from collections.abc import Iterable

import torch
from accelerate import Accelerator

from vlatrack.inference.decoding import decode_blocks, prefill
from vlatrack.metrics.declarations import FREE
from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.tokens.bins import decode_ids


@torch.no_grad()
def evaluate_free_decoding(policy: VlaPolicy, batches: Iterable[Batch], accelerator: Accelerator) -> MetricStates:
    """The state of `l1_loss_free` [H, A] over the rows with action chunks; NaN where hidden states are not finite."""
    states = MetricStates()
    for batch in batches:
        if not len(batch.action_rows):
            continue
        ids = batch.input_ids[batch.action_rows].cpu().numpy()
        prompts = [row[:length] for row, length in zip(ids, batch.prompt_lengths.tolist(), strict=True)]
        with accelerator.autocast():
            prompted = prefill(policy, prompts, keep=True)
            decoded = decode_ids(decode_blocks(policy, prompted), policy.centres, start=policy.layout.action_start)
        error = (decoded - policy.label_actions(batch.to(accelerator.device))).abs()
        is_finite = prompted.hidden.isfinite().all(dim=2).all(dim=1)
        error = torch.where(is_finite[:, None, None], error, torch.nan)
        states = states + MetricStates.of({FREE: (error.double().sum(0), float(len(error)))})
    return states
