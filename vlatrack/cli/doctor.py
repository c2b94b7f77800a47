"""`vlatrack doctor`: what this machine can do, and what to do about what it cannot."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vlatrack.cli.delivery import Runs
from vlatrack.tracking.printable import printable

UNFIT = 1
_COLORS = {"ok": "green", "note": "blue", "warning": "yellow", "error": "red"}


def doctor(
    runs: Runs = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each thing that was looked at.")] = False,
) -> None:
    """Look at what a training needs here: versions, processor, GPUs, disk, OpenGL, trackers, extras.

    Nothing is changed, and nothing is sent anywhere but a request to the trackers that your environment names. Exit
    code 1: something is broken, so that it would fail; what only some need is a note.

    Examples:

    [bold]vlatrack doctor[/bold]

    [bold]vlatrack doctor --runs /data/runs --json[/bold]
    """
    from vlatrack.cli.progress import prepare_process

    prepare_process()
    from vlatrack.runner.doctor import Verdict, examine, worst

    checks = []
    for check in examine(runs):
        checks.append(check)
        if as_json:
            typer.echo(json.dumps(asdict(check)))
            continue
        mark = typer.style(f"{check.verdict:<8}", fg=_COLORS[check.verdict])
        typer.echo(f"{mark} {check.subject:<14} {printable(check.found)}")
        if check.remedy:
            typer.echo(f"{'':<23} {printable(check.remedy)}")
    if worst(checks) is Verdict.ERROR:
        raise typer.Exit(UNFIT)
