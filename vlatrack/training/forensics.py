"""What is known of a step whose loss or gradient was not finite."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

MOST_OF_A_RUN = 3
"""Steps of which it is written down: the tenth NaN tells no more than the first."""


@dataclass(frozen=True)
class ModuleNorm:
    """The parameters of one module, or their gradients: of this rank's part, if they are sharded."""

    norm: float  # of the finite numbers
    non_finite: int  # numbers that are NaN or infinite
    numbers: int


@dataclass(frozen=True)
class Forensics:
    """A step that was not taken. What could not be had any more is None."""

    step: int
    reason: str
    samples: Sequence[Mapping[str, Any]]  # of the whole batch, over all ranks
    loss: float | None
    loss_terms: Mapping[str, float] | None  # this rank's total of each
    gradients: Mapping[str, ModuleNorm] | None  # before clipping, by module
    parameters: Mapping[str, ModuleNorm]  # by module; the step has not changed them


@torch.no_grad()
def module_norms(named: Iterable[tuple[str, Tensor]]) -> dict[str, ModuleNorm]:
    """The norms of tensors by the module that their names belong to: ``backbone.layers.0.q_proj`` for its weight and
    bias. Synchronises with the device."""
    tensors: dict[str, list[Tensor]] = {}
    for name, tensor in named:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        tensors.setdefault(name.rpartition(".")[0], []).append(local)
    return {module: _norm(parts) for module, parts in tensors.items()}


def _norm(tensors: Sequence[Tensor]) -> ModuleNorm:
    square, non_finite = 0.0, 0
    for tensor in tensors:
        finite = tensor.isfinite()
        square += torch.where(finite, tensor, 0).double().square().sum().item()
        non_finite += int((~finite).sum())
    return ModuleNorm(square**0.5, non_finite, sum(tensor.numel() for tensor in tensors))
