"""Open-loop evaluation: the documented losses and errors on recorded demonstrations."""

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator

from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch


@torch.inference_mode()
def evaluate_open_loop(
    policy: VlaPolicy,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    before_batch: Callable[[], None] = lambda: None,
) -> MetricStates:
    """The metric states over ``batches``, from which `policy.metric_values` computes the documented means.

    The policy is in evaluation mode meanwhile (no dropout) and returns to the mode it was in; no
    random number is drawn, so a training goes on as if it had not been interrupted.

    Args:
        before_batch: called before each batch; it may raise to give up.
    """
    was_training = policy.training
    policy.eval()
    try:
        states = MetricStates()
        for batch in batches:
            before_batch()
            with accelerator.autocast():
                states = states + policy(batch.to(accelerator.device)).states
    finally:
        policy.train(was_training)
    return states
