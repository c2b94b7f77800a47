"""Predicted beside recorded actions over time, as a figure: a column an episode, a row a dimension of the action."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vlatrack.reports.panels import DPI, write_figure

Series = NDArray[np.float64]
"""[T, A]"""

_ROUTES = (("tokens", "tokens, decoded freely", "#D55E00"), ("head", "continuous head", "#0072B2"))


class ShownTrajectory(Protocol):
    """One episode, as `Trajectory` of vlatrack.evaluation.trajectories has it."""

    @property
    def episode(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def starts(self) -> Sequence[int]:
        """Steps at which a chunk was predicted."""

    @property
    def recorded(self) -> Series: ...
    @property
    def head(self) -> Series: ...
    @property
    def tokens(self) -> Series: ...


def draw_trajectories(
    trajectories: Sequence[ShownTrajectory], names: Sequence[str], output: Path, *, title: str
) -> None:
    """Draw a PNG; the panels of a dimension share their scale.

    Args:
        trajectories: at least one.
        names: of the dimensions of an action, with their units if these are known.
    """
    columns, rows = len(trajectories), len(names)
    figure = Figure(figsize=(max(6.5, 4.2 * columns + 0.6), 1.25 * rows + 1.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
    for column, trajectory in enumerate(trajectories):
        for dimension in range(rows):
            _draw(panels[dimension][column], trajectory, dimension)
        task = shorten(trajectory.task, 44, placeholder=" …")
        panels[0][column].set_title(f"episode {trajectory.episode}\n{task}", fontsize=9, loc="left")
        panels[-1][column].set_xlabel("step of the episode", fontsize=9)
    for dimension, name in enumerate(names):
        panels[dimension][0].set_ylabel(shorten(name, 24, placeholder="…"), fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    write_figure(figure, output)


def _draw(axes: Axes, trajectory: ShownTrajectory, dimension: int) -> None:
    for number, start in enumerate(trajectory.starts):
        label = "a chunk begins" if number == 0 else None
        axes.axvline(start, color="#dddddd", linewidth=0.7, zorder=1, label=label)
    axes.plot(trajectory.recorded[:, dimension], color="black", linewidth=1.8, zorder=2, label="recorded")
    for name, label, color in _ROUTES:
        series: Series = getattr(trajectory, name)
        axes.plot(series[:, dimension], color=color, linewidth=1.0, zorder=3, label=label)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.spines[["top", "right"]].set_visible(False)
