"""A policy whose weights are not in memory before it is known which of them this process holds.

It is built on torch's meta device, distributed among the processes, and then filled: pretrained weights are streamed
from their files, each process reading its own rows; what is random, such as the ActionHead, is drawn as it always is.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from vlatrack.builders.policy import build_policy
from vlatrack.models.backbones.base import Backbone, BackboneSource
from vlatrack.models.backbones.pretrained import held_rows
from vlatrack.models.meta_draws import MetaDraws
from vlatrack.models.policy import VlaPolicy
from vlatrack.spec.experiment import ExperimentSpec

Fill = Callable[[torch.device], None]
"""Called with the device of the policy, once each process has its part of it."""


def build_unfilled_policy(spec: ExperimentSpec, source: BackboneSource) -> tuple[VlaPolicy, Fill]:
    """The policy of ``build_policy`` without the weights of its backbone, and what fills it.

    Raises:
        CheckpointError: the pretrained weights are damaged, or of another geometry.
        SpecError: frozen parameters are asked for by names that the policy does not have.
    """
    draws = MetaDraws()

    def build() -> Backbone:
        with draws:
            return source.build()

    policy = build_policy(spec, replace(source, build=build))  # compares pretrained weights with it by their shapes
    # What is not on the meta device is small: the head, and buffers such as the frequencies of positions.
    kept = {name: (0, value.clone()) for name, value in _tensors(policy).items() if not value.is_meta}
    if source.weights is not None:
        parameters = dict(policy.named_parameters())
        for name, rows in source.weights.names.first_rows.items():
            if name in parameters:  # it is not where the output layer is tied to the embedding
                kept[name] = rows, draws.again(parameters[name])[rows:].clone()

    def fill(device: torch.device) -> None:
        policy.to_empty(device=device)
        for name, tensor in _tensors(policy).items():
            if name in kept:
                _copy_rows(tensor, *kept[name])
        if source.weights is not None:
            source.weights.copy_into(policy)

    return policy, fill


def _tensors(policy: VlaPolicy) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in chain(policy.named_parameters(), policy.named_buffers())}


def _copy_rows(target: Tensor, first: int, rows: Tensor) -> None:
    """Copy ``rows``, of which the first is row ``first`` of the whole target, as far as this process holds them."""
    local, start = held_rows(target)
    if local.dim() == 0:
        local.copy_(rows)
        return
    begin, end = max(start, first), min(start + len(local), first + len(rows))
    if begin < end:
        local[begin - start : end - start].copy_(rows[begin - first : end - first])
