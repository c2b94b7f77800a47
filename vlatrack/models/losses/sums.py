"""The documented losses as sums over a batch, and the means they stand for.

Sums are additive: the value over many batches, or over ranks, is the value on their
concatenation. Only ``documented_losses`` turns sums into losses, for the gradient of one step as
for the mean of an epoch, so no loss is ever defined twice.

Legend: V supervised positions, R rows with an action chunk, H steps, A numbers of an action.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from vlatrack.models.losses.token_losses import TokenLosses
from vlatrack.tokens.batch import IMAGE_SLOTS, Batch
from vlatrack.tokens.bins import decode_ids
from vlatrack.tokens.layout import TokenLayout


@dataclass(frozen=True)
class LossWeights:
    """loss = closs + loss_ct_weights * loss_ct + z_loss_weight * z_loss."""

    loss_ct_weights: float = 10.0
    z_loss_weight: float = 1e-5
    image_token_weight: float | None = None


_CHUNK_SUMS = ("head_error", "token_error", "token_hits", "floor_error")


@dataclass(frozen=True)
class LossSums:
    """Everything a batch contributes to the documented numbers; float64 or float32 tensors on one device."""

    tokens: Tensor  # [] number of supervised positions
    token_weight: Tensor  # [] sum of their class weights
    cross_entropy: Tensor  # [] weighted sum, nats
    z: Tensor  # [] sum of logsumexp(logits)², nats²
    action_rows: Tensor  # [] R
    head_error: Tensor  # [H, A] sum over rows of |head - target|
    token_error: Tensor  # [H, A] sum over rows of |decode(argmax) - decode(label)|
    token_hits: Tensor  # [H, A] rows whose argmax is the label
    floor_error: Tensor  # [H, A] sum over rows of |decode(label) - action before binning|
    floor_rows: Tensor  # [] rows whose actions before binning are known
    image_tokens: Tensor  # [IMAGE_SLOTS]
    image_hits: Tensor  # [IMAGE_SLOTS]

    @classmethod
    def zeros(cls, horizon: int, action_dim: int, device: torch.device | str = "cpu") -> Self:
        """An empty window, in double precision."""
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_CHUNK_SUMS, (horizon, action_dim))
        shapes |= dict.fromkeys(("image_tokens", "image_hits"), (IMAGE_SLOTS,))
        return cls(
            **{f.name: torch.zeros(shapes.get(f.name, ()), dtype=torch.float64, device=device) for f in fields(cls)}
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def detached(self) -> Self:
        """In double precision and without gradients, so that long windows add up exactly enough."""
        return type(self)(**{f.name: getattr(self, f.name).detach().double() for f in fields(self)})

    def cpu(self) -> Self:
        return type(self)(**{f.name: getattr(self, f.name).cpu() for f in fields(self)})


@dataclass(frozen=True)
class Denominators:
    """What the sums are divided by; over a whole optimiser step, so that accumulation is exact.

    Counts add up, over ranks too.
    """

    tokens: float
    token_weight: float
    action_numbers: float  # R * H * A

    @classmethod
    def of(cls, batches: Sequence[Batch], image_token_weight: float | None) -> Self:
        """Known on the host before any forward pass: nothing waits for the device."""
        tokens = sum(len(batch.targets) for batch in batches)
        extra = 0.0 if image_token_weight is None else image_token_weight - 1.0
        weight = tokens + extra * sum(batch.weighted_targets for batch in batches)
        numbers = sum(batch.action_index.numel() for batch in batches)
        return cls(tokens, weight, numbers)


@dataclass(frozen=True)
class Losses:
    """The four documented losses, each a scalar tensor."""

    closs: Tensor
    z_loss: Tensor
    loss_ct: Tensor
    loss: Tensor


def documented_losses(sums: LossSums, weights: LossWeights, denominators: Denominators | None = None) -> Losses:
    """Means and the total of ``sums``, over their own counts unless ``denominators`` says otherwise.

    A quantity that nothing contributed to is 0: loss_ct without action rows, z_loss when its weight is 0.
    """
    tokens: Tensor | float
    token_weight: Tensor | float
    numbers: Tensor | float
    if denominators is None:
        tokens, token_weight = _at_least_one(sums.tokens), _nonzero(sums.token_weight)
        numbers = _at_least_one(sums.action_rows) * sums.head_error.numel()
    else:
        tokens, token_weight = max(denominators.tokens, 1), denominators.token_weight or 1.0
        numbers = max(denominators.action_numbers, 1)
    closs = sums.cross_entropy / token_weight
    z_loss = sums.z / tokens
    loss_ct = sums.head_error.sum() / numbers
    total = closs + weights.loss_ct_weights * loss_ct + weights.z_loss_weight * z_loss
    return Losses(closs, z_loss, loss_ct, total)


def _at_least_one(count: Tensor) -> Tensor:
    return count.clamp(min=1)


def _nonzero(count: Tensor) -> Tensor:
    return torch.where(count > 0, count, torch.ones_like(count))


def token_sums(
    losses: TokenLosses,
    batch: Batch,
    *,
    weights: LossWeights,
    layout: TokenLayout,
    centres: Tensor,
    chunk: tuple[int, int],
) -> dict[str, Tensor]:
    """The token half of ``LossSums``.

    Args:
        losses: at the supervised positions.
        centres: bin centres on the device.
        chunk: H and A of the policy; a batch without action rows has none of its own.
    """
    entropy, targets = losses.entropy, batch.targets
    weight = _class_weights(targets, weights.image_token_weight, layout, entropy.dtype)
    hits = losses.predicted == targets
    sums = {
        "tokens": entropy.new_full((), len(targets)),
        "token_weight": weight.sum(),
        "cross_entropy": (entropy * weight).sum(),
        "z": losses.normaliser.square().sum() if weights.z_loss_weight > 0 else entropy.new_zeros(()),
        **_image_sums(hits, batch, entropy.dtype),
    }
    return sums | _action_sums(losses.predicted, hits, batch, layout, centres, chunk)


def _class_weights(targets: Tensor, image_weight: float | None, layout: TokenLayout, dtype: torch.dtype) -> Tensor:
    weight = torch.ones(targets.shape, dtype=dtype, device=targets.device)
    if image_weight is None:
        return weight
    weighted = (targets >= layout.weighted_first) & (targets <= layout.weighted_last)
    return torch.where(weighted, image_weight, weight)


def _image_sums(hits: Tensor, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    tokens = torch.zeros(IMAGE_SLOTS, dtype=dtype, device=hits.device)
    hit = hits[batch.image_index].to(dtype)
    return {
        "image_tokens": tokens.index_add(0, batch.image_slot, torch.ones_like(hit)),
        "image_hits": tokens.index_add(0, batch.image_slot, hit),
    }


def _action_sums(
    predicted: Tensor, hits: Tensor, batch: Batch, layout: TokenLayout, centres: Tensor, chunk: tuple[int, int]
) -> dict[str, Tensor]:
    index, rows = batch.action_index, batch.action_index.shape[0]
    nothing = centres.new_zeros(chunk)
    sums = {"token_error": nothing, "token_hits": nothing, "floor_error": nothing, "floor_rows": nothing.sum()}
    if rows == 0:
        return sums
    decoded = label_actions(batch, layout, centres)
    guess = decode_ids(predicted[index], centres, start=layout.action_start)
    sums["token_error"] = (guess - decoded).abs().sum(0)
    sums["token_hits"] = hits[index].to(centres.dtype).sum(0)
    if batch.actions is not None:
        sums["floor_error"] = (decoded - batch.actions).abs().sum(0)
        sums["floor_rows"] = centres.new_full((), rows)
    return sums


def label_actions(batch: Batch, layout: TokenLayout, centres: Tensor) -> Tensor:
    """The actions that the label tokens stand for, [R, H, A] in [-1, 1]."""
    decoded: Tensor = decode_ids(batch.targets[batch.action_index], centres, start=layout.action_start)
    return decoded
