"""The figures of a run: its groups of charts as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vlatrack.errors import DataError
from vlatrack.health.finding import Finding
from vlatrack.metrics.schema import SPLITS, Direction, MetricSchema, split_and_name
from vlatrack.reports.action_references import ActionReferences
from vlatrack.reports.charts import Chart, ChartBook, ChartGroup
from vlatrack.reports.panels import Panel, Points, save_panels
from vlatrack.tracking.health import recorded_findings
from vlatrack.tracking.journal.history import last_start, metric_history
from vlatrack.tracking.journal.records import JournalDamage

History = Mapping[str, Points]
"""The logged points of each metric, by its full documented name such as ``val_ind_closs``."""
FORMATS = ("png", "pdf", "svg")
BASELINES = {"constant": "constant action", "repeat": "last action repeated"}
"""What the policies that see nothing are called, by their names in the file of them."""
_CLIPPED = "train_grad_norm"


@dataclass(frozen=True)
class FigureNotes:
    """What figures show beside the lines of the metrics."""

    findings: Sequence[Finding] = ()
    """Each is marked at its step, in the panel of its metric and in that of the loss."""
    references: ActionReferences = field(default_factory=ActionReferences)
    """Names of the action dimensions, and the errors of policies that see nothing."""
    clip_grad: float | None = None
    """Where the gradient norm is clipped; None: it is not."""
    best_step: int | None = None
    """Where the best checkpoint is."""

    @classmethod
    def of_run(cls, run_dir: Path, history: History, *, damage: JournalDamage | None = None) -> Self:
        """What is known of a run; damaged baselines are left out, as the run's page says what is wrong with them."""
        journal = run_dir / "journal.jsonl"
        try:
            references = ActionReferences.read(run_dir / "evaluation")
        except DataError:
            references = ActionReferences()
        start = last_start(journal, damage=damage)
        params = {} if start is None or start.wrong_field() is not None else start.data["params"]
        clip = params.get("optim.clip_grad")
        return cls(
            recorded_findings(journal, damage=damage),
            references,
            float(clip) if isinstance(clip, int | float) else None,
            _best_step(history, params.get("train.checkpoint.best_metric")),
        )


def write_figures(run_dir: Path, *, output: Path, kind: str = "png", damage: JournalDamage | None = None) -> list[Path]:
    """Draw every documented metric in the journal of `run_dir` as files of a kind in the folder `output`.

    A figure without data is not written. Returns the paths of those that are. Raises TrackerError for a damaged line of
    the journal, unless such are left out.
    """
    history = metric_history(run_dir / "journal.jsonl", damage=damage)
    notes = FigureNotes.of_run(run_dir, history, damage=damage)
    run_name = f"{run_dir.parent.name} / {run_dir.name}"
    return draw_figures(history, output=output, run_name=run_name, kind=kind, notes=notes)


def draw_figures(
    history: History, *, output: Path, run_name: str, kind: str = "png", notes: FigureNotes | None = None
) -> list[Path]:
    """Draw `history` as files of a kind in the folder `output`, created if it is missing; returns their paths."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for group, panels in figure_panels(history, notes or FigureNotes()):
        path = output / f"{group.name}.{kind}"
        save_panels(panels, path, title=f"{run_name}: {group.caption}", shared_scale=group.shared_scale)
        written.append(path)
    return written


def figure_panels(history: History, notes: FigureNotes) -> list[tuple[ChartGroup, list[Panel]]]:
    """The groups of charts that have points, each with its panels."""
    logged = {name: points for name, points in history.items() if points}
    groups = ChartBook(logged, action_names=notes.references.action_names).figures()
    return [(group, [_panel(chart, logged, notes) for chart in group.charts]) for group in groups]


def _panel(chart: Chart, history: History, notes: FigureNotes) -> Panel:
    shown = {split_and_name(name)[1] for name in chart.lines.values()}
    marked = (finding for finding in notes.findings if {split_and_name(finding.metric)[1], "loss"} & shown)
    return Panel(
        chart.title,
        chart.unit,
        chart.direction,
        {line: history[name] for line, name in chart.lines.items()},
        None if chart.floor is None else history[chart.floor][-1][1],
        sorted({finding.step for finding in marked}),
        chart.from_zero,
        _references(chart, notes),
        notes.best_step,
    )


def _references(chart: Chart, notes: FigureNotes) -> dict[str, float]:
    """Of the held-out episodes, if they are shown, as on the run's page."""
    if _CLIPPED in chart.lines.values():
        return {} if notes.clip_grad is None else {"gradients are clipped above": notes.clip_grad}
    split = next((one for one in (SPLITS[1], SPLITS[2], SPLITS[0]) if one in chart.lines), None)
    if split is None:
        return {}
    found = notes.references.of_metric(split_and_name(chart.lines[split])[1], split)
    return {BASELINES.get(name, name): value for name, value in found.items()}


def _best_step(history: History, metric: object) -> int | None:
    """The step of the best value of the metric that says which checkpoint is best."""
    schema = MetricSchema.covering(history)
    if not isinstance(metric, str) or metric not in schema:
        return None
    sign = {Direction.LOWER: 1, Direction.HIGHER: -1}.get(schema[metric].direction)
    finite = [(value, step) for step, value in history.get(metric, ()) if abs(value) < float("inf")]
    return None if sign is None or not finite else min(finite, key=lambda point: sign * point[0])[1]
