"""`vlatrack compare`: runs, or policies on the same episodes; a gate for continuous integration."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vlatrack.evaluation.comparison import Comparison, Gate, Verdict

_EXIT_CODES = {"above": 0, "below": 1, "undecided": 3}


def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...",
            help="Runs: directories, archives, ids or the beginnings of ids, latest, latest~1, mlflow:RUN_ID, "
            "wandb:ENTITY/PROJECT/RUN_ID. Or evaluations in a simulator: their folders, or episode tables (CSV; JSON "
            "or SQLite of vla-eval).",
            show_default=False,
        ),
    ],
    gate: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What A has to reach: 'val_ind_loss_ct <= B * 1.02' of runs, 'success >= B - 2pp' of evaluations.",
            show_default=False,
        ),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential", help="Of evaluations: decide by an e-process, which may be looked at after every episode."
        ),
    ] = False,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Of runs: more metrics than the documented ones, such as 'val_ood_acc_*'; may be given several times.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of runs: also write the comparison as one HTML file.", show_default=False),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs, in which ids are looked for.")] = Path("runs"),
) -> None:
    """Compare runs, or the success rates of policies on the same episodes.

    Of 2 to 20 runs: the settings, data, code and packages in which they differ, and the metrics first, last and best.
    Runs that differ in their seed alone are grouped: mean, spread, and a bootstrap interval from three seeds on.

    Of evaluations: the interval is that of the difference A - B, Newcombe's for pairs, 95 %. Episodes that are an error
    in one table are left out of the pairs and counted. McNemar's p-value is for one look after a number of episodes
    that was fixed beforehand; with --sequential one may look at any time. Of more than two policies, each is compared
    with each, and p-values are adjusted by Holm's method.

    Exit codes with --gate: 0 A passes, 1 A fails, 3 undecided (of evaluations: the interval contains the margin).

    Examples:

    [bold]vlatrack compare latest latest~1[/bold]

    [bold]vlatrack compare runs/goal/A runs/goal/B --gate "val_ind_loss_ct <= B * 1.02" --html comparison.html[/bold]

    [bold]vlatrack compare new.csv old.csv --gate "success >= B - 2pp" --sequential[/bold]
    """
    from vlatrack.errors import SpecError
    from vlatrack.runner.comparison.finding import names_run

    if len(words) < 2:
        raise SpecError("vlatrack compare: needs two runs or policies, or more: vlatrack compare latest latest~1")
    are_runs = [names_run(word) for word in words]
    if any(are_runs) and not all(are_runs):
        other = words[are_runs.index(False)]
        raise SpecError(f"{other}: episodes of an evaluation, beside a run; compare runs, or evaluations")
    if all(are_runs):
        if sequential:
            raise SpecError("--sequential: is for success, of which there are episodes, not for metrics of runs")
        from vlatrack.cli.compare_runs import compare_runs_and_show

        compare_runs_and_show(words, runs, gate=gate, metrics=metrics or (), as_json=as_json, html=html)
        return
    if metrics or html is not None:
        raise SpecError("--metrics and --html: are for runs; these are episodes of evaluations")
    _compare_evaluations([Path(word) for word in words], gate, sequential=sequential, as_json=as_json)


def _compare_evaluations(paths: list[Path], gate: str | None, *, sequential: bool, as_json: bool) -> None:
    from vlatrack.errors import SpecError
    from vlatrack.evaluation.comparison import Gate, compare_all
    from vlatrack.importers.episodes import read_policies

    wanted = None if gate is None else Gate.parse(gate)
    if wanted is not None and len(paths) > 2:
        raise SpecError("--gate: is about two policies, A and B; leave it out to compare more")
    found = compare_all(read_policies(paths), margin=0.0 if wanted is None else wanted.margin, sequential=sequential)
    if as_json:
        contents = [_content(comparison, adjusted, wanted) for comparison, adjusted in found]
        typer.echo(json.dumps(contents[0] if len(contents) == 1 else contents, indent=1))
    else:
        for comparison, adjusted in found:
            _print(comparison, adjusted if len(found) > 1 else None, wanted)
    if wanted is not None:
        raise typer.Exit(_EXIT_CODES[found[0][0].verdict])


def _content(comparison: "Comparison", adjusted: float, gate: "Gate | None") -> dict[str, Any]:
    from vlatrack.evaluation.comparison import success_by_task, success_rate, task_mean

    content: dict[str, Any] = {}
    for side, table in (("a", comparison.a), ("b", comparison.b)):
        by_task = success_by_task(table)
        content[side] = {
            "name": table.name,
            **success_rate(table).content(),
            "task_mean": task_mean(by_task),
            "tasks": {task: rate.content() for task, rate in by_task.items()},
        }
    return content | {
        "pairs": len(comparison.pairs),
        "pairs_with_errors": comparison.pairs.errors,
        "wins_a": comparison.pairs.only_a,
        "wins_b": comparison.pairs.only_b,
        "mcnemar_p": comparison.mcnemar_p,
        "mcnemar_p_holm": adjusted,
        "newcombe": list(comparison.newcombe),
        "e_value": comparison.e_value,
        "largest_e_value": comparison.largest_e_value,
        "episodes_needed": comparison.episodes_needed,
        "gate": None if gate is None else gate.text,
        "margin": comparison.margin,
        "sequential": comparison.sequential,
        "e_value_above_margin": comparison.above,
        "e_value_below_margin": comparison.below,
        "verdict": _word(comparison.verdict, gate),
    }


def _word(verdict: "Verdict", gate: "Gate | None") -> str:
    words = {"above": "pass", "below": "fail"} if gate is not None else {"above": "better", "below": "worse"}
    return words.get(verdict, "undecided")


def _print(comparison: "Comparison", adjusted: float | None, gate: "Gate | None") -> None:
    from rich.table import Table

    from vlatrack.cli.simulation import rate_text, result_console
    from vlatrack.evaluation.comparison import success_by_task, success_rate
    from vlatrack.evaluation.sequential import ALPHA

    console, a, b, pairs = result_console(), comparison.a, comparison.b, comparison.pairs
    table = Table("task", a.name, b.name, box=None, pad_edge=False)
    tasks_a, tasks_b = success_by_task(a), success_by_task(b)
    for task in tasks_a if len(tasks_a) > 1 else ():
        table.add_row(task, rate_text(tasks_a[task]), rate_text(tasks_b[task]))
    table.add_row("all episodes", rate_text(success_rate(a)), rate_text(success_rate(b)))
    console.print(table)
    low, high = comparison.newcombe
    difference = (pairs.only_a - pairs.only_b) / (len(pairs) or 1)
    left_out = f", {pairs.errors} left out for an error" if pairs.errors else ""
    holm = "" if adjusted is None else f", {adjusted:.3g} with Holm's correction"
    needed = comparison.episodes_needed
    lines = [
        ("A - B", f"{difference:+.1%}  [{low:+.1%}, {high:+.1%}] of {len(pairs)} pairs{left_out}"),
        (
            "alone",
            f"A {pairs.only_a}, B {pairs.only_b}; McNemar p = {comparison.mcnemar_p:.3g}{holm}, for a single look",
        ),
        (
            "e-value",
            f"{comparison.e_value:.3g}, at most {comparison.largest_e_value:.3g}: from {1 / ALPHA:.0f} on they differ",
        ),
        (
            "needed",
            "no difference" if needed is None else f"{needed:,} episodes of each for such a difference, unpaired",
        ),
    ]
    if comparison.sequential:
        decided = f"e-value above {comparison.above:.3g}, below {comparison.below:.3g}; {2 / ALPHA:.0f} decides"
        lines.append(("margin", f"{comparison.margin:+.1%}: {decided}"))
    if gate is not None:
        lines.append((_word(comparison.verdict, gate).upper(), gate.text))
    for label, text in lines:
        console.print(f"{label:<10}{text}", soft_wrap=True, markup=False)
