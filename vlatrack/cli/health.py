"""`vlatrack health`: what the detectors find in a run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vlatrack.tracking.printable import printable

UNHEALTHY = 1


def health(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Run the detectors over the journal of a run, and print the verdict and what they found.

    The thresholds are those that the run was trained with, or else the defaults. Exit code 0: healthy; 1: at least one
    fault was found; 2: there is no such run, or it cannot be read.

    Examples:

    [bold]vlatrack health runs/metaworld-quickstart/20260101-120000-ab12[/bold]

    [bold]vlatrack health runs/metaworld-quickstart/20260101-120000-ab12 --json[/bold]
    """
    from vlatrack.health.finding import HEALTHY, verdict
    from vlatrack.tracking.health import health_of
    from vlatrack.tracking.journal.records import JournalDamage

    damage = JournalDamage(run / "journal.jsonl")
    findings = health_of(run, damage=damage)
    told = verdict(findings)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "verdict": told,
                    "findings": [_plain(finding.data()) for finding in findings],
                    "damaged": damage.told(),
                },
                indent=1,
            )
        )
    else:
        typer.echo(printable(f"{run}: {told}"))
        if (damaged := damage.told()) is not None:
            typer.echo(damaged)
        for finding in findings:
            typer.echo(printable(f"{finding.severity} {finding.detector}: {finding.line()}"))
    if told != HEALTHY:
        raise typer.Exit(UNHEALTHY)


def _plain(data: dict[str, str | int | float]) -> dict[str, str | int | float]:
    """JSON knows no NaN and no infinities: as text, as in the journal."""
    value = data["value"]
    if isinstance(value, float) and value - value != 0:
        return data | {"value": {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]}
    return data
