"""Open-loop evaluation: the documented losses and errors on recorded demonstrations."""

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator

from vlatrack.metrics.states import MetricStates
from vlatrack.metrics.world_model import CODE_HITS, CODE_NLL
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch


@torch.no_grad()  # not inference_mode: what a backbone caches here must serve training, too
def evaluate_open_loop(
    policy: VlaPolicy,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    before_batch: Callable[[], None] = lambda: None,
) -> MetricStates:
    """The metric states over ``batches``, from which `policy.metric_values` computes the metrics.

    The policy is evaluated without dropout and then returns to the mode it was in. No random numbers are drawn, so a
    training continues as if there had been no evaluation.

    Args:
        before_batch: called before each batch; it may raise to stop the evaluation.
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


def image_states(states: MetricStates) -> MetricStates:
    """Those of predicted images: the losses of world-model samples do not belong to those of action chunks."""
    return MetricStates({name: states[name] for name in ("acc_image", CODE_HITS, CODE_NLL) if name in states})
