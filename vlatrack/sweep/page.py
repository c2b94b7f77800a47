"""The page of a sweep: one HTML file without anything from elsewhere, with figures drawn as SVG."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

from vlatrack.spec.sweep import Setting
from vlatrack.sweep.results import SweepResults, TrialRow, one_setting

_WIDTH, _HEIGHT, _MARGIN = 960, 320, 60
_BEST, _WORST = (0, 90, 181), (220, 148, 50)
"""Blue and orange, which people with every kind of colour blindness tell apart."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --dim: #5c6370; --paper: #ffffff; --line: #d5d8dd; --mark: #e8f1fb }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #a4abb6; --paper: #16181c; --line: #3a3f47; --mark: #1d3247 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
p.dim, td.dim { color: var(--dim) } .wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
td.reason { white-space: normal; min-width: 16rem } tr.best { background: var(--mark) }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer }
th[aria-sort=ascending] button::after { content: " \\25B2" }
th[aria-sort=descending] button::after { content: " \\25BC" }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
svg .axis { stroke: var(--dim) } svg .trial { fill: none; stroke-width: 1.5; opacity: .6 }
svg .trial.best { stroke-width: 4; opacity: 1 } a { color: inherit }
@media print { body { max-width: none } th button { cursor: auto } }
"""

_SORT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, index = [...head.parentElement.children].indexOf(head)
  const up = head.getAttribute("aria-sort") !== "ascending", body = head.closest("table").tBodies[0]
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort")
  head.setAttribute("aria-sort", up ? "ascending" : "descending")
  const key = row => row.children[index].dataset.sort
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)]
    if (x === "" || y === "") return (x === "") - (y === "")
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y
    return up ? order : -order
  })
  body.append(...rows)
})
"""


