"""closs: the cross-entropy of the answer tokens."""

import torch
from torch import Tensor

from vlatrack.metrics.losses import CLOSS
from vlatrack.models.losses.base import LossInputs, LossTerm
from vlatrack.tokens.batch import Batch
from vlatrack.tokens.layout import TokenLayout


class CrossEntropy(LossTerm):
    """Mean over the supervised positions; with `image_token_weight` w a weighted mean, weight w on image ids."""

    metric = CLOSS

    def __init__(self, layout: TokenLayout, *, image_token_weight: float | None = None) -> None:
        super().__init__(weight=1.0)
        self._layout, self._image_weight = layout, image_token_weight

    def count(self, batch: Batch) -> float:
        extra = 0.0 if self._image_weight is None else self._image_weight - 1.0
        return len(batch.targets) + extra * batch.weighted_targets

    def total(self, inputs: LossInputs) -> Tensor:
        nll, targets = inputs.nll, inputs.batch.targets
        if self._image_weight is None:
            return nll.sum()
        is_image = (targets >= self._layout.weighted_first) & (targets <= self._layout.weighted_last)
        return (nll * torch.where(is_image, self._image_weight, torch.ones_like(nll))).sum()
