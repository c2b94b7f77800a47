"""z_loss: the squared log-sum-exp of the logits, which keeps them from drifting (ST-MoE, arXiv:2202.08906)."""

from torch import Tensor

from vlatrack.metrics.losses import Z_LOSS
from vlatrack.models.losses.base import LossInputs, LossTerm
from vlatrack.tokens.batch import Batch


class ZLoss(LossTerm):
    """Mean over the supervised positions; with weight 0 it is not computed, and logged as 0."""

    metric = Z_LOSS

    def count(self, batch: Batch) -> float:
        return len(batch.targets) if self.weight > 0 else 0.0

    def total(self, inputs: LossInputs) -> Tensor:
        return inputs.logsumexp.square().sum()
