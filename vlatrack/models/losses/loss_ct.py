"""loss_ct: the L1 error of the ActionHead's chunk."""

from typing import Literal

from torch import Tensor

from vlatrack.metrics.losses import LOSS_CT
from vlatrack.models.losses.base import LossInputs, LossTerm
from vlatrack.tokens.batch import Batch

CtTarget = Literal["tokens", "raw"]


class ContinuousL1(LossTerm):
    """Mean over rows with action labels, steps and dimensions. The total [H, A] sums over rows only.

    The target is decoded from the label tokens, or with `target="raw"` the actions before binning.
    """

    metric = LOSS_CT

    def __init__(self, chunk: tuple[int, int], *, weight: float = 10.0, target: CtTarget = "tokens") -> None:
        super().__init__(weight=weight)
        self.shape, self._target = chunk, target

    def count(self, batch: Batch) -> float:
        return batch.action_index.numel()

    def total(self, inputs: LossInputs) -> Tensor:
        target = inputs.batch.actions if self._target == "raw" else inputs.label_actions
        assert inputs.actions is not None, "count is 0 without action rows"
        assert target is not None, "ct_target: raw needs the actions before binning in the batch"
        return (inputs.actions - target).abs().sum(0)
