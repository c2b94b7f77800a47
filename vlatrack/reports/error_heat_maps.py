"""The L1 error of each chunk step and action dimension as heat maps.

Legend: H steps of a chunk, A numbers of an action; routes as in `action_errors`.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vlatrack.metrics.metric import ACTION_UNIT
from vlatrack.metrics.names import SPLITS, step_slot
from vlatrack.reports.action_errors import ROUTES, Grid, read_last_errors
from vlatrack.reports.panels import DPI, STYLES, write_figure

_CELL_INCHES = 0.46


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
    write_figure(figure, output)
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
