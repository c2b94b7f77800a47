"""A comparison of runs as one HTML file: it asks for nothing, runs no script, and shows every name as text."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from vlatrack.runner.comparison.comparison import RunComparison
from vlatrack.runner.comparison.metrics import MetricRow, Values
from vlatrack.tracking.printable import printable

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #c9ced6; --quiet: #55606e; --bar: #2563a8;
  --best: #0b6b3a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #14171c; --line: #3a414d; --quiet: #a4aebc;
  --bar: #6aa5e6; --best: #6fd39b; } }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; min-width: 5rem; }
.quiet { color: var(--quiet); } .best { color: var(--best); font-weight: 600; }
svg { display: block; width: 6rem; height: .4rem; } rect { fill: var(--bar); }
pre { overflow-x: auto; }
"""
_ARROWS = {"lower": "↓ lower is better", "higher": "↑ higher is better", "none": ""}


def comparison_page(comparison: RunComparison) -> str:
    """The page, in UTF-8."""
    letters = comparison.letters
    runs = _table(
        ("letter", "run", "experiment", "status", "last step"),
        [
            (letter, run.name, run.experiment, run.status.status, _text(run.status.last_step))
            for letter, run in zip(letters, comparison.runs, strict=True)
        ],
    )
    deciding = [(s.path, *map(_text, s.values)) for s in comparison.settings if s.decides]
    others = [(s.path, *map(_text, s.values)) for s in comparison.settings if not s.decides]
    facts = {
        "Settings that decide the result": deciding,
        "Settings that do not": others,
        "Data": [(fact.what, *map(_text, fact.values)) for fact in comparison.data],
        "Code and machine": [(fact.what, *map(_text, fact.values)) for fact in comparison.code],
    }
    damaged = [f"{letter}: {run.damaged}" for letter, run in zip(letters, comparison.runs, strict=True) if run.damaged]
    runs += "".join(f'<p class="quiet">{_escaped(line)}</p>' for line in damaged)
    parts = [_section("Runs", runs)]
    parts += [_section("Metrics: first → last, best", _metrics(comparison))]
    parts += [_section("Seeds", _groups(comparison))] if comparison.groups else []
    parts += [
        _section(title, _table(("what", *letters), rows) if rows else "<p class=quiet>the same</p>")
        for title, rows in facts.items()
    ]
    if comparison.lines:
        lines = f'<pre tabindex="0">{_lines(comparison.lines)}</pre>'
        parts.append(_section("Uncommitted lines that one run alone had", lines))
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    title = _escaped(f"{len(letters)} runs compared")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main><h1>{title}</h1>{''.join(parts)}</main>"
        "</body></html>\n"
    )


def _metrics(comparison: RunComparison) -> str:
    head = "".join(f'<th scope="col">{letter}</th>' for letter in comparison.letters)
    rows = "".join(_metric_row(row) for row in comparison.metrics)
    return f'<table><thead><tr><th scope="col">metric</th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _metric_row(row: MetricRow) -> str:
    lasts = [abs(v.last) for v in row.values if v is not None and math.isfinite(v.last)]
    largest = max(lasts, default=0.0)
    cells = "".join(_metric_cell(value, largest, row.best_run == i) for i, value in enumerate(row.values))
    arrow = f' <span class="quiet">{_ARROWS[row.direction]}</span>' if _ARROWS[row.direction] else ""
    title = _escaped(f"{row.meaning} ({row.unit})" if row.meaning else row.name)
    return f'<tr><th scope="row" title="{title}">{_escaped(row.name)}{arrow}</th>{cells}</tr>'


def _metric_cell(value: Values | None, largest: float, is_best: bool) -> str:
    if value is None:
        return "<td>-</td>"
    last = f'<span class="best">{value.last:.4g} best</span>' if is_best else f"{value.last:.4g}"
    best = ""
    if value.best is not None and value.best != value.last:
        best = f'<br><span class="quiet">best {value.best:.4g} at step {value.best_step}</span>'
    share = abs(value.last) / largest if largest and math.isfinite(value.last) else 0.0
    bar = f'<svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true"><rect width="{100 * share:.1f}" '
    return f'<td>{value.first:.4g} → {last}{best}{bar}height="6"/></svg></td>'


def _groups(comparison: RunComparison) -> str:
    letters = comparison.letters
    names = [f"{''.join(letters[i] for i in group.runs)}: {group.label}" for group in comparison.groups]
    rows: list[tuple[str, ...]] = []
    for row in comparison.metrics:
        cells = []
        for group in comparison.groups:
            spread = group.spreads.get(row.name)
            if spread is None:
                cells.append("-")
                continue
            std = "" if spread.std is None else f" ± {spread.std:.2g}"
            interval = "" if spread.interval is None else f" [{spread.interval[0]:.4g}, {spread.interval[1]:.4g}]"
            cells.append(f"{spread.mean:.4g}{std}{interval} n={spread.n}")
        rows.append((row.name, *cells))
    note = "Mean ± standard deviation of the last values, and the 95 % bootstrap interval of the mean from 3 seeds on."
    return f'<p class="quiet">{note}</p>{_table(("metric", *names), rows)}'


def _section(title: str, body: str) -> str:
    return f'<section><h2>{_escaped(title)}</h2><div class="wide" tabindex="0">{body}</div></section>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    columns = "".join(f'<th scope="col">{_escaped(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{_escaped(row[0])}</th>{"".join(f"<td>{_escaped(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(_escaped(line) for line in lines)


def _text(value: object) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _escaped(text: str) -> str:
    return escape(printable(text), quote=True)
