"""How metrics are named: splits, slots of chunk steps, and the two spellings that trackers may show.

The names are those of the documented losses. A per-step name ends in X, the step of the action chunk
aligned to the right end of ten slots: with a chunk of 5 steps X runs from 5 to 9.
"""

import re
from collections.abc import Iterable

TRAIN, VAL_IND, VAL_OOD = "train", "val_ind", "val_ood"
SPLITS = (TRAIN, VAL_IND, VAL_OOD)
STEP_SLOTS = 10
EVALUATE = "evaluate/"
"""Begins the name of what `vlatrack evaluate` measured of a checkpoint, beside what the run measured itself."""

SYSTEM = "system/"
"""Begins the name of every measurement of the machine; MLflow and W&B show what is named so on a page of its own."""

MOST_GPUS = 16
"""As many GPUs of a machine are told apart."""

STEP_NAME = re.compile(r"_(?:l1_loss|acc)_(?:action|head)_(\d+)$")
DIM_NAME = re.compile(r"_l1_loss_(?:head_)?dim_(\d+)$")
IMAGE_NAME = re.compile(r"_acc_image_(\d+)$")


def step_slot(step: int, horizon: int) -> int:
    """The documented index X of chunk step `step` (0..horizon-1): right-aligned in max(10, horizon) slots."""
    assert 0 <= step < horizon, f"step {step} is outside a chunk of {horizon}"
    return max(STEP_SLOTS, horizon) - horizon + step


def chunk_horizon(names: Iterable[str]) -> int:
    """The length of the smallest chunk that has a slot for each per-step name among `names`; 1 if there is none."""
    slots = indexes(names, STEP_NAME)
    longest = max(slots, default=0) + 1
    return longest if longest > STEP_SLOTS else STEP_SLOTS - min(slots, default=STEP_SLOTS - 1)


def indexes(names: Iterable[str], pattern: re.Pattern[str]) -> list[int]:
    """The number at the end of each name that `pattern` (one of those above) finds."""
    return [int(found[1]) for found in map(pattern.search, names) if found]


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


def split_and_name(metric: str) -> tuple[str, str]:
    """`val_ind_closs` as its split and its name; the split is "" for a metric of none."""
    split = next((split for split in SPLITS if metric.startswith(f"{split}_")), "")
    return split, metric.removeprefix(f"{split}_")
