"""How sure a policy is of its action tokens, and how often it is right then.

Legend: D width, N bins.
"""

import torch
from torch import Tensor

from vlatrack.metrics.declarations import CONFIDENCE_BUCKETS
from vlatrack.metrics.states import MetricStates


def calibration_states(hidden: Tensor, bins: Tensor, labels: Tensor) -> MetricStates:
    """The states of `ece_action`, by confidence in tenths: sums of confidences and of hits.

    The confidence is the largest probability among the bins, which the token route chooses from. Where logits are not
    finite, both are NaN.

    Args:
        hidden: [..., D], at the positions that predict the numbers of actions.
        bins: [N, D], the rows of the output layer that belong to the bins.
        labels: int64 [...], the right bin, from 0.
    """
    confidence, predicted = (hidden @ bins.to(hidden.dtype).T).float().softmax(-1).flatten(0, -2).max(-1)
    confidence = confidence.double()  # sums of many
    hits = torch.where(confidence.isfinite(), (predicted == labels.flatten()).to(confidence.dtype), torch.nan)
    bucket = (confidence.nan_to_num() * CONFIDENCE_BUCKETS).long().clamp(max=CONFIDENCE_BUCKETS - 1)
    zeros = confidence.new_zeros(CONFIDENCE_BUCKETS)
    count = zeros.index_add(0, bucket, torch.ones_like(confidence))
    return MetricStates.of(
        {
            "action_confidence": (zeros.index_add(0, bucket, confidence), count),
            "action_hits": (zeros.index_add(0, bucket, hits), count),
        }
    )
