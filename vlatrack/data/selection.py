"""Which episodes of a dataset a split uses."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Literal

import numpy as np

from vlatrack.data.store.episode_table import EpisodeList, EpisodeTable, Ints
from vlatrack.errors import DataError

Part = Literal["all", "all_but_last_tenth", "last_tenth"]

_MOST_TASKS = 40
"""That a message lists."""


def select_episodes(
    table: EpisodeTable,
    *,
    tasks: Collection[str] | None = None,
    exclude_tasks: Collection[str] = (),
    part: Part = "all",
    cap: int | None = None,
    skip_bad: bool = False,
) -> EpisodeList:
    """Select episodes by task, and a part of each task's episodes.

    The last tenth of a task's n episodes are its last max(1, n // 10); a task with a single
    episode keeps it for training and has no last tenth. Of those that are left, at most `cap` are kept, evenly spread.

    Args:
        skip_bad: leave out episodes that cannot be used.

    Raises:
        DataError: the dataset does not have a task, no episode is left, or one cannot be used.
    """
    bad = np.fromiter(table.problems, np.int64, len(table.problems))
    left_out = bad if skip_bad else bad[table.lengths[bad] == 0]  # the latter cannot be read at all
    usable = np.setdiff1d(np.arange(len(table)), left_out, assume_unique=True)
    counts = np.bincount(table.task_of[usable], minlength=len(table.tasks))
    of_task = {task: int(count) for task, count in zip(table.tasks, counts, strict=True) if count}
    for wanted in (*(tasks or ()), *exclude_tasks):
        if wanted not in of_task:
            raise DataError(f"{table.name}: no task {wanted!r}{_suggestion(wanted, of_task)}; {_list_tasks(of_task)}")
    wanted_tasks = [
        number
        for number, task in enumerate(table.tasks)
        if (tasks is None or task in tasks) and task not in exclude_tasks
    ]
    wanted_positions = usable[np.isin(table.task_of[usable], wanted_tasks)]
    chosen = np.sort(wanted_positions[_is_in_part(table.task_of[wanted_positions], part)])
    if not len(chosen):
        raise DataError(f"{table.name}: no episode is left after selecting tasks and part; {_list_tasks(of_task)}")
    if len(bad_and_chosen := np.intersect1d(chosen, bad)):
        raise _bad(table, bad_and_chosen)
    in_order = chosen[np.argsort(table.index[chosen], kind="stable")]
    kept = np.linspace(0, len(chosen) - 1, min(cap or len(chosen), len(chosen))).round().astype(int)
    return EpisodeList(table, in_order[kept])


def _is_in_part(task_of: np.ndarray, part: Part) -> np.ndarray:
    """For episodes in the order of the dataset, whether each is in the part of its task's episodes."""
    if part == "all":
        return np.ones(len(task_of), bool)
    order = np.argsort(task_of, kind="stable")
    _, first, counts = np.unique(task_of[order], return_index=True, return_counts=True)
    number_in_task = np.empty(len(task_of), np.int64)
    number_in_task[order] = np.arange(len(task_of)) - np.repeat(first, counts)
    held_out = np.where(counts > 1, np.maximum(1, counts // 10), 0)
    boundary = np.empty(len(task_of), np.int64)
    boundary[order] = np.repeat(counts - held_out, counts)
    is_last_tenth: np.ndarray = number_in_task >= boundary
    return is_last_tenth if part == "last_tenth" else ~is_last_tenth


def _bad(table: EpisodeTable, positions: Ints) -> DataError:
    first, more = table.problems[int(positions[0])], len(positions) - 1
    others = f" (and {more:,} more such episodes)" if more else ""
    return DataError(f"{table.name}: {first}{others}; leave it out, or all such episodes with skip_bad: true")


def _suggestion(wanted: str, known: Collection[str]) -> str:
    close = get_close_matches(wanted, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _list_tasks(of_task: dict[str, int]) -> str:
    counts = [f"{task!r} ({episodes})" for task, episodes in sorted(of_task.items())]
    more = f" and {len(counts) - _MOST_TASKS:,} more" if len(counts) > _MOST_TASKS else ""
    return f"its tasks (episodes): {', '.join(counts[:_MOST_TASKS]) or 'none'}{more}"
