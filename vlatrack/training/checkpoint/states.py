"""What a checkpoint holds beside the weights, by name: the optimiser's states, and the random generators of a rank."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from vlatrack.errors import CheckpointError
from vlatrack.training.checkpoint.shards import StoredTensors, plain_parts
from vlatrack.training.state import RandomState

OPTIM = "optim."

Number = int | float | bool | None


def optimizer_states(
    policy: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Number]]:
    """The states of an optimiser as tensors and as numbers, by ``optim.<parameter>.<state>``.

    The settings of its parameter groups are not among them: the spec has them.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Number] = {}
    for name, parameter in policy.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            full = f"{OPTIM}{name}.{key}"
            if isinstance(value, Tensor):
                tensors |= plain_parts(full, value)
            else:
                numbers[full] = value
    return tensors, numbers


def restore_optimizer(
    policy: nn.Module, optimizer: torch.optim.Optimizer, stored: StoredTensors, numbers: Mapping[str, Number]
) -> None:
    """The inverse of ``optimizer_states``, for any sharding. A parameter that had no state then has none after it.

    Takes a step whose gradients and learning rates are 0, which makes the states in the form that the optimiser gives
    them; the weights must be restored after it. All ranks call this, since such a step may be collective, as Muon's is.

    Raises:
        CheckpointError: the states are of another optimiser, or of another geometry.
    """
    wanted = {name: shape for name, shape in stored.shapes.items() if name.startswith(OPTIM)}
    if wanted or numbers:
        _make_states(optimizer)
    parameters = dict(policy.named_parameters())
    for name, parameter in parameters.items():
        prefix = f"{OPTIM}{name}."
        if not any(key.startswith(prefix) for key in (*wanted, *numbers)):
            optimizer.state.pop(parameter, None)
    tensors, own_numbers = optimizer_states(policy, optimizer)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted or own_numbers.keys() != numbers.keys():
        other = {name for name, _ in found.items() ^ wanted.items()} | (own_numbers.keys() ^ numbers.keys())
        raise CheckpointError(f"its optimiser states are not those of this optimiser ({min(other)})")
    stored.read_into(tensors)
    for name, parameter in parameters.items():
        for key in optimizer.state.get(parameter, {}):
            if (full := f"{OPTIM}{name}.{key}") in numbers:
                optimizer.state[parameter][key] = numbers[full]


def _make_states(optimizer: torch.optim.Optimizer) -> None:
    rates = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        rates.append(group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"])
        _set_rate(group, 0.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        _set_rate(group, rate)


def _set_rate(group: dict[str, Any], rate: float | Tensor) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def random_to_json(state: RandomState) -> dict[str, Any]:
    """A rank's generators in hexadecimal digits."""
    return _each(asdict(state), lambda tensor: tensor.numpy().tobytes().hex())


def random_from_json(stored: Mapping[str, Any]) -> RandomState:
    """The inverse of ``random_to_json``."""
    return RandomState(**_each(stored, lambda text: torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)))


def _each(state: Mapping[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    return {"cpu": convert(state["cpu"]), "cuda": [convert(device) for device in state["cuda"]]}
