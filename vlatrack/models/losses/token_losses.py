"""Cross-entropy, log-sum-exp and argmax of an output layer, without all logits in memory at once.

A vocabulary has tens of thousands of columns: materialising the logits, and reading them again for each loss and its
gradient, takes longer than the decoder of a small model, and gigabytes for a large one. Here a few rows are computed at
a time, while they fit in the cache, and the backward pass recomputes them. In float32 on a CPU, where arithmetic is
dearer than memory, the softmax of a small batch is kept for it instead.

Legend: V positions, D width, K vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LOGITS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}
_KEPT_ON_CPU = 1 << 26  # probabilities, 256 MiB
_ARGMAX_BLOCK = 128
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
    kept = torch.is_grad_enabled() and _keeps_softmax(hidden, weight)
    function = _KeepingLosses if kept else _RecomputingLosses
    return TokenLosses(*function.apply(hidden, weight, targets))  # type: ignore[no-untyped-call]


class _RecomputingLosses(torch.autograd.Function):
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
            predicted[rows] = _argmax(logits)
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


class _KeepingLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        logsumexp, predicted, kept = torch.empty_like(nll), torch.empty_like(targets), []
        for rows in _chunks(len(targets), len(weight), hidden.device):
            logits = hidden[rows] @ weight.t()
            softmax = logits.softmax(dim=1)
            predicted[rows] = _argmax(logits)
            # The greatest probability is at least 1 / K, so its logarithm is as exact as that of the sum.
            greatest, probability = (of.gather(1, predicted[rows, None]).squeeze(1) for of in (logits, softmax))
            logsumexp[rows] = greatest - probability.log()
            nll[rows] = logsumexp[rows] - logits.gather(1, targets[rows, None]).squeeze(1)
            kept.append(softmax)
        ctx.save_for_backward(hidden, weight, targets, *kept)
        ctx.mark_non_differentiable(predicted)
        return nll, logsumexp, predicted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, targets, *kept = ctx.saved_tensors
        d_nll, d_logsumexp, _ = gradients
        # d logits = softmax * (d nll + d logsumexp) - onehot(target) * d nll: all factors but the softmax belong to
        # rows, and are applied to rows of D columns instead of K.
        of_softmax, of_target = (d_nll + d_logsumexp)[:, None], d_nll[:, None]
        scaled = hidden * of_softmax
        d_hidden, d_weight = torch.empty_like(hidden), weight.new_zeros(*reversed(weight.shape))
        for rows, softmax in zip(_chunks(len(targets), len(weight), hidden.device), kept, strict=True):
            torch.mm(softmax, weight, out=d_hidden[rows])
            d_weight.addmm_(scaled[rows].t(), softmax)
        d_hidden.mul_(of_softmax).sub_(weight[targets] * of_target)
        # In this order of dimensions until now, because the products above are faster in it.
        d_weight = d_weight.t().contiguous().index_add_(0, targets, hidden * of_target, alpha=-1)
        return d_hidden, d_weight, None


def _keeps_softmax(hidden: Tensor, weight: Tensor) -> bool:
    """Whether to keep it: rounded to half precision, p - 1 would lose the digits in which p differs from 1."""
    on_cpu = _device_type(hidden.device) == "cpu"
    in_float32 = _compute_dtype(hidden) == hidden.dtype == weight.dtype == torch.float32
    return on_cpu and in_float32 and len(hidden) * len(weight) <= _KEPT_ON_CPU


def _argmax(logits: Tensor) -> Tensor:
    """The argmax of each row, int64. The CPU's own compares one logit at a time, but its amax many."""
    rows, columns = logits.shape
    if _device_type(logits.device) != "cpu" or columns % _ARGMAX_BLOCK:
        return logits.argmax(dim=1)
    blocks = logits.view(rows, -1, _ARGMAX_BLOCK)
    block = blocks.amax(dim=2).argmax(dim=1)
    return block * _ARGMAX_BLOCK + blocks[torch.arange(rows), block].argmax(dim=1)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that autocast would choose for a matrix product."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _chunks(positions: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    size = max(1, _LOGITS_AT_ONCE.get(_device_type(device), 1 << 24) // vocabulary)
    return (slice(start, start + size) for start in range(0, positions, size))


def _device_type(device: torch.device) -> str:
    """Of the device to compute on, or as on."""
    return _as_on.get() or device.type
