"""`vlatrack evaluate RUN EVALUATION.yaml` in the terminal: a bar with the success rate so far, a table at the end."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vlatrack.cli.bars import WIDTH_OF_FILES, Bars
from vlatrack.cli.delivery import delivery_line

if TYPE_CHECKING:
    from vlatrack.evaluation.comparison import SuccessRate
    from vlatrack.evaluation.rows import EpisodeRow
    from vlatrack.runner.closed_loop import Options, SimulatedEvaluation


def evaluate_and_show(
    path: str, evaluation: Path, *, checkpoint: str | None, overrides: Sequence[str], options: "Options"
) -> None:
    """Evaluate, and show how it goes; of the processes of torchrun, rank 0 does."""
    from vlatrack.runner.processes import process_on_its_own

    with process_on_its_own() as rank:
        console = result_console(quiet=rank > 0)
        _evaluate(console, path, evaluation, checkpoint=checkpoint, overrides=overrides, options=options)


def _evaluate(
    console: Console,
    path: str,
    evaluation: Path,
    *,
    checkpoint: str | None,
    overrides: Sequence[str],
    options: "Options",
) -> None:
    from vlatrack.runner.closed_loop import evaluate_in_simulator

    with Bars(console) as bars:

        def show(rows: Sequence["EpisodeRow"], total: int) -> None:
            bars.advance("episodes", len(rows), total, unit="episode", details=[rate_text(_rate_of(rows))])

        found = evaluate_in_simulator(
            path,
            evaluation,
            checkpoint=checkpoint,
            overrides=overrides,
            options=options,
            on_stage=lambda text: console.print(f"[dim]{text} …[/dim]"),
            on_episode=show,
        )
    _show_result(console, found)


def result_console(*, quiet: bool = False) -> Console:
    """For tables of results: a file has no width that they would have to fit into."""
    console = Console(highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = WIDTH_OF_FILES
    return console


def rate_text(rate: "SuccessRate") -> str:
    """`13/20  65.0%  [43.3%, 81.9%], 1 error`."""
    errors = f", {rate.errors} error{'s' if rate.errors > 1 else ''}" if rate.errors else ""
    if rate.rate is None:
        return f"no valid episode{errors}"
    low, high = rate.wilson
    return f"{rate.successes}/{rate.valid}  {rate.rate:.1%}  [{low:.1%}, {high:.1%}]{errors}"


def _rate_of(rows: Sequence["EpisodeRow"]) -> "SuccessRate":
    from vlatrack.evaluation.comparison import SuccessRate

    counts = Counter(row.outcome for row in rows)
    return SuccessRate(len(rows), counts["success"], counts["error"])


def _show_result(console: Console, found: "SimulatedEvaluation") -> None:
    from vlatrack.evaluation.comparison import success_by_task, success_rate

    table = Table("task", "success", box=None, pad_edge=False)
    for task, rate in success_by_task(found.table).items():
        table.add_row(task, rate_text(rate))
    table.add_row("all episodes", rate_text(success_rate(found.table)))
    console.print(table)
    lines = [f"episode set {found.digest[:12]}; intervals: Wilson, 95 %"]
    lines += [f"evaluated by force: {text}" for text in found.forced]
    if found.unknown:
        told = ", ".join(found.unknown)
        lines.append(f"not compared with the training data, of which it is not known: {told} (data.recorded)")
    if found.spent.simulating:
        share = found.spent.simulating / found.spent.total
        lines.append(f"took {timedelta(seconds=round(found.spent.total))}, {share:.1%} of it in the simulator")
    videos = sum(bool(row.video) for row in found.rows)
    lines.append(f"written to {_shown(found.folder)}" + (f", {videos} videos" if videos else ""))
    if found.delivery is not None:
        lines += [delivery_line(share) for share in found.delivery.backends]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _shown(path: Path) -> str:
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
