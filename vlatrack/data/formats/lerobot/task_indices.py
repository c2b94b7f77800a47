"""Which tasks a LeRobot dataset has, by their numbers."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlatrack.data.formats.lerobot.layout import TASKS
from vlatrack.data.formats.lerobot.rows import TableFile, integers
from vlatrack.errors import DataError

TASK_INDEX = "task_index"
_LINES = "meta/tasks.jsonl"  # of the layouts before v3.0


def known_tasks(root: Path) -> set[int] | None:
    """The numbers that have an instruction; None where there is no table of tasks.

    Raises:
        DataError: the table is damaged.
    """
    if (root / TASKS).is_file():
        with TableFile(root / TASKS) as file:
            return set(integers(f"{root / TASKS}: {TASK_INDEX}", file.read([TASK_INDEX])[TASK_INDEX]).tolist())
    lines = root / _LINES
    if not lines.is_file():
        return None
    try:
        return {int(json.loads(line)[TASK_INDEX]) for line in lines.read_text(encoding="utf-8").splitlines() if line}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{lines}: damaged ({type(error).__name__}); restore the file") from None


def check_task_index(place: str, rows: pa.Table, known: set[int]) -> None:
    """Raise DataError if a row of an episode has the number of no task.

    Args:
        place: the episode, for messages.
        rows: with or without the column.
    """
    if TASK_INDEX not in rows.column_names:
        return
    for number in np.unique(integers(f"{place}: {TASK_INDEX}", rows[TASK_INDEX])).tolist():
        if number not in known:
            raise DataError(f"{place} has {TASK_INDEX} {number}, which is no task of the dataset; restore its tasks")
