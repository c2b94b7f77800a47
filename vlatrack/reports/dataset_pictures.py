"""Figures of a dataset: frames of some of its episodes, and how the numbers of its actions are distributed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vlatrack.reports.panels import DPI, write_figure

_ACTION = "#0072B2"
_RANGE = "#D55E00"
_BARS = 80
_EDGES_DRAWN = 16
"""Of all edges of bins: more would be a grey area."""


class SheetRow(NamedTuple):
    """Frames of one episode and camera, in the order of time."""

    label: str
    frames: Sequence[NDArray[np.uint8]]  # RGB [height, width, 3]
    steps: Sequence[int]


class Distribution(NamedTuple):
    """Of one number of the actions: its different values, and how often each occurs."""

    label: str
    values: NDArray[np.float64]  # [K] ascending, at least one
    counts: NDArray[np.int64]  # [K]
    inner: tuple[float, float]  # the 1 % and the 99 % quantile


def draw_contact_sheet(rows: Sequence[SheetRow], output: Path, *, title: str) -> None:
    """Draw a figure of at least one row, each with its frames, all of one size, from left to right."""
    columns = max(len(row.frames) for row in rows)
    height, width, _ = rows[0].frames[0].shape
    side = 1.5
    size = (0.8 + columns * side * min(width / height, 2.0), 0.6 + len(rows) * (side + 0.3))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        strip, centres = _strip(row.frames, columns)
        axes.imshow(strip)
        axes.set_xticks(centres, [f"step {step}" for step in row.steps], fontsize=7)
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.set_frame_on(False)
        axes.set_ylabel(row.label, fontsize=7)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    write_figure(figure, output)


def _strip(frames: Sequence[NDArray[np.uint8]], columns: int) -> tuple[NDArray[np.uint8], list[float]]:
    """Frames beside each other, with room for so many, and where the middle of each is."""
    height, width, _ = frames[0].shape
    gap = max(1, width // 24)
    strip = np.full((height, columns * (width + gap) - gap, 3), 255, np.uint8)
    for column, frame in enumerate(frames):
        strip[:, column * (width + gap) :][:, :width] = frame
    return strip, [column * (width + gap) + width / 2 for column in range(len(frames))]


def draw_distributions(distributions: Sequence[Distribution], output: Path, *, title: str, bins: int) -> None:
    """Draw a histogram of at least one number, with the ranges and the edges of `bins` that a tokenizer could have."""
    columns = min(3, len(distributions))
    rows = math.ceil(len(distributions) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.4 * rows + 0.9), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, distribution in zip(panels, distributions, strict=False):
        _draw(axes, distribution, bins)
    for axes in panels[len(distributions) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False, ncols=len(labels))
    write_figure(figure, output)


def _draw(axes: Axes, of: Distribution, bins: int) -> None:
    low, high = float(of.values[0]), float(of.values[-1])
    span = (low, high) if high > low else (low - 0.5, high + 0.5)
    heights, edges = np.histogram(of.values, bins=_BARS, range=span, weights=of.counts)
    axes.axvspan(*of.inner, color=_RANGE, alpha=0.14, linewidth=0, label="1 % to 99 % (quantiles)")
    shares = heights / of.counts.sum()
    axes.bar(edges[:-1], shares, np.diff(edges), align="edge", color=_ACTION, label="share of the steps (logarithmic)")
    for number, edge in enumerate(np.linspace(low, high, bins)[:: bins // _EDGES_DRAWN]):
        label = f"every {bins // _EDGES_DRAWN}th of {bins} edges of bins (minmax)" if number == 0 else None
        axes.axvline(edge, ymax=0.06, color="black", linewidth=0.8, zorder=3, label=label)
    axes.set_yscale("log")
    axes.set_ylim(min(1e-4, shares[shares > 0].min() / 2), 1.5)
    axes.set_title(of.label, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if low == high:
        axes.text(0.03, 0.93, f"always {low:g}", transform=axes.transAxes, fontsize=8, va="top", color=_RANGE)
