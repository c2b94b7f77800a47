"""A policy whose weights are not in memory before it is known which of them this process holds, and in which form.

It is built on torch's meta device, distributed among the processes, and then filled: weights are streamed from their
files, each process reading its own rows, and rounded one by one where layers are stored in 4 bits; what is random, such
as the ActionHead and adapters, is drawn as it always is.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from vlatrack.builders.policy import StoredPolicy, adapter_of, build_policy
from vlatrack.models.backbones.adapter import measure_lengths
from vlatrack.models.backbones.base import Backbone, BackboneSource
from vlatrack.models.backbones.pretrained import held_rows
from vlatrack.models.meta_draws import MetaDraws
from vlatrack.models.policy import VlaPolicy
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.training.checkpoint.contents import check_weights, load_weights, load_weights_beside_adapters

Fill = Callable[[torch.device], None]
"""Called with the device of the policy, once each process has its part of it."""
_BACKBONE = "backbone."


def build_unfilled_policy(
    spec: ExperimentSpec, source: BackboneSource, stored: StoredPolicy | None = None
) -> tuple[VlaPolicy, Fill]:
    """The policy of ``build_policy`` without the weights of its backbone, and what fills it.

    Args:
        stored: whose weights it gets; it may lack the adapters of ``spec``. None: the pretrained ones of ``source``,
            or none at all, where a resume restores them.

    Raises:
        CheckpointError: the weights are damaged, or of another geometry.
        SpecError: adapters or frozen parameters are asked for by names that the policy does not have.
        MissingPackageError: adapters need a package that is not installed.
    """
    draws, kept = MetaDraws(), dict[str, tuple[int, Tensor]]()

    def build() -> Backbone:
        with draws:
            backbone = source.build()
        parameters = dict(backbone.named_parameters())
        for name, rows in (source.weights.names.first_rows if source.weights else {}).items():
            own = name.removeprefix(_BACKBONE)
            if own in parameters:  # it is not where the output layer is tied to the embedding
                kept[name] = rows, draws.again(parameters[own])[rows:].clone()
        return backbone

    brings_adapters = stored is not None and adapter_of(stored.spec) is not None
    adds_adapters = stored is not None and not brings_adapters
    check = partial(check_weights, stored.record.checkpoint) if adds_adapters and stored else _nothing
    policy = build_policy(spec, replace(source, build=build), initialise=check)
    if brings_adapters and stored:
        check_weights(stored.record.checkpoint, policy)
    # What is not on the meta device is small: head, adapters, and buffers such as the frequencies of positions.
    kept |= {name: (0, value.clone()) for name, value in _tensors(policy).items() if not value.is_meta}

    def fill(device: torch.device) -> None:
        policy.to_empty(device=device)
        for name, tensor in _tensors(policy).items():
            if name in kept:
                _copy_rows(tensor, *kept.pop(name))
        if source.weights is not None:
            source.weights.copy_into(policy)
        if stored is not None:
            load = load_weights if brings_adapters else load_weights_beside_adapters
            load(stored.record.checkpoint, policy)
        if adapter_of(spec) is not None and not brings_adapters:
            measure_lengths(policy.backbone)

    return policy, fill


def _nothing(_: VlaPolicy) -> None:
    """There are no weights to compare the policy with."""


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
