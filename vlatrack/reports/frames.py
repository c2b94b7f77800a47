"""Predicted beside recorded images, as a figure: a row an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vlatrack.reports.panels import DPI, write_figure

Image = NDArray[np.uint8]
"""RGB [height, width, 3]."""
_COLUMNS = {
    "recorded": "recorded",
    "ceiling": "its codes, decoded\n(the ceiling)",
    "predicted": "predicted codes\n(teacher-forced)",
    "generated": "generated,\ncode by code",
    "copied": "codes of the step before\n(copied)",
}
"""Titles by the fields of `ShownFrames`."""


class ShownFrames(NamedTuple):
    """Images of one moment and camera."""

    label: str
    recorded: Image
    ceiling: Image
    predicted: Image | None
    generated: Image | None
    copied: Image


def draw_frames(rows: Sequence[ShownFrames], output: Path, *, title: str) -> None:
    """Draw a PNG of at least one row."""
    columns = {name: title for name, title in _COLUMNS.items() if any(getattr(row, name) is not None for row in rows)}
    figure = Figure(figsize=(0.8 + 2.05 * len(columns), 2.15 * len(rows) + 1.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes_row, row in zip(panels, rows, strict=True):
        for axes, name in zip(axes_row, columns, strict=True):
            if (image := getattr(row, name)) is not None:
                axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(row.label, fontsize=8)
    for axes, told in zip(panels[0], columns.values(), strict=True):
        axes.set_title(told, fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    write_figure(figure, output)
