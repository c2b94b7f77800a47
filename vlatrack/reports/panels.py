"""Figures of several panels, each showing a metric on train, val_ind and val_ood over the training steps.

Drawn with matplotlib's object interface, without global state or a display.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from vlatrack.metrics.schema import TRAIN, VAL_IND, VAL_OOD, Direction
from vlatrack.reports.charts import SUCCESS, SUCCESS_HIGH, SUCCESS_LOW

Points = Sequence[tuple[int, float]]
"""(training step, value), steps ascending; a value may be NaN or infinite."""

WIDTH_INCHES = 10.0
DPI = 120
LOG_SCALE_FROM = 30.0
"""Ratio of a panel's largest to its smallest value from which on its axis is logarithmic."""
MARKERS_UP_TO = 60
LARGEST = 1e100
"""Larger values are not drawn, since matplotlib's axes would overflow."""
NOT_DRAWN = "#B00020"
"""Color of the note about values that cannot be drawn, and of the crosses at their steps."""


_METADATA: Mapping[str, dict[str, str | None]] = {
    ".png": {"Software": "vlatrack"},
    ".pdf": {"Creator": "vlatrack", "CreationDate": None},
    ".svg": {"Creator": "vlatrack", "Date": None},
}
"""Without dates, so that the same run gives the same file."""
MOST_MARKS = 20
_REFERENCE_DASHES: tuple[tuple[float, tuple[float, ...]], ...] = ((0, (6, 3)), (0, (1.5, 2)), (0, (6, 2, 1, 2)))
_LEGEND_LETTERS = 120
"""About so many of them are as wide as a figure."""


@dataclass(frozen=True)
class Style:
    """The line style of a split or a success rate; the colours (Okabe and Ito) are safe for colour-blind readers."""

    label: str
    color: str
    width: float
    marker: str
    marker_size: float
    alpha: float
    z_order: int
    dashes: str | tuple[float, tuple[float, ...]] = "-"


STYLES = {
    TRAIN: Style("train", "#7f7f7f", 1.0, ".", 3.5, 0.75, 2),
    VAL_IND: Style("val_ind (held-out episodes)", "#0072B2", 2.2, "o", 4.5, 1.0, 4),
    VAL_OOD: Style("val_ood (held-out tasks)", "#D55E00", 2.2, "s", 4.0, 1.0, 3),
    SUCCESS: Style("success rate", "#009E73", 2.2, "o", 4.5, 1.0, 4),
    SUCCESS_LOW: Style("its interval (95 %, Wilson)", "#009E73", 1.0, "_", 6.0, 0.7, 3),
    SUCCESS_HIGH: Style("its interval (95 %, Wilson)", "#009E73", 1.0, "_", 6.0, 0.7, 3),
}


@dataclass(frozen=True)
class Panel:
    """One metric: its lines by split, or those of a success rate, and the labels of its axes."""

    title: str
    unit: str
    direction: Direction
    lines: dict[str, Points]
    floor: float | None = None
    """A lower bound of the values, drawn as a dotted line; None: there is none."""
    marks: Sequence[int] = ()
    """Training steps at which something was found, drawn as vertical lines."""
    from_zero: bool = False
    """Whether the y axis starts at 0, so that noise in a speed does not look like a change."""
    references: Mapping[str, float] = field(default_factory=dict)
    """Values to compare with, by their names, drawn as dashed lines."""
    best_step: int | None = None
    """Where the best checkpoint is; None: there is none, or nobody knows."""
    styles: Mapping[str, Style] = field(default_factory=lambda: STYLES)
    """Of each line."""


def save_panels(panels: Sequence[Panel], path: Path, *, title: str, shared_scale: bool = False) -> None:
    """Draw `panels` as `draw_panels` does into a file at `path`, replacing what is there; a PNG is 1200 pixels wide."""
    write_figure(draw_panels(panels, title=title, shared_scale=shared_scale), path)


def draw_panels(panels: Sequence[Panel], *, title: str, shared_scale: bool = False) -> Figure:
    """Draw `panels` (at least one) row by row.

    With `shared_scale` all panels have the same y axis, so that they can be compared.
    """
    columns = _columns(len(panels))
    rows = math.ceil(len(panels) / columns)
    panel_height = {1: 4.6, 2: 3.0, 3: 2.4, 4: 2.1, 5: 2.0}[columns]
    figure = Figure(figsize=(WIDTH_INCHES, rows * panel_height + 0.9), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_lines = [points for panel in panels for points in panel.lines.values()]
    together = _value_range(all_lines) if shared_scale else None
    for position, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, position + 1)
        _draw(axes, panel)
        _scale(axes, panel, _with_references(together or _value_range(panel.lines.values()), panel))
        axes.set_xlim(*_step_range(all_lines))
        own_scale = not shared_scale
        _label(axes, panel, with_values=own_scale or position % columns == 0, with_hint=own_scale and columns <= 3)
        _label_steps(axes, with_values=position + columns >= len(panels))
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    _add_legend(figure)
    return figure


def _columns(count: int) -> int:
    """The number of columns that leaves few empty places and keeps the panels wide."""
    if count in (1, 2, 4):
        return min(count, 2)
    if count in (3, 5, 6, 9):
        return 3
    return 4 if count <= 16 else 5


