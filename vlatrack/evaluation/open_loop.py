"""Open-loop evaluation: the documented losses and errors on recorded demonstrations."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator

from vlatrack.models.losses.sums import LossSums
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch


@torch.inference_mode()
def evaluate_open_loop(policy: VlaPolicy, batches: Iterable[Batch], accelerator: Accelerator) -> LossSums:
    """The sums over ``batches``, which the documented means are made of.

    The policy is in evaluation mode meanwhile (no dropout) and returns to the mode it was in; no
    random number is drawn, so a training goes on as if it had not been interrupted.
    """
    was_training = policy.training
    policy.eval()
    head = policy.action_head
    sums = LossSums.zeros(head.time_horizon, head.action_dim, accelerator.device)
    for batch in batches:
        with accelerator.autocast():
            sums = sums + policy(batch.to(accelerator.device)).sums.detached()
    policy.train(was_training)
    return sums
