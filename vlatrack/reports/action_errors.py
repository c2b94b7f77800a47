"""The L1 error of each chunk step and action dimension, as a table with all epochs.

Legend: H steps of a chunk, A numbers of an action. A route is how actions are predicted: `token` (decoded from the
most probable tokens, each after the recorded ones), `free` (from tokens that each follow the policy's own) or `head`
(by the continuous head).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlatrack.errors import DataError
from vlatrack.metrics.names import step_slot
from vlatrack.reports.line_files import append_text, read_text, replace_text

Grid = Sequence[Sequence[float]]
"""[H][A] mean L1 errors in normalised actions; NaN where logits were not finite."""

COLUMNS = ("split", "epoch", "route", "step", "X", "dimension", "l1")
_HEADER = ",".join(COLUMNS) + "\n"
ROUTES = {"token": "tokens after recorded ones", "free": "tokens decoded freely", "head": "continuous head"}


class _Row(NamedTuple):
    split: str
    epoch: int
    route: str
    step: int
    dimension: int
    l1: float


def append_action_errors(file: Path, split: str, epoch: int, grids: Mapping[str, Grid]) -> None:
    """Append one epoch of a split to the CSV table `file`, which is created with its header if it is missing.

    Args:
        epoch: counted from 0, as in the log files.
        grids: by route, as `action_error_grids` of vlatrack.metrics.declarations returns them.

    Raises:
        DataError: the file cannot be written.
    """
    rows = [(split, epoch, *cell) for cell in _cells(grids)]
    append_text(file, "".join(",".join(map(str, row)) + "\n" for row in rows), heading=_HEADER)


def action_error_table(grids: Mapping[str, Mapping[str, Grid]]) -> str:
    """The CSV table of one checkpoint, without epochs, of the grids by split and route."""
    rows = [(split, *cell) for split, of_split in grids.items() for cell in _cells(of_split)]
    header = [column for column in COLUMNS if column != "epoch"]
    return "".join(",".join(map(str, row)) + "\n" for row in [header, *rows])


def _cells(grids: Mapping[str, Grid]) -> Iterator[tuple[str, int, int, int, float]]:
    """Route, step, X, dimension and error of each cell."""
    for route, grid in grids.items():
        for step, errors in enumerate(grid):
            for dimension, error in enumerate(errors):
                yield route, step, step_slot(step, len(grid)), dimension, error


def drop_action_errors_from(file: Path, epoch: int) -> None:
    """Remove the rows of `epoch` and later, which a resumed run writes again; nothing if there is no file.

    An incomplete last line, left by a killed run, is removed as well.

    Raises:
        DataError: the file cannot be read or written, or is not such a table.
    """
    if file.exists():
        kept = [line for line, row in _rows(file) if row.epoch < epoch]
        replace_text(file, "".join([_HEADER, *kept]))


def read_last_errors(file: Path) -> dict[tuple[str, str], tuple[int, list[list[float]]]]:
    """The last epoch of each split and route in the table `file`, and its grid [H][A]; an incomplete last line, left by
    a killed run, does not count.

    Raises:
        DataError: the file cannot be read, or is not such a table.
    """
    cells: dict[tuple[str, str], tuple[int, dict[tuple[int, int], float]]] = {}
    for _, row in _rows(file):
        key = row.split, row.route
        if key not in cells or cells[key][0] != row.epoch:
            cells[key] = row.epoch, {}
        cells[key][1][row.step, row.dimension] = row.l1
    return {key: (epoch, _grid(found)) for key, (epoch, found) in cells.items()}


def _rows(file: Path) -> list[tuple[str, _Row]]:
    """The complete lines below the header, and what they say."""
    header, *lines = [line + "\n" for line in read_text(file).split("\n")[:-1]] or [_HEADER]
    if header != _HEADER:
        raise DataError(f"{file}:1: not a table with the columns {', '.join(COLUMNS)}; restore that line")
    return [(line, _parse(line, place=f"{file}:{number}")) for number, line in enumerate(lines, start=2)]


def _parse(line: str, *, place: str) -> _Row:
    try:
        split, epoch, route, step, _, dimension, l1 = line.split(",")
        return _Row(split, int(epoch), route, int(step), int(dimension), float(l1))
    except ValueError:
        raise DataError(f"{place}: not a row with the columns {', '.join(COLUMNS)}; remove the line") from None


def _grid(cells: Mapping[tuple[int, int], float]) -> list[list[float]]:
    steps, dimensions = (max(axis) + 1 for axis in zip(*cells, strict=True))
    return [[cells.get((step, dim), math.nan) for dim in range(dimensions)] for step in range(steps)]
