"""Metric names: splits, slots of chunk steps, and the two spellings that trackers can show.

The names are those of the documented losses. A per-step name ends in X, the step of the action chunk
aligned to the right end of ten slots: with a chunk of 5 steps X runs from 5 to 9.
"""

import re
from collections.abc import Iterable

TRAIN, VAL_IND, VAL_OOD = "train", "val_ind", "val_ood"
SPLITS = (TRAIN, VAL_IND, VAL_OOD)
STEP_SLOTS = 10
EVALUATE = "evaluate/"
"""Prefix of the metrics of `vlatrack evaluate`, which stand beside those of the run itself."""

SYSTEM = "system/"
"""Prefix of the metrics of the machine, which MLflow and W&B show on a page of their own."""

MOST_GPUS = 16
"""GPUs of a machine that have metrics of their own."""

STEP_NAME = re.compile(r"_(?:l1_loss|acc)_(?:action|head|free)_(\d+)$")
DIM_NAME = re.compile(r"_l1_loss_(?:head_|free_)?dim_(\d+)$")
LR_NAME = re.compile(rf"^{TRAIN}_lr_(\w+)$")
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
    """`train_closs` as `train/closs`, which dashboards group by; a name without a split is unchanged."""
    for split in SPLITS:
        if name.startswith(f"{split}_"):
            return f"{split}/{name.removeprefix(f'{split}_')}"
    return name


def documented(name: str) -> str:
    """The inverse of `sectioned`: `train/closs` as `train_closs`."""
    split, slash, rest = name.partition("/")
    return f"{split}_{rest}" if slash and split in SPLITS else name


def split_and_name(metric: str) -> tuple[str, str]:
    """`val_ind_closs` as ("val_ind", "closs"); the split is "" for a metric that has none."""
    split = next((split for split in SPLITS if metric.startswith(f"{split}_")), "")
    return split, metric.removeprefix(f"{split}_")
