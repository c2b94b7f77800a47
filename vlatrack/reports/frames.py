"""Predicted beside recorded images, as a figure: a row an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vlatrack.reports.panels import DPI, write_png

Image = NDArray[np.uint8]
"""RGB [height, width, 3]."""
_COLUMNS = (
    "recorded",
    "its codes, decoded\n(the ceiling)",
    "predicted codes\n(teacher-forced)",
    "codes of the step before\n(copied)",
)


class ShownFrames(NamedTuple):
    """Images of one moment and camera."""

    label: str
    recorded: Image
    ceiling: Image
    predicted: Image | None
    copied: Image


def draw_frames(rows: Sequence[ShownFrames], output: Path, *, title: str) -> None:
    """Draw a PNG of at least one row."""
    figure = Figure(figsize=(9.0, 2.15 * len(rows) + 1.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(_COLUMNS), squeeze=False)
    for axes_row, row in zip(panels, rows, strict=True):
        for axes, image in zip(axes_row, row[1:], strict=True):
            if image is not None:
                axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(row.label, fontsize=8)
    for axes, told in zip(panels[0], _COLUMNS, strict=True):
        axes.set_title(told, fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    write_png(figure, output)
