"""The optimisers, and which parameters are trained with which learning rate and weight decay."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vlatrack.errors import SpecError
from vlatrack.models.policy import VlaPolicy
from vlatrack.training.compact_adamw import CompactAdamW
from vlatrack.training.muon import MuonWithAdamW


@dataclass(frozen=True)
class GroupSettings:
    """Parameters, by patterns of their names, with their own learning rate after warm-up and weight decay."""

    match: tuple[str, ...]
    lr: float
    weight_decay: float


def adamw(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.AdamW:
    """AdamW with weight decay on every parameter that it is given, as in the reference."""
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def muon(
    policy: VlaPolicy,
    groups: Sequence[dict[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> MuonWithAdamW:
    """Muon for the weights of the linear layers inside the decoder layers, AdamW for the rest.

    Raises:
        SpecError: there are no such weights.
    """
    linear = [module for module in policy.backbone.blocks.modules() if isinstance(module, nn.Linear)]
    chosen = {id(module.weight) for module in linear if module.weight.requires_grad}
    matrices, others = ([_only(group, chosen, wanted) for group in groups] for wanted in (True, False))
    if not any(group["params"] for group in matrices):
        raise SpecError(
            "optim.kind: muon trains linear layers inside the backbone's blocks, which have none to train; use adamw"
        )
    used = ([group for group in part if group["params"]] for part in (matrices, others))
    return MuonWithAdamW(*used, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)


def _only(group: Mapping[str, Any], chosen: set[int], wanted: bool) -> dict[str, Any]:
    return {**group, "params": [p for p in group["params"] if (id(p) in chosen) == wanted]}


def parameter_groups(policy: nn.Module, groups: Sequence[GroupSettings], *, lr: float) -> list[dict[str, Any]]:
    """The parameters that are trained as an optimiser takes them: a group for each of the settings, then all others.

    Args:
        groups: a parameter belongs to the first that matches its name.
        lr: the learning rate of the others, to which the groups' learning rates are kept in proportion.

    Raises:
        SpecError: a pattern matches nothing, or only what an earlier group has.
    """
    left = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    names, made = list(left), []
    for number, group in enumerate(groups):
        own: dict[str, Tensor] = {}
        for pattern in group.match:
            matching = fnmatch.filter(left, pattern)
            if not matching:
                raise SpecError(f"optim.groups.{number}.match: {_no_match(pattern, names)}")
            own |= {name: left.pop(name) for name in matching}
        made.append({"params": list(own.values()), "lr_scale": group.lr / lr, "weight_decay": group.weight_decay})
    if left:
        made.append({"params": list(left.values())})
    return made


def _no_match(pattern: str, names: Sequence[str]) -> str:
    if fnmatch.filter(names, pattern):
        return f"all that {pattern!r} matches belongs to an earlier pattern; put the narrower one first"
    parts = [name.split(".") for name in names]
    prefixes = {f"{'.'.join(part[:length])}.*": None for part in parts for length in range(1, len(part))}
    close = get_close_matches(pattern, [*prefixes, *names], n=2) or [f"{part[0]}.*" for part in parts[:1] + parts[-1:]]
    return f"{pattern!r} matches no parameter (there are {' and '.join(dict.fromkeys(close))})"


def prepare_step(optimizer: Optimizer, *, lr: float, step: int) -> None:
    """Give each group its learning rate, and stochastic rounding the step that its draws depend on.

    Args:
        lr: of the parameters without a group of their own.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    if isinstance(optimizer, CompactAdamW):
        optimizer.draw = step
