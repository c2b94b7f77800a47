"""The metric schema: each name that a run may log, with its meaning, unit and direction.

The names are those of the documented losses. A per-step name ends in X, the step of the action chunk
aligned to the right end of ten slots: with a chunk of 5 steps X runs from 5 to 9.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

TRAIN, VAL_IND, VAL_OOD = "train", "val_ind", "val_ood"
SPLITS = (TRAIN, VAL_IND, VAL_OOD)
STEP_SLOTS = 10
SYSTEM = "system/"
"""Begins the name of every measurement of the machine; MLflow and W&B show what is named so on a page of its own."""

MOST_GPUS = 16
"""As many GPUs of a machine are told apart."""

ACTION_UNIT = "normalised action"
"""Unit of every L1 error: actions are normalised to [-1, 1], so an error lies in [0, 2]."""


class Direction(StrEnum):
    """Which way a metric gets better."""

    LOWER = "lower"
    HIGHER = "higher"
    NONE = "none"


@dataclass(frozen=True)
class Metric:
    """One declared metric; `step` is the plain 0-based step of the action chunk, if the metric belongs to one."""

    name: str
    meaning: str
    unit: str
    direction: Direction
    group: str
    step: int | None = None


def step_slot(step: int, horizon: int) -> int:
    """The documented index X of chunk step `step` (0..horizon-1): right-aligned in max(10, horizon) slots."""
    assert 0 <= step < horizon, f"step {step} is outside a chunk of {horizon}"
    return max(STEP_SLOTS, horizon) - horizon + step


def chunk_horizon(names: Iterable[str]) -> int:
    """The length of the smallest chunk that has a slot for each per-step name among `names`; 1 if there is none."""
    slots = _indexes(names, _STEP_NAME)
    longest = max(slots, default=0) + 1
    return longest if longest > STEP_SLOTS else STEP_SLOTS - min(slots, default=STEP_SLOTS - 1)


def sectioned(name: str) -> str:
    """`train_closs` as `train/closs`, the naming that dashboards group by; a name without a split stays."""
    for split in SPLITS:
        if name.startswith(f"{split}_"):
            return f"{split}/{name.removeprefix(f'{split}_')}"
    return name


def documented(name: str) -> str:
    """The inverse of `sectioned`: `train/closs` as `train_closs`."""
    split, slash, rest = name.partition("/")
    return f"{split}_{rest}" if slash and split in SPLITS else name


_STEP_NAME = re.compile(r"_(?:l1_loss|acc)_(?:action|head)_(\d+)$")
_DIM_NAME = re.compile(r"_l1_loss_(?:head_)?dim_(\d+)$")
_IMAGE = re.compile(r"_acc_image_(\d+)$")


class MetricSchema:
    """The closed set of metric names of one experiment; iterates over its metrics in the order of declaration."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics: dict[str, Metric] = {}
        for metric in metrics:
            assert metric.name not in self._metrics, f"{metric.name} is declared twice"
            self._metrics[metric.name] = metric

    @classmethod
    def for_experiment(cls, *, horizon: int, action_dim: int, image_slots: int = STEP_SLOTS) -> "MetricSchema":
        """The names of an experiment with chunks of `horizon` steps and actions of `action_dim` numbers."""
        per_split = [*_losses(), *_actions(horizon, action_dim), *_head(horizon, action_dim), *_images(image_slots)]
        metrics = [_prefixed(split, metric) for split in SPLITS for metric in per_split]
        metrics += [_prefixed(TRAIN, metric) for metric in _training()]
        metrics.append(Metric("epoch", "passes over the training data", "epochs", Direction.NONE, "progress"))
        return cls([*metrics, *_system()])

    @classmethod
    def covering(cls, names: Iterable[str]) -> "MetricSchema":
        """The schema of the smallest experiment to which the per-step and per-dimension names among `names` belong."""
        known = tuple(names)
        action_dim = max(_indexes(known, _DIM_NAME), default=-1) + 1
        image_slots = max(STEP_SLOTS, max(_indexes(known, _IMAGE), default=0) + 1)
        return cls.for_experiment(horizon=chunk_horizon(known), action_dim=action_dim, image_slots=image_slots)

    def __getitem__(self, name: str) -> Metric:
        """The metric of that documented name; KeyError, with the nearest name, if there is none."""
        self.check([name])
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
        """Raise KeyError, with the nearest declared name, for the names that are not declared."""
        unknown = [name for name in names if name not in self._metrics]
        if unknown:
            raise KeyError("undeclared metric: " + ", ".join(map(self._with_suggestion, unknown)))

    def _with_suggestion(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._metrics, n=1)
        return f"{name} (did you mean {near[0]}?)" if near else name


