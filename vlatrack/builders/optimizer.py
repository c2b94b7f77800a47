"""From the spec to an optimiser and its schedule."""

import re
from typing import Any, assert_never

from torch.optim import Optimizer

from vlatrack.errors import SpecError
from vlatrack.models.policy import VlaPolicy
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.training import Storage
from vlatrack.training.compact_adamw import CompactAdamW
from vlatrack.training.eight_bits import load_levels
from vlatrack.training.optimizers import GroupSettings, adamw, muon, parameter_groups
from vlatrack.training.schedule import Schedule

_DECAY_OF_WSD = 0.2  # of the epochs


def build_optimizer(spec: ExperimentSpec, policy: VlaPolicy) -> Optimizer:
    """The optimiser of a policy that is on its device, and sharded if it is to be.

    Raises:
        SpecError: a group matches no parameters, or Muon has nothing to train.
    """
    optim, storage = spec.optim, spec.storage
    groups = build_groups(spec, policy)
    common: dict[str, Any] = {
        "lr": optim.lr,
        "weight_decay": optim.weight_decay,
        "betas": optim.betas,
        "eps": optim.eps,
    }
    match optim.kind:
        case "muon":
            return muon(policy, groups, **common)
        case "adamw" if storage == Storage("fp32", None, "fp32"):
            return adamw(groups, **common)
        case "adamw":
            return CompactAdamW(
                groups, rounding=storage.rounding, states=storage.optimizer_states, seed=spec.seed, **common
            )
        case _:
            assert_never(optim.kind)


def build_groups(spec: ExperimentSpec, policy: VlaPolicy) -> list[dict[str, Any]]:
    """The parameters by their learning rates and decays.

    Raises:
        SpecError: a group matches no parameters.
    """
    optim = spec.optim
    settings = [
        GroupSettings(
            group.match,
            lr=group.lr or optim.lr,
            weight_decay=optim.weight_decay if group.weight_decay is None else group.weight_decay,
        )
        for group in optim.groups
    ]
    return parameter_groups(policy, settings, lr=optim.lr)


def group_rates(spec: ExperimentSpec) -> dict[str, float]:
    """The learning rate of each group that has its own, as a multiple of that of the others, by a name for the group.

    The name is its first pattern in letters, digits and underscores, with the group's number where that leaves nothing,
    or is the name of another group.
    """
    rates: dict[str, float] = {}
    for number, group in enumerate(spec.optim.groups):
        if group.lr is not None:
            name = re.sub(r"[^a-z0-9]+", "_", group.match[0].lower()).strip("_") or "group"
            if name == "group" or name in rates:
                name = f"{name}_{number}"
            rates[name] = group.lr / spec.optim.lr
    return rates


def check_optimizer(spec: ExperimentSpec, processes: int = 1) -> None:
    """Check what does not take a policy; to be called before ``build_optimizer``.

    Raises:
        SpecError: the states of the optimiser cannot be sharded over so many processes.
        MissingPackageError: the states need torchao.
    """
    if spec.storage.optimizer_states != "8bit":
        return
    load_levels()
    if processes > 1:
        raise SpecError(
            f"train.memory.optimizer_states: 8bit cannot be sharded over {processes} processes, which would cut its "
            "blocks of 256 numbers; use bf16, or start one process"
        )


def build_schedule(spec: ExperimentSpec, steps_per_epoch: int, *, epochs: int | None = None) -> Schedule:
    """The course of the learning rate.

    Args:
        epochs: instead of those of the spec.

    Raises:
        SpecError: warm-up and decay, given in steps, are longer than the training.
    """
    optim, epochs = spec.optim, epochs or spec.train.epochs
    warm_up, decay = optim.warmup_epochs or 0.0, 0.0
    if optim.warmup_steps is not None:
        warm_up = optim.warmup_steps / steps_per_epoch
    if optim.schedule == "wsd":
        decay = optim.decay_epochs or _DECAY_OF_WSD * epochs
        if optim.decay_steps is not None:
            decay = optim.decay_steps / steps_per_epoch
    if warm_up + decay > epochs or warm_up == epochs:
        taken = (warm_up + decay) * steps_per_epoch
        raise SpecError(
            f"optim: warm-up and decay take {taken:.0f} steps, and train.epochs = {epochs} has "
            f"{epochs * steps_per_epoch}; shorten them, or train longer"
        )
    return Schedule(optim.lr, optim.min_lr, warm_up, epochs, optim.schedule, decay, optim.decay_shape)
