"""The calibration of action tokens as a figure: how often a policy is right by how sure it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlatrack.metrics.names import SPLITS
from vlatrack.reports.panels import DPI, STYLES, write_figure

Rows = Sequence[Mapping[str, float]]
"""As `calibration_table` of vlatrack.metrics.declarations returns them."""


def draw_calibration(tables: Mapping[str, Rows], output: Path, *, title: str) -> bool:
    """Draw accuracy over confidence, and below it the share of tokens in each tenth, one colour a split, as a PNG.

    Returns False, and writes nothing, if no split has rows.
    """
    shown = [split for split in SPLITS if tables.get(split)]
    if not shown:
        return False
    figure = Figure(figsize=(5.2, 6.0), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=":", label="as sure as right")
    for number, split in enumerate(shown):
        rows, style = tables[split], STYLES[split]
        tokens = sum(row["tokens"] for row in rows)
        confidence, accuracy = [row["confidence"] for row in rows], [row["accuracy"] for row in rows]
        above.plot(confidence, accuracy, color=style.color, marker="o", markersize=4, label=style.label)
        width = 0.09 / len(shown)
        places = [row["from"] + 0.005 + (number + 0.5) * width for row in rows]
        below.bar(places, [row["tokens"] / tokens for row in rows], width=width, color=style.color)
    above.set_ylabel("share of action tokens that are right")
    above.set_xlim(0, 1)
    above.set_ylim(0, 1)
    above.legend(fontsize=8, loc="upper left")
    below.set_xlabel("confidence: probability of the most probable bin")
    below.set_ylabel("share of tokens")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    write_figure(figure, output)
    return True
