"""The figures of a run: its groups of charts as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlatrack.health.finding import Finding
from vlatrack.metrics.schema import split_and_name
from vlatrack.reports.charts import Chart, ChartBook, ChartGroup
from vlatrack.reports.panels import Panel, Points, save_panels
from vlatrack.tracking.health import recorded_findings
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.journal.records import JournalDamage

History = Mapping[str, Points]
"""The logged points of each metric, by its full documented name such as ``val_ind_closs``."""
FORMATS = ("png", "pdf", "svg")


def write_figures(run_dir: Path, *, output: Path, kind: str = "png", damage: JournalDamage | None = None) -> list[Path]:
    """Draw every documented metric in the journal of `run_dir` as files of a kind in the folder `output`.

    A figure without data is not written. Returns the paths of those that are. Raises TrackerError for a damaged line of
    the journal, unless such are left out.
    """
    journal = run_dir / "journal.jsonl"
    run_name, findings = f"{run_dir.parent.name} / {run_dir.name}", recorded_findings(journal, damage=damage)
    history = metric_history(journal, damage=damage)
    return draw_figures(history, output=output, run_name=run_name, kind=kind, findings=findings)


def draw_figures(
    history: History, *, output: Path, run_name: str, kind: str = "png", findings: Sequence[Finding] = ()
) -> list[Path]:
    """Draw `history` as files of a kind in the folder `output`, created if it is missing; returns their paths.

    A finding is marked at its step, in the panel of its metric and in that of the loss.
    """
    output.mkdir(parents=True, exist_ok=True)
    logged = {name: points for name, points in history.items() if points}
    written = []
    for group in ChartBook(logged).figures():
        path = output / f"{group.name}.{kind}"
        panels, title = panels_of(group, logged, findings), f"{run_name}: {group.caption}"
        save_panels(panels, path, title=title, shared_scale=group.shared_scale)
        written.append(path)
    return written


def panels_of(group: ChartGroup, history: History, findings: Sequence[Finding] = ()) -> list[Panel]:
    """The charts of a group with their points; ``history`` holds each of its metrics."""
    return [_panel(chart, history, findings) for chart in group.charts]


def _panel(chart: Chart, history: History, findings: Sequence[Finding]) -> Panel:
    floor = None if chart.floor is None else history[chart.floor][-1][1]
    lines = {line: history[name] for line, name in chart.lines.items()}
    shown = {split_and_name(name)[1] for name in chart.lines.values()}
    marked = (finding for finding in findings if {split_and_name(finding.metric)[1], "loss"} & shown)
    marks = sorted({finding.step for finding in marked})
    return Panel(chart.title, chart.unit, chart.direction, lines, floor, marks, from_zero=chart.from_zero)
