"""The metric schema: every name that a run may log, with its meaning, unit and direction.

Other rooms import names and metric types from here, too.
"""

import difflib
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace

from vlatrack.errors import UndeclaredMetricWarning
from vlatrack.metrics.declarations import run_metrics, split_metrics, training_metrics
from vlatrack.metrics.losses import DOCUMENTED_LOSSES, LossMetric, Weights
from vlatrack.metrics.metric import Direction, Metric
from vlatrack.metrics.names import (
    DIM_NAME,
    EVALUATE,
    IMAGE_NAME,
    LR_NAME,
    MOST_GPUS,
    SIMULATION,
    SPLITS,
    STEP_SLOTS,
    SYSTEM,
    TRAIN,
    VAL_IND,
    VAL_OOD,
    chunk_horizon,
    documented,
    indexes,
    sectioned,
    split_and_name,
    step_slot,
)
from vlatrack.metrics.simulation import simulation_metrics, simulation_name, simulation_names
from vlatrack.metrics.tasks import task_metrics

__all__ = [
    "EVALUATE",
    "MOST_GPUS",
    "SIMULATION",
    "SPLITS",
    "STEP_SLOTS",
    "SYSTEM",
    "TRAIN",
    "VAL_IND",
    "VAL_OOD",
    "Direction",
    "Metric",
    "MetricSchema",
    "chunk_horizon",
    "documented",
    "sectioned",
    "simulation_metrics",
    "simulation_name",
    "simulation_names",
    "split_and_name",
    "step_slot",
]

_OF_A_TERM = re.compile(rf"(?:{'|'.join(SPLITS)})_(?:weighted|gradient_share)_(\w+)")


class MetricSchema:
    """The closed set of metric names of one experiment; iterates over its metrics in the order of declaration."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics: dict[str, Metric] = {}
        self._warned: set[str] = set()
        for metric in metrics:
            assert metric.name not in self._metrics, f"{metric.name} is declared twice"
            self._metrics[metric.name] = metric

    @classmethod
    def for_experiment(
        cls,
        *,
        horizon: int,
        action_dim: int,
        image_slots: int = STEP_SLOTS,
        losses: Weights = DOCUMENTED_LOSSES,
        groups: Iterable[str] = (),
        simulated: Iterable[str] = (),
    ) -> "MetricSchema":
        """The schema of an experiment with chunks of `horizon` steps and actions of `action_dim` numbers.

        `losses` are all loss terms with their weights, including the documented ones; `groups` the names of parameter
        groups with a learning rate of their own; `simulated` those of metrics that a simulator measures meanwhile.
        """
        of_a_split = tuple(
            split_metrics(horizon=horizon, action_dim=action_dim, image_slots=image_slots, losses=losses)
        )
        metrics = [_prefixed(split, metric) for split in SPLITS for metric in of_a_split]
        metrics += [_prefixed(TRAIN, metric) for metric in training_metrics(losses, groups)]
        metrics += [_prefixed(f"{EVALUATE}{split}", metric) for split in (VAL_IND, VAL_OOD) for metric in of_a_split]
        return cls([*metrics, *run_metrics(), *simulation_metrics(simulated)])

    @classmethod
    def covering(cls, names: Iterable[str]) -> "MetricSchema":
        """The schema of the smallest experiment that has all chunk steps, dimensions, loss terms and parameter groups
        among `names`.

        A name `weighted_<term>` or `gradient_share_<term>` stands for a custom loss term. Metrics of simulators and of
        single tasks are declared as they are named.
        """
        known = tuple(names)
        experiment = cls.for_experiment(
            horizon=chunk_horizon(known),
            action_dim=max(indexes(known, DIM_NAME), default=-1) + 1,
            image_slots=max(STEP_SLOTS, max(indexes(known, IMAGE_NAME), default=0) + 1),
            losses={**DOCUMENTED_LOSSES, **_custom_losses(known)},
            groups=dict.fromkeys(found[1] for found in map(LR_NAME.fullmatch, known) if found),
        )
        return cls([*experiment, *simulation_metrics(dict.fromkeys(known)), *task_metrics(dict.fromkeys(known))])

    def __getitem__(self, name: str) -> Metric:
        """The metric of that documented name; KeyError, with the nearest name, if there is none."""
        if name not in self._metrics:
            raise KeyError(f"undeclared metric: {self.suggest(name)}")
        return self._metrics[name]

    def __contains__(self, name: object) -> bool:
        return name in self._metrics

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def __len__(self) -> int:
        return len(self._metrics)

    def names(self, prefix: str | None = None) -> tuple[str, ...]:
        """Every declared name, or those that begin with `prefix` (`"train"`, `"val_ind_l1_loss_action"`)."""
        return tuple(name for name in self._metrics if prefix is None or name.startswith(prefix))

    def check(self, names: Iterable[str]) -> None:
        """Warn of undeclared names with UndeclaredMetricWarning, once for each name."""
        for name in names:
            if name not in self._metrics and name not in self._warned:
                self._warned.add(name)
                text = f"undeclared metric: {self.suggest(name)}; it is logged without unit and direction"
                warnings.warn(text, UndeclaredMetricWarning, stacklevel=2)

    def is_better(self, name: str, value: float, than: float | None) -> bool:
        """Whether `value` of the metric `name` is better than `than`, the best so far.

        A value that is not finite is never better; any finite value is better than None or one that is not finite.

        Raises:
            KeyError: the metric is not declared.
            ValueError: neither lower nor higher is better.
        """
        direction = self[name].direction
        if direction is Direction.NONE:
            raise ValueError(f"neither lower nor higher is better of {name}")
        if not math.isfinite(value):
            return False
        if than is None or not math.isfinite(than):
            return True
        return value < than if direction is Direction.LOWER else value > than

    def why_not_best(self, name: str) -> str | None:
        """Why `name` cannot determine the best checkpoint; None if it can."""
        if (problem := self.why_no_objective(name)) is not None:
            return problem
        if self._metrics[name].value is None and not name.startswith(SIMULATION):
            return f"{name} is not a mean over an epoch"
        return None

    def why_no_objective(self, name: str) -> str | None:
        """Why runs cannot be ranked by `name`; None if they can."""
        if name not in self._metrics:
            return f"no metric is called {self.suggest(name)}"
        if self._metrics[name].direction is Direction.NONE:
            return f"neither lower nor higher is better of {name}"
        if name.startswith(EVALUATE):
            return f"{name} is what `vlatrack evaluate` measures; training measures {name.removeprefix(EVALUATE)}"
        return None

    def suggest(self, name: str) -> str:
        """`name`, followed by the nearest declared name if there is one."""
        near = difflib.get_close_matches(name, self._metrics, n=1)
        return f"{name} (did you mean {near[0]}?)" if near else name


def _custom_losses(names: Iterable[str]) -> dict[LossMetric, float]:
    terms = {found[1]: None for found in map(_OF_A_TERM.fullmatch, names) if found}
    known = {metric.name for metric in DOCUMENTED_LOSSES}
    return {LossMetric(name, f"loss term {name}"): 1.0 for name in terms if name not in known}


def _prefixed(split: str, metric: Metric) -> Metric:
    return replace(metric, name=f"{split}_{metric.name}")
