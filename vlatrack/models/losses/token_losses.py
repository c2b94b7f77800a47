"""Cross-entropy, squared log-sum-exp and argmax of an output layer, without keeping the logits.

A vocabulary has tens of thousands of columns: materialising the logits, and reading them again for each loss and its
gradient, takes longer than the decoder of a small model, and gigabytes for a large one. Here a few rows are computed at
a time, while they fit in the cache, and the backward pass recomputes them.

Legend: V positions, D width, K vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LOGITS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 27}
_as_on: ContextVar[str | None] = ContextVar("_as_on", default=None)


@contextmanager
def logits_at_once_as_on(device_type: str) -> Iterator[None]:
    """Compute as many logits at a time as on another type of device, so that its need of memory can be predicted."""
    token = _as_on.set(device_type)
    try:
        yield
    finally:
        _as_on.reset(token)


@dataclass(frozen=True)
class TokenLosses:
    """Values per position; the first two are differentiable."""

    nll: Tensor  # float32 [V], -log p(target), nats
    logsumexp: Tensor  # float32 [V], of the logits
    predicted: Tensor  # int64 [V], argmax of the logits


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> TokenLosses:
    """The losses of predicting ``targets`` from ``hidden`` with the output layer ``weight``.

    Args:
        hidden: [V, D].
        weight: [K, D].
        targets: int64 [V].
    """
    return TokenLosses(*_Losses.apply(hidden, weight, targets))  # type: ignore[no-untyped-call]


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _compute_dtype(hidden)
        inputs, layer = hidden.to(dtype), weight.to(dtype)
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        logsumexp, predicted = torch.empty_like(nll), torch.empty_like(targets)
        for rows in _chunks(len(targets), len(weight), hidden.device):
            logits = (inputs[rows] @ layer.t()).float()
            logsumexp[rows] = logits.logsumexp(dim=1)
            nll[rows] = logsumexp[rows] - logits.gather(1, targets[rows, None]).squeeze(1)
            predicted[rows] = logits.argmax(dim=1)
        ctx.save_for_backward(inputs, layer, targets, logsumexp)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(predicted)
        return nll, logsumexp, predicted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs, layer, targets, logsumexp = ctx.saved_tensors
        d_nll, d_logsumexp, _ = gradients
        # In half precision every chunk would round the sum of those before it, so the sum is kept in float32.
        accumulate_dtype = torch.promote_types(layer.dtype, torch.float32)
        d_hidden, d_weight = torch.empty_like(inputs), torch.zeros_like(layer, dtype=accumulate_dtype)
        for rows in _chunks(len(targets), len(layer), inputs.device):
            # d logsumexp = softmax; d nll = softmax - onehot(target).
            d_logits = (inputs[rows] @ layer.t()).float().sub_(logsumexp[rows, None]).exp_()
            d_logits.mul_((d_nll[rows] + d_logsumexp[rows])[:, None])
            d_logits.scatter_add_(1, targets[rows, None], -d_nll[rows, None])
            d_logits = d_logits.to(layer.dtype)
            d_hidden[rows] = d_logits @ layer
            d_weight.addmm_(d_logits.t().to(accumulate_dtype), inputs[rows].to(accumulate_dtype))
        return d_hidden.to(ctx.dtypes[0]), d_weight.to(ctx.dtypes[1]), None


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that autocast would choose for a matrix product."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _chunks(positions: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    size = max(1, _LOGITS_AT_ONCE.get(_as_on.get() or device.type, 1 << 24) // vocabulary)
    return (slice(start, start + size) for start in range(0, positions, size))
