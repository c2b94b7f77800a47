"""The figures of a run, and which metrics each of them shows."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vlatrack.health.finding import Finding
from vlatrack.metrics.schema import SPLITS, TRAIN, Metric, MetricSchema, split_and_name
from vlatrack.metrics.simulation import simulation_name, simulation_parts
from vlatrack.reports.panels import SUCCESS, SUCCESS_HIGH, SUCCESS_LOW, Panel, Points, save_panels
from vlatrack.tracking.health import recorded_findings
from vlatrack.tracking.journal.history import metric_history

History = Mapping[str, Points]
"""The logged points of each metric, by its full documented name such as ``val_ind_closs``."""


def write_figures(run_dir: Path, *, output: Path) -> list[Path]:
    """Draw every documented metric in the journal of `run_dir` as PNG files in the folder `output`.

    A figure without data is not written. Returns the paths of those that are.
    """
    journal = run_dir / "journal.jsonl"
    run_name = f"{run_dir.parent.name} / {run_dir.name}"
    return draw_figures(metric_history(journal), output=output, run_name=run_name, findings=recorded_findings(journal))


def draw_figures(history: History, *, output: Path, run_name: str, findings: Sequence[Finding] = ()) -> list[Path]:
    """Draw `history` as PNG files in the folder `output`, created if it is missing; returns their paths.

    A finding is marked at its step, in the panel of its metric and in that of the loss.
    """
    output.mkdir(parents=True, exist_ok=True)
    book = _PanelBook(history, findings)
    written = []
    for stem, caption, panels, shared_scale in book.figures():
        if panels:
            path = output / f"{stem}.png"
            save_panels(panels, path, title=f"{run_name}: {caption}", shared_scale=shared_scale)
            written.append(path)
    return written


class _PanelBook:
    """Selects the panels of each figure from a history."""

    def __init__(self, history: History, findings: Sequence[Finding] = ()) -> None:
        self._marks = [(split_and_name(finding.metric)[1], finding.step) for finding in findings]
        self.history = {name: points for name, points in history.items() if points}
        self.schema = MetricSchema.covering(self.history)

    def figures(self) -> Iterator[tuple[str, str, list[Panel], bool]]:
        """Yield (file stem, caption, panels, whether they share a scale)."""
        losses = [metric.name for metric in self.schema if metric.group == "loss"]
        terms = [name.removeprefix(f"{TRAIN}_") for name in losses if name.startswith(f"{TRAIN}_")]
        yield "losses", "losses", self.panels(name for name in terms if not name.startswith("weighted_")), False
        floor = self._quantisation_floor()
        tokens = self.panels(self._with_mean("l1_loss_action"), floor=floor)
        yield "action_l1", "L1 error of the actions decoded from tokens", tokens, True
        yield "head_l1", "L1 error of the continuous head", self.panels(self._numbered("l1_loss_head")), True
        hits = self.panels([*self._with_mean("acc_action"), *self._numbered("acc_image"), "acc_image_codes"])
        yield "accuracy", "token accuracy", hits, True
        tokens = self.panels(self._numbered("l1_loss_dim"), floor=floor)
        yield "action_dimensions", "L1 error of the decoded actions by action dimension", tokens, True
        head = self.panels(self._numbered("l1_loss_head_dim"))
        yield "head_dimensions", "L1 error of the continuous head by action dimension", head, True
        training = [m.name.removeprefix(f"{TRAIN}_") for m in self.schema if m.group in ("optim", "speed")]
        yield "optimisation", "optimisation and speed", self.panels(training), False
        yield "success", "success in the simulator", self._success(), True

    def panels(self, names: Iterable[str], *, floor: float | None = None) -> list[Panel]:
        """A panel for each of these metrics (named without split) that was logged."""
        panels = []
        for name in names:
            lines = {split: self.history[f"{split}_{name}"] for split in SPLITS if f"{split}_{name}" in self.history}
            if lines:
                metric = self.schema[f"{next(iter(lines))}_{name}"]
                speed = metric.group == "speed"
                marks = sorted({step for plain, step in self._marks if name in (plain, "loss")})
                title = _title(name, metric)
                panels.append(Panel(title, metric.unit, metric.direction, lines, floor, marks, from_zero=speed))
        return panels

    def _success(self) -> list[Panel]:
        """A panel for each simulator, or way of acting in it: of all its tasks together."""
        panels = []
        for group in dict.fromkeys(parts.group for parts in map(simulation_parts, self.history) if parts):
            named = {measure: simulation_name(group, measure) for measure in (SUCCESS, SUCCESS_LOW, SUCCESS_HIGH)}
            lines = {measure: self.history[name] for measure, name in named.items() if name in self.history}
            if lines:
                metric = self.schema[named[SUCCESS]]
                panels.append(Panel(group, metric.unit, metric.direction, lines))
        return panels

    def _with_mean(self, family: str) -> list[str]:
        steps = self._numbered(family)
        return steps if len(steps) == 1 else [family, *steps]

    def _numbered(self, family: str) -> list[str]:
        return [f"{family}_{number}" for number in sorted(self._numbers(family))]

    def _numbers(self, family: str) -> set[int]:
        pattern = re.compile(rf"(?:{'|'.join(SPLITS)})_{family}_(\d+)")
        return {int(found[1]) for found in map(pattern.fullmatch, self.history) if found}

    def _quantisation_floor(self) -> float | None:
        logged: Sequence[Points] = [
            self.history[name] for split in SPLITS if (name := f"{split}_quantisation_floor") in self.history
        ]
        return logged[0][-1][1] if logged else None


def _title(name: str, metric: Metric) -> str:
    if metric.step is not None:
        return f"step {metric.step}  (X = {name.rpartition('_')[2]})"
    if name in ("l1_loss_action", "acc_action"):
        return "mean over the steps"
    if name.startswith("l1_loss") and "_dim_" in name:
        return f"dimension {name.rpartition('_')[2]}"
    return name
