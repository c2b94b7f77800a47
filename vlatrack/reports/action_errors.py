"""The L1 error of each chunk step and action dimension: a table with all epochs, and a heat map of the last one.

Legend: H steps of a chunk, A numbers of an action. A route is how actions are predicted: `token` (decoded from the
most probable tokens) or `head` (by the continuous head).
"""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vlatrack.errors import DataError
from vlatrack.metrics.metric import ACTION_UNIT
from vlatrack.metrics.names import SPLITS, step_slot
from vlatrack.reports.panels import DPI, STYLES, write_png

Grid = Sequence[Sequence[float]]
"""[H][A] mean L1 errors in normalised actions; NaN where logits were not finite."""

COLUMNS = ("split", "epoch", "route", "step", "X", "dimension", "l1")
ROUTES = {"token": "decoded from tokens", "head": "continuous head"}
_CELL_INCHES = 0.46


def append_action_errors(file: Path, split: str, epoch: int, grids: Mapping[str, Grid]) -> None:
    """Append one epoch of a split to the CSV table `file`, which is created with its header if it is missing.

    Args:
        epoch: counted from 0, as in the log files.
        grids: by route, as `action_error_grids` of vlatrack.metrics.declarations returns them.
    """
    rows = [
        (split, epoch, route, step, step_slot(step, len(grid)), dimension, error)
        for route, grid in grids.items()
        for step, errors in enumerate(grid)
        for dimension, error in enumerate(errors)
    ]
    with file.open("a", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([COLUMNS, *rows] if stream.tell() == 0 else rows)


def drop_action_errors_from(file: Path, epoch: int) -> None:
    """Remove the rows of `epoch` and later, which a resumed run writes again; nothing if there is no file.

    An incomplete last line, left by a killed run, is removed as well.
    """
    if not file.exists():
        return
    header, *rows = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")] or [""]
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text("".join([header, *(row for row in rows if int(row.split(",")[1]) < epoch)]))
    unfinished.replace(file)


def read_last_errors(file: Path) -> dict[tuple[str, str], tuple[int, list[list[float]]]]:
    """The last epoch of each split and route in the table `file`, and its grid [H][A].

    Raises:
        DataError: the file cannot be read, or is not such a table.
    """
    cells: dict[tuple[str, str], tuple[int, dict[tuple[int, int], float]]] = {}
    try:
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                key, epoch = (row["split"], row["route"]), int(row["epoch"])
                if key not in cells or cells[key][0] != epoch:
                    cells[key] = epoch, {}
                cells[key][1][int(row["step"]), int(row["dimension"])] = float(row["l1"])
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: not a table with the columns {', '.join(COLUMNS)}") from error
    return {key: (epoch, _grid(found)) for key, (epoch, found) in cells.items()}


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
    grids = read_last_errors(file)
    if not grids:
        return False
    splits = [split for split in SPLITS if any(split == known for known, _ in grids)]
    routes = [route for route in ROUTES if any(route == known for _, known in grids)]
    values = [value for _, grid in grids.values() for row in grid for value in row if math.isfinite(value)]
    scale = Normalize(0.0, max(values, default=1.0) or 1.0)
    horizon, dimensions = (max(shape) for shape in zip(*[(len(g), len(g[0])) for _, g in grids.values()], strict=True))
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
                _draw_panel(axes, *grids[split, route], scale, f"{STYLES[split].label}\n{ROUTES[route]}")
            else:
                axes.set_axis_off()
    image = next(axes.images[0] for axes in panels.flat if axes.images)
    figure.colorbar(image, ax=panels, label=f"mean L1 error [{ACTION_UNIT}]", pad=0.02, aspect=30)
    figure.suptitle(f"{run_name}: L1 error by chunk step and action dimension", fontsize=12, x=0.01, ha="left")
    write_png(figure, output)
    return True


def _draw_panel(axes: Axes, epoch: int, grid: Grid, scale: Normalize, title: str) -> None:
    horizon, dimensions = len(grid), len(grid[0])
    by_dimension = [[grid[step][dim] for step in range(horizon)] for dim in range(dimensions)]
    axes.imshow(by_dimension, cmap=colormaps["YlGnBu"].with_extremes(bad="#d9d9d9"), norm=scale, aspect="auto")
    for dim, errors in enumerate(by_dimension):
        for step, error in enumerate(errors):
            dark = math.isfinite(error) and scale(error) > 0.55
            text = f"{error:.2f}" if math.isfinite(error) else str(error)
            axes.text(step, dim, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_title(f"{title}, epoch {epoch}", fontsize=9, loc="left")
    axes.set_xticks(range(horizon), [f"{step}\n({step_slot(step, horizon)})" for step in range(horizon)])
    axes.set_yticks(range(dimensions), [str(dim) for dim in range(dimensions)])
    axes.set_xlabel("step of the chunk (X)", fontsize=9)
    axes.set_ylabel("action dimension", fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)