def _indexes(names: Iterable[str], pattern: re.Pattern[str]) -> list[int]:
    return [int(found[1]) for found in map(pattern.search, names) if found]


def _prefixed(split: str, metric: Metric) -> Metric:
    return replace(metric, name=f"{split}_{metric.name}")


def _losses() -> Iterator[Metric]:
    lower, group = Direction.LOWER, "loss"
    yield Metric("closs", "cross-entropy of the answer tokens, mean over supervised positions", "nats", lower, group)
    yield Metric("z_loss", "squared log-sum-exp of the logits, mean over supervised positions", "nats²", lower, group)
    yield Metric("loss_ct", "L1 error of the continuous head's action chunk", ACTION_UNIT, lower, group)
    yield Metric("loss", "closs + weighted_loss_ct + weighted_z_loss, what is optimised", "mixed", lower, group)
    yield Metric("weighted_loss_ct", "share of loss_ct in the loss", "mixed", lower, group)
    yield Metric("weighted_z_loss", "share of z_loss in the loss", "mixed", lower, group)


def _actions(horizon: int, action_dim: int) -> Iterator[Metric]:
    lower, higher, group = Direction.LOWER, Direction.HIGHER, "action"
    error = "L1 error of the actions decoded from the most probable tokens"
    hits = "share of action tokens whose most probable id is right"
    for step in range(horizon):
        x, where = step_slot(step, horizon), f"at step {step} of the chunk"
        yield Metric(f"l1_loss_action_{x}", f"{error} {where}", ACTION_UNIT, lower, group, step)
        yield Metric(f"acc_action_{x}", f"{hits} {where}", "fraction", higher, group, step)
    yield Metric("l1_loss_action", f"{error}, mean over the chunk", ACTION_UNIT, lower, group)
    yield Metric("acc_action", f"{hits}, over the chunk", "fraction", higher, group)
    for dim in range(action_dim):
        yield Metric(f"l1_loss_dim_{dim}", f"{error}, action dimension {dim}", ACTION_UNIT, lower, group)
    floor = "L1 error that rounding actions to bins causes by itself; the tokens cannot do better"
    yield Metric("quantisation_floor", floor, ACTION_UNIT, lower, group)


def _head(horizon: int, action_dim: int) -> Iterator[Metric]:
    error = "L1 error of the continuous head"
    for step in range(horizon):
        name, meaning = f"l1_loss_head_{step_slot(step, horizon)}", f"{error} at step {step} of the chunk"
        yield Metric(name, meaning, ACTION_UNIT, Direction.LOWER, "head", step)
    for dim in range(action_dim):
        meaning = f"{error}, action dimension {dim}"
        yield Metric(f"l1_loss_head_dim_{dim}", meaning, ACTION_UNIT, Direction.LOWER, "head")


def _images(image_slots: int) -> Iterator[Metric]:
    for slot in range(image_slots):
        meaning = f"share of right image tokens in slot {slot} of {image_slots}, the last image in the last slot"
        yield Metric(f"acc_image_{slot}", meaning, "fraction", Direction.HIGHER, "image")


def _training() -> Iterator[Metric]:
    none, lower, higher = Direction.NONE, Direction.LOWER, Direction.HIGHER
    yield Metric("grad_norm", "gradient norm before clipping", "1", none, "optim")
    yield Metric("lr", "learning rate", "1", none, "optim")
    yield Metric("samples_per_s", "training samples per second", "1/s", higher, "speed")
    yield Metric("tokens_per_s", "tokens of the training samples per second", "1/s", higher, "speed")
    yield Metric("step_time_s", "time of one optimiser step", "s", lower, "speed")
    yield Metric("data_wait_s", "part of that time spent waiting for data", "s", lower, "speed")
    yield Metric("memory_mb", "peak memory in use on the device (the process, on a CPU)", "MB", lower, "speed")


def _system() -> Iterator[Metric]:
    none, group = Direction.NONE, "system"
    yield Metric(f"{SYSTEM}cpu_percent", "load of all processor cores of the machine", "%", none, group)
    yield Metric(f"{SYSTEM}memory_percent", "memory of the machine in use", "%", none, group)
    yield Metric(f"{SYSTEM}process_memory_mb", "resident memory of the training process", "MiB", none, group)
    for gpu in range(MOST_GPUS):
        yield Metric(f"{SYSTEM}gpu_{gpu}_percent", f"load of GPU {gpu} of the machine", "%", none, group)
        yield Metric(f"{SYSTEM}gpu_{gpu}_memory_mb", f"memory of GPU {gpu} in use", "MiB", none, group)
        yield Metric(f"{SYSTEM}gpu_{gpu}_power_w", f"power that GPU {gpu} draws", "W", none, group)
