"""What Optuna's database says of a trial: its configuration, its runs, its worker, and how it ended."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlatrack.spec.sweep import Setting
from vlatrack.spec.sweep_file import Axis
from vlatrack.tracking.lock import Holder

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

WORKER, BEAT, REASON, DEATHS = "worker", "beat", "reason", "deaths"
LEFT_OUT, PRUNING, RETRY_OF, FIRST = "left_out", "pruning_trial", "retry_of", "first_number"
RUN, VALUES = "run ", "values "
"""Names of attributes that a trial has in the database; the last two with the seed behind them."""


@dataclass
class LiveTrial:
    """A configuration that this worker trains."""

    number: int
    first_number: int
    """that which the configuration had when it was begun for the first time"""
    settings: Mapping[str, Setting]
    runs: dict[int, str]
    """by seed, from the runs folder"""
    values: dict[int, list[float]]
    """the objectives of each seed whose run is complete"""
    watched: "Trial | None"
    """of the study in which it may be pruned"""
    reported: set[int] = field(default_factory=set)
    """epochs whose value the pruner knows"""


def worker_of(trial: "FrozenTrial") -> Holder:
    """The process that has begun a trial; an unknown one if the database does not say."""
    try:
        return Holder(**trial.user_attrs.get(WORKER, {}))
    except TypeError:
        return Holder()


def first_number_of(trial: "FrozenTrial") -> int:
    """The number of the first trial with this configuration; it may have been begun anew since."""
    return int(trial.user_attrs.get(FIRST, trial.number))


def reason_of(trial: "FrozenTrial") -> str | None:
    """Why a trial was pruned or has failed."""
    reason = trial.user_attrs.get(REASON)
    return None if reason is None else str(reason)


def runs_of(trial: "FrozenTrial") -> dict[int, str]:
    """The runs of a trial by seed, as paths from the runs folder."""
    return {seed: str(run) for seed, run in by_seed(trial.user_attrs, RUN)}


def settings_of(trial: "FrozenTrial", axes: Sequence[Axis]) -> dict[str, Setting]:
    """The values of a trial by their paths; without those that it was not given yet."""
    params = params_of(trial)
    return {axis.path: _value(axis, params[axis.path]) for axis in axes if axis.path in params}


def suggest(trial: "Trial", axis: Axis) -> Setting:
    """A value for this setting, as the sampler of the study draws it."""
    if axis.dimension.choices is not None:
        # As texts: Optuna takes no lists, and cannot tell 1 from true.
        return _value(
            axis, trial.suggest_categorical(axis.path, [json.dumps(value) for value in axis.dimension.choices])
        )
    low, high = axis.bounds
    step, is_log = axis.dimension.step, axis.dimension.log is not None
    if axis.number is int:
        return trial.suggest_int(axis.path, int(low), int(high), step=int(step or 1), log=is_log)
    return trial.suggest_float(axis.path, low, high, step=step, log=is_log)


def params_of(trial: "FrozenTrial") -> dict[str, Any]:
    """The parameters of a trial; of one that waits, those that it will have."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _value(axis: Axis, param: Any) -> Setting:
    return json.loads(param) if axis.dimension.choices is not None else param


def by_seed(attributes: Mapping[str, Any], prefix: str) -> Iterator[tuple[int, Any]]:
    """The attributes ``<prefix><seed>`` by their seeds."""
    for name, value in attributes.items():
        if name.startswith(prefix):
            yield int(name.removeprefix(prefix)), value