def render_page(results: SweepResults) -> str:
    """The whole page; what trials, settings and reasons say is escaped."""
    best = results.best
    states = ", ".join(
        f"{count} {state}"
        for state in ("complete", "pruned", "failed", "running", "waiting")
        if (count := results.count(state))
    )
    parts = [
        f"<h1>{escape(results.name)}</h1>",
        f"<p>{len(results.rows)} of {results.trials} trials{': ' if states else ''}{states}</p>",
        _best_section(results, best),
        _section("Parallel coordinates", _coordinates(results, best)),
        *(
            _section(f"What {objective} depends on", _importances(shares))
            for objective, shares in results.importances.items()
        ),
        _section("Trials", _table(results, best)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(results.name)}: sweep</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{''.join(part for part in parts if part)}</main><script>{_SORT}</script>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f'<h2>{escape(title)}</h2>\n<div class="wide">{content}</div>\n' if content else ""


def _best_section(results: SweepResults, best: Sequence[TrialRow]) -> str:
    if not best:
        return '<p class="dim">No trial is complete yet.</p>'
    title = "Best configuration" if len(results.objectives) == 1 else "Pareto front"
    lines = []
    for row in best:
        assert row.values is not None, "the best trials are complete"
        values = ", ".join(f"{name} {value:.4g}" for name, value in zip(results.objectives, row.values, strict=True))
        settings = " ".join(map(one_setting, row.settings.items()))
        lines.append(f"<li>trial {row.number}: <b>{escape(values)}</b> with <code>{escape(settings)}</code></li>")
    return f"<h2>{title}</h2><ul>{''.join(lines)}</ul>\n"


def _table(results: SweepResults, best: Sequence[TrialRow]) -> str:
    names = ["trial", "state", *results.objectives, *results.paths, "minutes", "runs", "reason"]
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in names)
    chosen = {row.number for row in best}
    body = "".join(_table_row(results, row, is_best=row.number in chosen) for row in results.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _table_row(results: SweepResults, row: TrialRow, *, is_best: bool) -> str:
    values: list[float | None] = list(row.values or [None] * len(results.objectives))
    links = " ".join(
        f'<a href="../../{quote(run)}/">{escape(f"seed {seed}" if len(row.runs) > 1 else run.rpartition("/")[2])}</a>'
        for seed, run in row.runs.items()
    )
    cells = [
        _cell(row.number, str(row.number)),
        _cell(row.state, row.state),
        *(_cell(value, "" if value is None else f"{value:.5g}") for value in values),
        *(_cell(row.settings.get(path, ""), _shown(row.settings.get(path, ""))) for path in results.paths),
        _cell(row.seconds, "" if row.seconds is None else f"{row.seconds / 60:.1f}"),
        f'<td data-sort="{len(row.runs)}">{links}</td>',
        f'<td class="reason dim" data-sort="{escape(row.reason or "")}">{escape(row.reason or "")}</td>',
    ]
    return f"<tr{' class=best' if is_best else ''}>{''.join(cells)}</tr>"


def _cell(value: Setting, shown: str) -> str:
    key = "" if value is None else value if isinstance(value, str | int | float) else json.dumps(value)
    return f'<td data-sort="{escape(str(key))}">{escape(shown)}</td>'


def _shown(value: Setting) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _coordinates(results: SweepResults, best: Sequence[TrialRow]) -> str:
    """A vertical axis for each setting and objective, and a line for each complete trial."""
    rows = [row for row in results.rows if row.values is not None]
    if len(rows) < 2:
        return ""
    columns: list[tuple[str, list[Setting], bool]] = [
        (path, [row.settings[path] for row in rows], path in results.log_scaled) for path in results.paths
    ]
    columns += [
        (name, [row.values[index] if row.values else None for row in rows], False)
        for index, name in enumerate(results.objectives)
    ]
    gap = (_WIDTH - 2 * _MARGIN) / max(1, len(columns) - 1)
    heights, drawn = [], []
    for index, (name, values, is_log) in enumerate(columns):
        x = _MARGIN + gap * index
        places, ends = _places(values, is_log=is_log)
        heights.append(places)
        drawn.append(_axis(x, name, ends, shift=(index % 2) * 16))
    chosen = {row.number for row in best}
    badness = heights[len(results.paths)]
    if results.directions[0] == "maximize":
        badness = [1 - place for place in badness]
    # The best on top: drawn last.
    for number in sorted(range(len(rows)), key=lambda number: (rows[number].number in chosen, -badness[number])):
        points = " ".join(
            f"{_MARGIN + gap * index:.1f},{_y(places[number]):.1f}" for index, places in enumerate(heights)
        )
        title = escape(f"trial {rows[number].number}: {' '.join(map(one_setting, rows[number].settings.items()))}")
        css = "trial best" if rows[number].number in chosen else "trial"
        drawn.append(
            f'<polyline class="{css}" stroke="{_colour(badness[number])}" points="{points}">'
            f"<title>{title}</title></polyline>"
        )
    what = f"the first objective, {results.objectives[0]}, from best (blue) to worst (orange)"
    return _svg(_HEIGHT, "".join(drawn), f"Settings and objectives of the complete trials; colour: {what}")


def _places(values: Sequence[Setting], *, is_log: bool) -> tuple[list[float], tuple[str, str]]:
    """Where each value stands on its axis, from 0 (bottom) to 1, and what stands at both ends."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        scaled = [math.log(number) for number in numbers] if is_log else numbers
        low, high = min(scaled), max(scaled)
        places = [0.5 if high == low else (number - low) / (high - low) for number in scaled]
        return places, (f"{min(numbers):.4g}", f"{max(numbers):.4g}")
    names = sorted({_shown(value) for value in values})
    spread = max(1, len(names) - 1)
    return [names.index(_shown(value)) / spread for value in values], (names[0], names[-1])


def _axis(x: float, name: str, ends: tuple[str, str], *, shift: int) -> str:
    labels = [(name, 18 + shift), (ends[1], 50), (ends[0], _HEIGHT - 12)]
    texts = "".join(
        f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(_short(text))}</text>' for text, y in labels
    )
    return f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(1):.1f}" y2="{_y(0):.1f}"/>{texts}'


def _y(place: float) -> float:
    return _HEIGHT - 30 - place * (_HEIGHT - 90)


def _colour(badness: float) -> str:
    mixed = (round(a + (b - a) * badness) for a, b in zip(_BEST, _WORST, strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def _importances(shares: Mapping[str, float]) -> str:
    bars = []
    for number, (path, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        y = 8 + 26 * number
        bars.append(
            f'<text x="250" y="{y + 13}" text-anchor="end">{escape(_short(path, 38))}</text>'
            f'<rect x="260" y="{y}" width="{max(1.0, 560 * share):.1f}" height="18" fill="{_colour(0)}"/>'
            f'<text x="{268 + 560 * share:.1f}" y="{y + 13}">{share:.0%}</text>'
        )
    return _svg(26 * len(bars) + 16, "".join(bars), "Share of each setting in what the objective varies (fANOVA)")


def _svg(height: int, content: str, meaning: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(meaning)}">{content}</svg><p class="dim">{escape(meaning)}.</p>'
    )


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
