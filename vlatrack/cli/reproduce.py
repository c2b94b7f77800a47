"""`vlatrack reproduce`: run a recorded run again, and say whether the same came of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.cli.show import RecordedRunWord
from vlatrack.tracking.printable import printable

if TYPE_CHECKING:
    from vlatrack.runner.reproduction.reproduce import Reproduction


def reproduce(
    run: RecordedRunWord,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Train and compare so many steps only.", show_default=False)
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Use the code and packages that are here, and list how they differ.")
    ] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Uncommitted code that an archive holds may run.")
    ] = False,
    track: Annotated[bool, typer.Option("--track", help="Deliver the new run to the trackers of its spec.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder of all runs; the new one is made there.")] = Path("runs"),
) -> None:
    """Run a recorded run again, from its code, packages and data, and compare the two record by record.

    Data and statistics are compared first: if they are not what they were, nothing is trained. Code that differs is
    checked out into a worktree, packages that differ are installed into an environment of its own; both are removed
    afterwards. Metrics that measure time or the machine are left out.

    Exit codes: 0 identical or within the tolerance, which is printed; 1 it differs; 2 it cannot be repeated.

    Examples:

    [bold]vlatrack reproduce latest --steps 50[/bold]

    [bold]vlatrack reproduce quickstart.tar.gz --here[/bold]
    """
    from vlatrack.cli.progress import prepare_process

    prepare_process()
    from vlatrack.runner.reproduction.reproduce import reproduce_run

    result = reproduce_run(
        run,
        runs=runs,
        steps=steps,
        here=here,
        trust_code=trust_code,
        track=track,
        tell=lambda line: typer.echo(printable(line)),
    )
    for line in _told(result):
        typer.echo(printable(line))
    if not result.reproduced:
        raise typer.Exit(1)


def _told(result: "Reproduction") -> list[str]:
    records, tolerance = result.records, result.tolerance
    if records is None or tolerance is None:
        return ["DIFFERS  the data is not what it was, so nothing was trained"]
    compared = f"{records.values} values of {records.metrics} metrics up to step {records.last_step}"
    lines = [f"tolerance {tolerance.relative:g}, relative: {tolerance.why}", f"run {result.run}"]
    first = records.first
    if first is None:
        return [*lines, f"IDENTICAL  {compared}"]
    where = f"step {first.step} in {first.metric}: {_value(first.recorded)} then, {_value(first.now)} now"
    if records.verdict == "within tolerance":
        return [*lines, f"WITHIN TOLERANCE  {compared}; largest difference {records.largest:.3g}, the first at {where}"]
    return [*lines, f"DIFFERS  from {where}"]


def _value(value: float | None) -> str:
    return "not logged" if value is None else repr(value)
