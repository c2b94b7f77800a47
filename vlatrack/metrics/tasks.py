"""The metrics of single tasks in an open-loop evaluation: ``evaluate/val_ind/task/open_the_window/loss_ct``."""

import re
from collections.abc import Iterable, Iterator, Mapping

from vlatrack.metrics.losses import CLOSS, LOSS_CT
from vlatrack.metrics.metric import ACTION_UNIT, Direction, Metric
from vlatrack.metrics.names import EVALUATE, VAL_IND, VAL_OOD

MOST_TASKS = 20
"""Tasks of a split that have metrics of their own; where there are more, as in LIBERO-90, a table has them all."""

_MEASURES = {
    LOSS_CT.name: (LOSS_CT.meaning, ACTION_UNIT, Direction.LOWER),
    "l1_loss_action": ("L1 error of the actions decoded from the most probable tokens", ACTION_UNIT, Direction.LOWER),
    "l1_loss_free": ("L1 error of the actions decoded freely", ACTION_UNIT, Direction.LOWER),
    CLOSS.name: (CLOSS.meaning, CLOSS.unit, Direction.LOWER),
}
_LONGEST = 100
_UNUSUAL = re.compile(r"[^A-Za-z0-9.-]+")
_NAME = re.compile(rf"{EVALUATE}(?P<split>{VAL_IND}|{VAL_OOD})/task/(?P<task>[^/]+)/(?P<measure>{'|'.join(_MEASURES)})")


def task_metric_values(split: str, tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The metrics of each task of a split by their full name; none if there are more than `MOST_TASKS`.

    Args:
        tasks: by instruction, the metrics of that task, named without the split.
    """
    if len(tasks) > MOST_TASKS:
        return {}
    metrics: dict[str, float] = {}
    taken = set[str]()
    for task, values in tasks.items():
        plain = _UNUSUAL.sub("_", task)[:_LONGEST].strip("_") or "task"
        spellings = (plain, *(f"{plain}-{number}" for number in range(2, MOST_TASKS + 2)))
        key = next(spelling for spelling in spellings if spelling not in taken)
        taken.add(key)
        metrics |= {
            f"{EVALUATE}{split}/task/{key}/{measure}": values[measure] for measure in _MEASURES if measure in values
        }
    return metrics


def task_metrics(names: Iterable[str]) -> Iterator[Metric]:
    """The declarations of those among ``names`` that are such metrics."""
    for name in names:
        if found := _NAME.fullmatch(name):
            meaning, unit, direction = _MEASURES[found["measure"]]
            yield Metric(name, f"{meaning}; {found['split']}, task {found['task']}", unit, direction, "task")
