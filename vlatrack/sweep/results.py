"""What a sweep has found: a row for each trial, the best configurations, and which settings mattered."""

import csv
import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vlatrack.reports.tables import spreadsheet_text
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.spec.sweep import Setting
from vlatrack.spec.sweep_file import Sweep, override_of
from vlatrack.sweep.study import SweepStudy
from vlatrack.sweep.trials import reason_of, runs_of, settings_of
from vlatrack.tracking.privacy import write_private

LEAST_FOR_IMPORTANCE = 4
"""Complete trials without which an importance says nothing."""


@dataclass(frozen=True)
class TrialRow:
    """One configuration; `values` are the means of its objectives over the seeds, None until it is complete."""

    number: int
    """from 1"""
    state: str
    """complete, pruned, failed, running or waiting"""
    settings: Mapping[str, Setting]
    values: tuple[float, ...] | None
    reason: str | None
    runs: Mapping[int, str]
    """by seed, as paths from the runs folder"""
    seconds: float | None


@dataclass(frozen=True)
class SweepResults:
    """The trials of a sweep as they are now."""

    name: str
    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    """minimize or maximize, of each objective"""
    paths: tuple[str, ...]
    """the settings of the space"""
    log_scaled: frozenset[str]
    trials: int
    """configurations that are to be tried"""
    rows: tuple[TrialRow, ...]
    importances: Mapping[str, Mapping[str, float]]
    """by objective, then by setting: its share in what the objective varies, in [0, 1]"""

    @classmethod
    def of(cls, study: SweepStudy) -> Self:
        from optuna.trial import TrialState

        states = {
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed",
            TrialState.RUNNING: "running",
            TrialState.WAITING: "waiting",
        }
        sweep = study.sweep
        rows = [
            TrialRow(
                number,
                states[trial.state],
                settings_of(trial, sweep.axes),
                tuple(trial.values) if trial.state == TrialState.COMPLETE else None,
                reason_of(trial),
                runs_of(trial),
                None if trial.duration is None else trial.duration.total_seconds(),
            )
            for number, trial in enumerate(study.trials(), start=1)
        ]
        return cls(
            name=sweep.spec.name,
            objectives=tuple(objective.metric for objective in sweep.spec.objectives),
            directions=tuple(study.directions),
            paths=tuple(axis.path for axis in sweep.axes),
            log_scaled=frozenset(axis.path for axis in sweep.axes if axis.dimension.log is not None),
            trials=sweep.trials,
            rows=tuple(rows),
            importances=_importances(study),
        )

    @property
    def best(self) -> tuple[TrialRow, ...]:
        """The best configuration; with several objectives the Pareto front: those that no other beats in all."""
        complete = [row for row in self.rows if row.values is not None]
        if len(self.objectives) == 1:
            return tuple(sorted(complete, key=self._cost)[:1])
        return tuple(row for row in complete if not any(self._dominates(other, row) for other in complete))

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)

    def table(self) -> str:
        """All trials as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", "state", *self.objectives, *self.paths, "seconds", "reason", "runs"])
        for row in self.rows:
            values = row.values or [""] * len(self.objectives)
            settings = [_cell(row.settings.get(path, "")) for path in self.paths]
            runs = " ".join(row.runs.values())
            writer.writerow([row.number, row.state, *values, *settings, row.seconds, _cell(row.reason or ""), runs])
        return text.getvalue()

    def _cost(self, row: TrialRow) -> tuple[float, ...]:
        assert row.values is not None, "a complete trial"
        pairs = zip(row.values, self.directions, strict=True)
        return tuple(value if direction == "minimize" else -value for value, direction in pairs)

    def _dominates(self, row: TrialRow, other: TrialRow) -> bool:
        mine, its = self._cost(row), self._cost(other)
        return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))


def best_experiment(sweep: Sweep, row: TrialRow) -> str:
    """The experiment of a configuration as YAML that `vlatrack run` takes, with the first of the sweep's seeds."""
    overrides = sweep.overrides(row.settings, sweep.seeds[0])
    head = [f"# Trial {row.number} of the sweep {sweep.spec.name}: {', '.join(map(one_setting, row.settings.items()))}"]
    text = dump_spec(load_spec(sweep.experiment_file, overrides))
    return "\n".join([*head, text])


def one_setting(item: tuple[str, Setting]) -> str:
    """``optim.lr=0.0003``: a number in a few digits."""
    path, value = item
    is_short = isinstance(value, float) and math.isfinite(value)
    return f"{path}={value:.4g}" if is_short else override_of(path, value)


def write_results(results: SweepResults, sweep: Sweep, *, page: Path, table: Path, best: Path) -> None:
    """Write the page, the table and the best experiments; each file is replaced as a whole."""
    from vlatrack.sweep.page import render_page

    files = {f"trial-{row.number:05d}.yaml": best_experiment(sweep, row) for row in results.best}
    for file in best.glob("trial-*.yaml"):
        if file.name not in files:
            file.unlink(missing_ok=True)
    contents = {page: render_page(results), table: results.table()}
    contents |= {best / name: text for name, text in files.items()}
    for file, text in contents.items():
        write_private(file, text)


def _importances(study: SweepStudy) -> dict[str, dict[str, float]]:
    import optuna

    complete = study.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < LEAST_FOR_IMPORTANCE:
        return {}
    found: dict[str, dict[str, float]] = {}
    for number, objective in enumerate(study.sweep.spec.objectives):
        if len({trial.values[number] for trial in complete}) == 1:
            continue  # there is nothing to explain
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that parameters with a single value are left out
            found[objective.metric] = optuna.importance.get_param_importances(
                study.study,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                target=lambda trial, number=number: trial.values[number],
            )
    return found


def _cell(value: Setting) -> str:
    return spreadsheet_text(value if isinstance(value, str) else override_of("", value).removeprefix("="))
