"""Two to twenty runs side by side."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vlatrack.errors import SpecError
from vlatrack.runner.comparison.differences import (
    FactDifference,
    code_differences,
    data_differences,
    line_differences,
)
from vlatrack.runner.comparison.finding import read_runs
from vlatrack.runner.comparison.groups import Group, GroupDifference, find_groups, group_differences
from vlatrack.runner.comparison.metrics import MetricRow, metric_rows
from vlatrack.runner.comparison.recorded import RecordedRun
from vlatrack.spec.setting_differences import SettingDifference, setting_differences

FEWEST, MOST = 2, 20


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side; tuples of values are in the order of the runs, which A, B, C … name."""

    runs: tuple[RecordedRun, ...]
    settings: tuple[SettingDifference, ...]
    metrics: tuple[MetricRow, ...]
    data: tuple[FactDifference, ...]
    code: tuple[FactDifference, ...]
    lines: tuple[str, ...]  # of two runs: uncommitted lines that only one of them had
    groups: tuple[Group, ...]
    group_differences: tuple[GroupDifference, ...]

    @property
    def letters(self) -> str:
        return ascii_uppercase[: len(self.runs)]

    def to_json(self) -> dict[str, Any]:
        """As strict JSON holds it; a value that is not finite is its name as text."""
        content = {
            "runs": [
                {
                    "letter": letter,
                    "name": run.name,
                    "experiment": run.experiment,
                    "place": run.place,
                    "status": run.status.status,
                    "last_step": run.status.last_step,
                    "damaged": run.damaged,
                }
                for letter, run in zip(self.letters, self.runs, strict=True)
            ],
            **{
                name: [asdict(part) for part in getattr(self, name)]
                for name in ("settings", "metrics", "data", "code", "groups", "group_differences")
            },
            "lines": list(self.lines),
        }
        plain = _plain(content)
        assert isinstance(plain, dict)
        return plain


def compare_runs(*runs: str | Path, metrics: Sequence[str] = (), runs_folder: str | Path = "runs") -> RunComparison:
    """Compare two to twenty runs: settings, metrics, data, code; and groups of those that differ in their seed alone.

    Args:
        runs: run directories, archives of runs, ids or beginnings of ids, ``latest``, ``latest~1``.
        metrics: patterns such as ``val_ood_acc_*`` of metrics beside the documented ones.
        runs_folder: in which ids are looked for.

    Raises:
        VlatrackError: a run is not there or damaged, or a pattern fits no metric.
    """
    if not FEWEST <= len(runs) <= MOST:
        raise SpecError(f"vlatrack compare: takes {FEWEST} to {MOST} runs, not {len(runs)}")
    return compare_recorded(read_runs([str(run) for run in runs], Path(runs_folder)), metrics)


def compare_recorded(recorded: Sequence[RecordedRun], metrics: Sequence[str] = ()) -> RunComparison:
    """As ``compare_runs``, of runs that have been read."""
    rows = metric_rows([run.history for run in recorded], metrics)
    groups = find_groups(recorded, rows)
    lines: list[str] = []
    if len(recorded) == FEWEST:
        a, b = (run.manifest.repositories for run in recorded)
        lines = [line for name in a for line in line_differences(a[name], b.get(name))]
    return RunComparison(
        runs=tuple(recorded),
        settings=tuple(setting_differences([run.settings for run in recorded])),
        metrics=tuple(rows),
        data=tuple(data_differences(recorded)),
        code=tuple(code_differences(recorded)),
        lines=tuple(lines),
        groups=tuple(groups),
        group_differences=tuple(group_differences(groups, rows)),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
