"""The L1 error of each chunk step and action dimension: a table with all epochs, and a heat map of the last one.

Legend: H steps of a chunk, A numbers of an action. A route is how actions are predicted: `token` (decoded from the
most probable tokens, each after the recorded ones), `free` (from tokens that each follow the policy's own) or `head`
(by the continuous head).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vlatrack.errors import DataError
from vlatrack.metrics.metric import ACTION_UNIT
from vlatrack.metrics.names import SPLITS, step_slot
from vlatrack.reports.line_files import append_text, read_text, replace_text
from vlatrack.reports.panels import DPI, STYLES, write_png

Grid = Sequence[Sequence[float]]
"""[H][A] mean L1 errors in normalised actions; NaN where logits were not finite."""

COLUMNS = ("split", "epoch", "route", "step", "X", "dimension", "l1")
_HEADER = ",".join(COLUMNS) + "\n"
ROUTES = {"token": "tokens after recorded ones", "free": "tokens decoded freely", "head": "continuous head"}
_CELL_INCHES = 0.46


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


def draw_action_errors(file: Path, output: Path, *, run_name: str) -> bool:
    """Draw the last epoch of each split in the table `file` as a PNG at `output`: one row a split, one column a route.

    All panels share one colour scale from 0, so that they can be compared. Returns False, and writes nothing, if the
    table has no rows.

    Raises:
        DataError: the file cannot be read, or is not such a table.
    """
    grids = {key: (grid, f", epoch {epoch + 1}") for key, (epoch, grid) in read_last_errors(file).items()}
    return draw_error_grids(grids, output, run_name=run_name)


def draw_error_grids(grids: Mapping[tuple[str, str], tuple[Grid, str]], output: Path, *, run_name: str) -> bool:
    """As `draw_action_errors`, of grids by split and route, each with the end of its panel's title."""
    if not grids:
        return False
    splits = [split for split in SPLITS if any(split == known for known, _ in grids)]
    routes = [route for route in ROUTES if any(route == known for _, known in grids)]
    values = [value for grid, _ in grids.values() for row in grid for value in row if math.isfinite(value)]
    scale = Normalize(0.0, max(values, default=1.0) or 1.0)
    horizon, dimensions = (max(shape) for shape in zip(*[(len(g), len(g[0])) for g, _ in grids.values()], strict=True))
    size = (
        max(3.4, horizon * _CELL_INCHES + 1.0) * len(routes) + 1.2,
        max(2.6, dimensions * _CELL_INCHES * 0.62 + 1.2) * len(splits) + 0.6,
    )
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(splits), len(routes), squeeze=False)
    for axes_row, split in zip(panels, splits, strict=True):
        for axes, route in zip(axes_row, routes, strict=True):
            if (split, route) in grids:
                grid, ending = grids[split, route]
                _draw_panel(axes, grid, scale, f"{STYLES[split].label}\n{ROUTES[route]}{ending}")
            else:
                axes.set_axis_off()
    image = next(axes.images[0] for axes in panels.flat if axes.images)
    figure.colorbar(image, ax=panels, label=f"mean L1 error [{ACTION_UNIT}]", pad=0.02, aspect=30)
    figure.suptitle(f"{run_name}: L1 error by chunk step and action dimension", fontsize=12, x=0.01, ha="left")
    write_png(figure, output)
    return True


def _draw_panel(axes: Axes, grid: Grid, scale: Normalize, title: str) -> None:
    horizon, dimensions = len(grid), len(grid[0])
    by_dimension = [[grid[step][dim] for step in range(horizon)] for dim in range(dimensions)]
    axes.imshow(by_dimension, cmap=colormaps["YlGnBu"].with_extremes(bad="#d9d9d9"), norm=scale, aspect="auto")
    for dim, errors in enumerate(by_dimension):
        for step, error in enumerate(errors):
            dark = math.isfinite(error) and scale(error) > 0.55
            text = f"{error:.2f}" if math.isfinite(error) else str(error)
            axes.text(step, dim, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xticks(range(horizon), [f"{step}\n({step_slot(step, horizon)})" for step in range(horizon)])
    axes.set_yticks(range(dimensions), [str(dim) for dim in range(dimensions)])
    axes.set_xlabel("step of the chunk (X)", fontsize=9)
    axes.set_ylabel("action dimension", fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)
