"""What the L1 errors of a run are compared with: its dimensions' names, and the errors of policies that see nothing.

`evaluation/baselines.json` holds both: `{"action_names": […], "baselines": {split: {baseline: [H][A]}}}`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vlatrack.errors import DataError
from vlatrack.metrics.names import step_slot
from vlatrack.reports.action_errors import Grid
from vlatrack.reports.line_files import replace_text

FILE = "baselines.json"
_FAMILIES = ("l1_loss_action", "l1_loss_head", "l1_loss_free")
_LONGEST_NAME = 40


@dataclass(frozen=True)
class ActionReferences:
    """Names of the dimensions, empty where the data has none, and baselines by split and name."""

    action_names: tuple[str, ...] = ()
    baselines: Mapping[str, Mapping[str, Grid]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the file; DataError if it cannot be written."""
        content = {"action_names": list(self.action_names), "baselines": self.baselines}
        replace_text(folder / FILE, json.dumps(content) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What the folder's file says; nothing if there is none, as in runs of earlier releases.

        Raises:
            DataError: the file is damaged.
        """
        file = folder / FILE
        if not file.is_file():
            return cls()
        try:
            content: Any = json.loads(file.read_bytes())
            names = tuple(str(name)[:_LONGEST_NAME] for name in content["action_names"])
            baselines = {
                str(split): {str(name): _grid(grid) for name, grid in of_split.items()}
                for split, of_split in content["baselines"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
            raise DataError(f"{file}: damaged; remove it to go on without baselines") from None
        return cls(names, baselines)

    def of_metric(self, name: str, split: str) -> dict[str, float]:
        """The error of each baseline that compares with a metric, named without split: `l1_loss_action_5`,
        `l1_loss_head_dim_0`, or the mean `loss_ct`; empty for any other metric."""
        found = {}
        for baseline, grid in self.baselines.get(split, {}).items():
            value = _value_at(name, grid)
            if value is not None:
                found[baseline] = value
        return found


def _value_at(name: str, grid: Grid) -> float | None:
    horizon = len(grid)
    rows = [sum(row) / len(row) for row in grid]
    places = {
        "loss_ct": sum(rows) / horizon,
        "l1_loss_action": sum(rows) / horizon,
        "l1_loss_free": sum(rows) / horizon,
    }
    for family in _FAMILIES:
        places |= {f"{family}_{step_slot(step, horizon)}": row for step, row in enumerate(rows)}
        of_dimension = "l1_loss" if family == "l1_loss_action" else family
        places |= {f"{of_dimension}_dim_{dim}": sum(row[dim] for row in grid) / horizon for dim in range(len(grid[0]))}
    return places.get(name)


def _grid(grid: Sequence[Sequence[float]]) -> Grid:
    rows = [[float(value) for value in row] for row in grid]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError("no grid")
    if not all(math.isfinite(value) for row in rows for value in row):
        raise ValueError("not finite")
    return rows
