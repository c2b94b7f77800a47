"""Where trackers show a metric: the documented ones by themselves, everything else in the group it is declared in.

MLflow, W&B and TensorBoard group by what stands before a slash. The first screen of each so begins with, or shows
alone, what the document of the losses says to watch.
"""

import re
from functools import lru_cache

from vlatrack.metrics.losses import DOCUMENTED_LOSSES
from vlatrack.metrics.names import SPLITS, documented
from vlatrack.metrics.schema import MetricSchema

_MOST_NAMES = 4096
_OF_A_SPLIT = re.compile(rf"(?:{'|'.join(SPLITS)})_(?P<name>\w+)")
_WATCHED = re.compile(rf"{'|'.join(term.name for term in DOCUMENTED_LOSSES)}|loss|l1_loss_action_\d+")


def is_documented(name: str) -> bool:
    """Whether a metric is one of the documented losses or the L1 error of one chunk step, of any split."""
    found = _OF_A_SPLIT.fullmatch(name)
    return found is not None and _WATCHED.fullmatch(found["name"]) is not None


@lru_cache(maxsize=_MOST_NAMES)
def grouped(name: str) -> str:
    """`train_closs` as it is, `train_acc_action_5` as `action/train_acc_action_5`.

    A name that has a group already, or that nobody declares, such as a loss term of your own, stays as it is. What
    comes out depends on the name alone.
    """
    if "/" in name or is_documented(name):
        return name
    group = _declared_group(name)
    return name if group is None else f"{group}/{name}"


def documented_name(key: str) -> str:
    """The name behind a key of any naming: the inverse of `grouped` and of `sectioned`."""
    rest = key.partition("/")[2]
    return rest if rest and grouped(rest) == key else documented(key)


def _declared_group(name: str) -> str | None:
    usual = _usual_schema()
    if name in usual:
        return usual[name].group
    if _OF_A_SPLIT.fullmatch(name) is None:
        return None
    schema = MetricSchema.covering([name])  # with its chunk step, dimension, loss term or parameter group
    return schema[name].group if name in schema else None


@lru_cache(maxsize=1)
def _usual_schema() -> MetricSchema:
    return MetricSchema.for_experiment(horizon=10, action_dim=16)