def _draw(axes: Axes, panel: Panel) -> None:
    for name, points in panel.lines.items():
        style = panel.styles[name]
        steps = [step for step, _ in points]
        values = [value if _can_draw(value) else math.nan for _, value in points]
        axes.plot(
            steps,
            values,
            label=style.label,
            color=style.color,
            linewidth=style.width,
            linestyle=style.dashes,
            alpha=style.alpha,
            marker=style.marker if len(points) <= MARKERS_UP_TO else "",
            markersize=style.marker_size,
            zorder=style.z_order,
        )
    if panel.floor is not None and _can_draw(panel.floor):
        axes.axhline(panel.floor, color="black", linewidth=1.1, linestyle=":", label="floor set by the bins")
    for step in [step for step in panel.marks if abs(step) < LARGEST][:MOST_MARKS]:
        axes.axvline(step, color=NOT_DRAWN, linewidth=1.8, linestyle="--", zorder=1, label="health finding")
    for (name, value), dashes in zip(panel.references.items(), _REFERENCE_DASHES, strict=False):
        if _can_draw(value):
            axes.axhline(value, color="#444444", linewidth=1.1, linestyle=dashes, zorder=1, label=name)
    if panel.best_step is not None:
        axes.axvline(panel.best_step, color="#116329", linewidth=1.3, linestyle=":", zorder=1, label="best checkpoint")
    missing = [point for points in panel.lines.values() for point in points if not _can_draw(point[1])]
    if missing:
        note = f"{len(missing)} values not finite"
        if any(math.isfinite(value) for _, value in missing):
            note += f" or beyond {LARGEST:g}"
        axes.text(0.5, 0.96, note, transform=axes.transAxes, ha="center", va="top", fontsize=9, color=NOT_DRAWN)
        steps = [step for step, _ in missing]
        crosses = axes.plot(steps, [0.0] * len(steps), "x", transform=axes.get_xaxis_transform(), clip_on=False)
        crosses[0].set(color=NOT_DRAWN, markersize=7, markeredgewidth=2)


def _can_draw(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= LARGEST


def _value_range(lines: Iterable[Points]) -> tuple[float, float] | None:
    """The smallest and the largest value that can be drawn; None if there is none."""
    values = [value for points in lines for _, value in points if _can_draw(value)]
    return (min(values), max(values)) if values else None


def _with_references(span: tuple[float, float] | None, panel: Panel) -> tuple[float, float] | None:
    """So far that references are seen, unless that would leave the lines in a narrow strip."""
    if span is None:
        return None
    near = [value for value in panel.references.values() if _can_draw(value) and abs(value) <= 3 * max(map(abs, span))]
    return min(*near, *span), max(*near, *span)


def _step_range(lines: Iterable[Points]) -> tuple[float, float]:
    steps = [step for points in lines for step, _ in points]
    low, high = min(steps), max(steps)
    margin = max((high - low) * 0.03, 0.5)
    return low - margin, high + margin


def _scale(axes: Axes, panel: Panel, span: tuple[float, float] | None) -> None:
    if span is None:
        return
    low, high = span
    if panel.unit == "fraction":
        axes.set_ylim(-0.04, 1.04)
    elif low > 0 and high / low >= LOG_SCALE_FROM and not panel.from_zero:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < 1000 else (1,), numticks=8))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.1
        near_zero = low >= 0 and (low < 0.4 * high or panel.from_zero)
        bottom = low - margin if not near_zero else 0.0 if panel.floor is None else -0.04 * high
        axes.set_ylim(bottom, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _label(axes: Axes, panel: Panel, *, with_values: bool, with_hint: bool) -> None:
    axes.set_title(panel.title, fontsize=11, loc="left")
    if with_hint and panel.direction != Direction.NONE:
        axes.set_title(f"{panel.direction} is better", fontsize=9, loc="right", color="#555555")
    if with_values:
        axes.set_ylabel("" if panel.unit == "1" else panel.unit, fontsize=10)
    axes.tick_params(labelsize=10, labelleft=with_values)
    axes.grid(visible=True, color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _label_steps(axes: Axes, *, with_values: bool) -> None:
    if with_values:
        axes.set_xlabel("training step", fontsize=10)
    axes.tick_params(labelbottom=with_values)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _add_legend(figure: Figure) -> None:
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    splits = list(dict.fromkeys(style.label for style in STYLES.values() if style.label in entries))
    labels = splits + [label for label in entries if label not in splits]
    handles = [entries[label] for label in labels]
    columns = max(1, min(len(labels), _LEGEND_LETTERS // (8 + max(map(len, labels)))))
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=10, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # somebody may have named a run so


def write_figure(figure: Figure, path: Path) -> None:
    """Save as PNG, PDF or SVG, as the path ends, and rename, so that a reader never sees an incomplete figure."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with rc_context({"svg.hashsalt": "vlatrack"}):  # without it, an SVG's ids are random
            figure.savefig(unfinished, format=path.suffix[1:], metadata=_METADATA[path.suffix])
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)  # of a full disk
