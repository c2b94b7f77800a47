"""`vlatrack bench serve`: what serving a policy costs on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from vlatrack.cli.evaluate import Checkpoint


def serve(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="As `vlatrack serve` takes it.", show_default=False)],
    checkpoint: Checkpoint = None,
    clients: Annotated[int, typer.Option(min=2, help="Clients at once, beside one.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured, in turns.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="For which answers are counted each time.")] = 3.0,
    output: Annotated[Path, typer.Option("--json", help="File for the figures as JSON.")] = Path("bench-serve.json"),
) -> None:
    """Measure serving: the round trip of one client beside act(), and the answers a second to one and to many clients.

    Example: [bold]vlatrack bench serve runs/metaworld-quickstart/20260101-120000-ab12[/bold]
    """
    import json
    import sys
    from dataclasses import asdict
    from datetime import UTC, datetime

    from vlatrack.cli.progress import prepare_process
    from vlatrack.serving.packages import require_packages

    require_packages()
    output.open("a").close()  # fails now, not after minutes
    prepare_process()
    from rich.console import Console

    from vlatrack.bench.serve import measure_serving
    from vlatrack.cli.bars import Bars
    from vlatrack.runner.acting import Policy
    from vlatrack.runner.manifest import describe_machine

    loaded = Policy.load(policy, checkpoint=checkpoint)
    with Bars(Console(highlight=False)) as bars:
        cost = measure_serving(
            loaded,
            clients=clients,
            rounds=rounds,
            seconds=seconds,
            on_round=lambda done: bars.advance("measuring", done, rounds, unit="round"),
        )
    for label, text in (
        ("policy", f"{loaded.name}, {loaded.sha256[:12]}"),
        ("act()", f"{cost.act_s * 1e3:.2f} ms with {cost.images} images of 224 x 224"),
        (
            "round trip",
            f"{cost.round_trip_s * 1e3:.2f} ms, {cost.added_s * 1e3:.2f} ms over act(); "
            f"fastest over fastest {cost.least_added_s * 1e3:.2f} ms",
        ),
        ("1 client", f"{cost.one_client_per_s:.1f} answers a second"),
        (
            f"{clients} clients",
            f"{cost.clients_per_s:.1f} answers a second, {cost.gain:.2f} x one; {cost.batch_mean:.1f} a pass, "
            f"each for 1/{cost.cpu_gain:.2f} of the CPU time",
        ),
    ):
        typer.echo(f"{label:<14}{text}")
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        **describe_machine(),
        "policy_sha256": loaded.sha256,
        "cost": asdict(cost),
    }
    output.write_text(json.dumps(content, indent=1) + "\n")
    typer.echo(f"wrote {output}")
