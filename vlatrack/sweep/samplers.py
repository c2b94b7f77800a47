"""Samplers and pruners of Optuna from their specs, and the order of a grid."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, assert_never

from vlatrack.spec.sweep import HalvingPruner, HyperbandPruner, MedianPruner, Pruner, SamplerSpec
from vlatrack.spec.sweep_file import Axis

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


def build_sampler(spec: SamplerSpec, trial: int) -> "BaseSampler":
    """The sampler of one trial: what it draws depends on the seed, the trial's number and the trials before it."""
    import optuna

    seed = (spec.seed + trial) % 2**31
    if spec.kind == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=spec.startup_trials)
    return optuna.samplers.RandomSampler(seed=seed)


def build_pruner(spec: Pruner, *, epochs: int) -> "BasePruner":
    """A pruner whose steps are epochs.

    Args:
        epochs: of a whole training.
    """
    import optuna

    match spec:
        case MedianPruner():
            return optuna.pruners.MedianPruner(n_startup_trials=spec.startup_trials, n_warmup_steps=spec.warmup_epochs)
        case HalvingPruner():
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=spec.min_epochs, reduction_factor=spec.reduction_factor
            )
        case HyperbandPruner():
            return optuna.pruners.HyperbandPruner(
                min_resource=spec.min_epochs,
                max_resource=max(epochs, spec.min_epochs),
                reduction_factor=spec.reduction_factor,
            )
        case _:
            assert_never(spec)


def next_of_grid(axes: Sequence[Axis], tried: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of the first combination that no trial has, the last dimension fastest."""
    values = [
        [json.dumps(value) for value in axis.grid()] if axis.dimension.choices is not None else axis.grid()
        for axis in axes
    ]
    for combination in itertools.product(*values):
        params = dict(zip((axis.path for axis in axes), combination, strict=True))
        if params not in tried:
            return params
    raise AssertionError("there are as many trials as combinations")
