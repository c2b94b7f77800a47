"""The base class of loss terms: a name, a weight, a total over the batch, and the count that divides it.

Legend: B rows, S positions, V supervised positions, R rows with an action chunk, H steps, A numbers of an action,
D width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlatrack.errors import LossError
from vlatrack.metrics.losses import LossMetric
from vlatrack.tokens.batch import Batch


@dataclass(frozen=True)
class LossInputs:
    """The result of one forward pass, as loss terms and token metrics read it."""

    batch: Batch
    nll: Tensor  # float32 [V], -log p(target), nats
    logsumexp: Tensor  # float32 [V], of the logits
    predicted: Tensor  # int64 [V], the most probable id
    hidden: Tensor  # [B, S, D], the backbone's last hidden states
    actions: Tensor | None  # float32 [R, H, A], predicted by the ActionHead; None for a batch without action rows
    label_actions: Tensor | None  # float32 [R, H, A] in [-1, 1], decoded from the label tokens; None likewise


class LossTerm(ABC):
    """One term of the loss: weight * total / count, with both summed over the optimiser step and over all ranks.

    A subclass sets `metric` and implements `count` and `total`. Its mean is logged as `metric.name`, its part of the
    loss as `weighted_<name>`. It is constructed with the keyword arguments `weight` and its own options.
    """

    metric: ClassVar[LossMetric]
    shape: tuple[int, ...] = ()
    """The shape of what `total` returns: a scalar, unless its elements have metrics of their own, as in `loss_ct`."""

    def __init__(self, *, weight: float = 1.0) -> None:
        self.weight = weight

    @property
    def name(self) -> str:
        return self.metric.name

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """The number of values that `total` sums over, known on the host before any forward pass.

        The batch may be on the device, so read only its shapes and plain numbers. 0 leaves the batch out.
        """

    @abstractmethod
    def total(self, inputs: LossInputs) -> Tensor:
        """The differentiable sum over the batch; called only if `count` is above 0."""


def non_finite_terms(totals: Mapping[str, Tensor]) -> list[str]:
    """The loss terms whose total is NaN or infinite. Synchronises with the device."""
    return [name for name, total in totals.items() if not total.isfinite()]


def checked_count(term: LossTerm, batch: Batch) -> float:
    """`term.count(batch)`; 0 for an idle batch, which holds no sample whatever the term counts.

    Raises:
        LossError: it is not a finite number, 0 or more.
    """
    if batch.is_idle:
        return 0.0
    count = term.count(batch)
    if not isinstance(count, int | float) or not 0 <= count < math.inf:
        raise LossError(f"loss term {term.name}: count() returned {count!r}; expected a finite number, 0 or more")
    return count


def checked_total(term: LossTerm, inputs: LossInputs) -> Tensor:
    """`term.total(inputs)`.

    Raises:
        LossError: it is not a tensor of the term's shape, or it has no gradient.
    """
    total = term.total(inputs)
    if not isinstance(total, Tensor):
        raise LossError(f"loss term {term.name}: total() returned {type(total).__name__}; expected a scalar tensor")
    if total.shape != term.shape:
        raise LossError(
            f"loss term {term.name}: total() returned a tensor of shape {list(total.shape)}; "
            f"expected {'a scalar' if term.shape == () else list(term.shape)}, the sum over the batch"
        )
    if term.weight > 0 and inputs.nll.requires_grad and not total.requires_grad:
        raise LossError(
            f"loss term {term.name}: total() does not depend on what the policy computes, so it trains nothing; "
            "use the inputs without detach() or no_grad(), or set its weight to 0 to log it only"
        )
    return total
