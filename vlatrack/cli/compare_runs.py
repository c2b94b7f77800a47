"""`vlatrack compare` of runs in the terminal: what differs, how the metrics went, and groups of seeds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vlatrack.errors import SpecError
from vlatrack.tracking.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vlatrack.reports.metric_gate import GateResult, MetricGate
    from vlatrack.runner.comparison.comparison import RunComparison
    from vlatrack.runner.comparison.metrics import MetricRow, Values

_MOST_LINES = 20
_WIDE = 3
"""Up to so many runs have their first, last and best value in one cell."""
_ARROWS = {"lower": "↓", "higher": "↑", "none": " "}


def compare_runs_and_show(
    words: Sequence[str], runs: Path, *, gate: str | None, metrics: Sequence[str], as_json: bool, html: Path | None
) -> None:
    """Print the comparison, write the page, and exit with 1 if the first run does not pass the gate."""
    from vlatrack.reports.metric_gate import MetricGate
    from vlatrack.runner.comparison.comparison import compare_runs

    if gate is not None and gate.lstrip().startswith("success"):
        raise SpecError("--gate: success is of evaluations in a simulator; give their folders: RUN/evaluation/NAME")
    wanted = None if gate is None else MetricGate.parse(gate)
    comparison = compare_runs(*words, metrics=metrics, runs_folder=runs)
    result = None if wanted is None else wanted.check([run.history for run in comparison.runs])
    if html is not None:
        from vlatrack.reports.line_files import replace_text
        from vlatrack.runner.comparison.page import comparison_page

        replace_text(html, comparison_page(comparison))
    if as_json:
        content = comparison.to_json()
        if wanted is not None and result is not None:
            content |= {"gate": wanted.text, "verdict": "pass" if result.passes else "fail", "reason": result.reason}
            content |= {"value": _finite(result.value), "limit": _finite(result.limit)}
        typer.echo(json.dumps(content, indent=1, allow_nan=False))
    else:
        _print(comparison)
        if html is not None:
            typer.echo(f"page        {html}")
        if wanted is not None and result is not None:
            _print_gate(wanted, result)
    if result is not None and not result.passes:
        raise typer.Exit(1)


def _print(comparison: "RunComparison") -> None:
    from vlatrack.cli.simulation import result_console

    console = result_console()
    for letter, run in zip(comparison.letters, comparison.runs, strict=True):
        step = "no step" if run.status.last_step is None else f"step {run.status.last_step}"
        line = f"{letter}  {run.experiment}/{run.name}  {run.status.status}, {step}"
        console.print(printable(line), markup=False, soft_wrap=True)
        if run.damaged is not None:
            console.print(f"   {run.damaged}", markup=False, soft_wrap=True)
    _print_differences(console, comparison)
    if len(comparison.runs) <= _WIDE:
        console.print()
        console.print(metric_table(comparison.metrics, comparison.letters))
    else:
        _print_metrics_by_run(console, comparison)
    _print_groups(console, comparison)


def _print_differences(console: "Console", comparison: "RunComparison") -> None:
    deciding = [(s.path, s.values) for s in comparison.settings if s.decides]
    others = [(s.path, s.values) for s in comparison.settings if not s.decides]
    parts = (
        ("settings that decide the result", deciding),
        ("settings that do not", others),
        ("data", [(fact.what, fact.values) for fact in comparison.data]),
        ("code and machine", [(fact.what, fact.values) for fact in comparison.code]),
    )
    for title, rows in parts:
        if not rows:
            console.print(f"\n{title}: the same", markup=False)
            continue
        table = _table(title, comparison.letters)
        for name, values in rows:
            table.add_row(*(printable(text) for text in (name, *map(_shown, values))))
        console.print()
        console.print(table)
    for line in comparison.lines[:_MOST_LINES]:
        console.print(printable(line), markup=False, soft_wrap=True)
    if len(comparison.lines) > _MOST_LINES:
        console.print(f"… and {len(comparison.lines) - _MOST_LINES} more lines; --json has all", markup=False)


def metric_table(rows: "Sequence[MetricRow]", columns: Sequence[str]) -> "Table":
    """A row a metric: first → last, and the best value in between where it is not the last; a column a run."""
    table = _table("first → last (best)", columns)
    for row in rows:
        cells = [_cell(value, is_best=row.best_run == i) for i, value in enumerate(row.values)]
        table.add_row(f"{_ARROWS[row.direction]} {printable(row.name)}", *cells)
    return table


def _print_metrics_by_run(console: "Console", comparison: "RunComparison") -> None:
    """A row a run, as many tables as the metrics need; the best last value of each metric is marked."""
    per_table = 4
    for begin in range(0, len(comparison.metrics), per_table):
        rows = comparison.metrics[begin : begin + per_table]
        table = _table("last (best)", [f"{_ARROWS[row.direction]} {printable(row.name)}" for row in rows])
        for i, letter in enumerate(comparison.letters):
            table.add_row(letter, *(_short_cell(row, i) for row in rows))
        console.print()
        console.print(table)


def _print_groups(console: "Console", comparison: "RunComparison") -> None:
    if not comparison.groups:
        return
    console.print("\nruns that differ in their seed alone; mean ± std of the last values [95 % interval of the mean]")
    for number, group in enumerate(comparison.groups):
        members = "".join(comparison.letters[i] for i in group.runs)
        again = "".join(comparison.letters[i] for i in group.repeated)
        counted = f"; {again} repeats a seed and does not count" if again else ""
        console.print(printable(f"group {number + 1}: {members} · {group.label}{counted}"), markup=False)
    table = _table("metric", [f"group {i + 1}" for i in range(len(comparison.groups))])
    for row in comparison.metrics:
        spreads = [group.spreads.get(row.name) for group in comparison.groups]
        cells = []
        for spread in spreads:
            if spread is None:
                cells.append("-")
                continue
            std = "" if spread.std is None else f" ± {spread.std:.2g}"
            interval = f" n={spread.n}" if spread.interval is None else _interval(spread.interval, spread.n)
            cells.append(f"{spread.mean:.4g}{std}{interval}")
        table.add_row(printable(row.name), *cells)
    console.print(table)
    if len(comparison.groups) > 1:
        _print_group_differences(console, comparison)
    console.print("no interval is told of fewer than 3 seeds", markup=False)


def _print_group_differences(console: "Console", comparison: "RunComparison") -> None:
    pairs = dict.fromkeys(d.groups for d in comparison.group_differences)
    table = _table("difference of means", [f"{i + 1} - {j + 1}" for i, j in pairs])
    for row in comparison.metrics:
        cells = []
        for pair in pairs:
            found = [d for d in comparison.group_differences if d.groups == pair and d.metric == row.name]
            interval = "" if not found or found[0].interval is None else _interval(found[0].interval)
            cells.append(f"{found[0].difference:+.4g}{interval}" if found else "-")
        table.add_row(printable(row.name), *cells)
    console.print()
    console.print(table)


def _print_gate(gate: "MetricGate", result: "GateResult") -> None:
    word = "PASS" if result.passes else "FAIL"
    if result.reason is not None:
        typer.echo(f"{word}  {gate.text}: {result.reason}")
    else:
        typer.echo(f"{word}  {gate.text}: A has {result.value:.6g}, the limit is {result.limit:.6g}")


def _table(title: str, columns: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table(title, box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cell(value: "Values | None", *, is_best: bool) -> str:
    if value is None:
        return "-"
    best = "" if value.best is None or value.best == value.last else f" ({value.best:.4g} at {value.best_step})"
    return f"{value.first:.4g} → {value.last:.4g}{'*' if is_best else ''}{best}"


def _short_cell(row: "MetricRow", index: int) -> str:
    value = row.values[index]
    if value is None:
        return "-"
    best = "" if value.best is None or value.best == value.last else f" ({value.best:.4g})"
    return f"{value.last:.4g}{'*' if row.best_run == index else ''}{best}"


def _interval(interval: tuple[float, float], n: int | None = None) -> str:
    return f" [{interval[0]:.4g}, {interval[1]:.4g}]{'' if n is None else f' n={n}'}"


def _shown(value: object) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _finite(value: float | None) -> float | str | None:
    return value if value is None or abs(value) < float("inf") else str(value)
