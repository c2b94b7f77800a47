"""`vlatrack bench act`: what acting with a policy costs on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from vlatrack.cli.acting_options import Dtype
from vlatrack.cli.completion import complete_setting


def act(
    file: Annotated[Path, typer.Argument(help="The experiment's YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Changes to it.", show_default=False, autocompletion=complete_setting
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each way is measured, in turns.")] = 10,
    dtype: Annotated[Dtype | None, typer.Option(help="Measure also what computes in it.", show_default=False)] = None,
    compile_layers: Annotated[bool, typer.Option("--compile", help="Measure also compiled layers.")] = False,
    static_cache: Annotated[
        bool, typer.Option("--static-cache", help="Measure also with keys and values that stay in their place.")
    ] = False,
    output: Annotated[Path, typer.Option("--json", help="File for the figures as JSON.")] = Path("bench-act.json"),
) -> None:
    """Measure acting: the continuous head against the bare pass over the prompt, and the action tokens of a chunk
    decoded side by side against one after another. Options that `vlatrack serve` has, too, are measured beside it in
    turns.

    Needs neither data nor weights: the weights are random, and the prompt is as long as the experiment's longest.

    Example:

    [bold]vlatrack bench act experiments/quickstart.yaml backbone.preset=small action_head.time_horizon=10
    action_head.action_dim=7[/bold]
    """
    import json
    import sys
    from dataclasses import asdict
    from datetime import UTC, datetime

    from vlatrack.cli.progress import prepare_process

    output.open("a").close()  # fails now, not after minutes
    prepare_process()
    from rich.console import Console

    from vlatrack.bench.act import measure_acting
    from vlatrack.cli.bars import Bars
    from vlatrack.runner.manifest import describe_machine
    from vlatrack.spec.identity import flatten
    from vlatrack.spec.load import load_spec

    spec = load_spec(file, overrides or [])
    with Bars(Console(highlight=False)) as bars:
        cost = measure_acting(
            spec,
            rounds=rounds,
            dtype=None if dtype is None else dtype.value,
            compiles=compile_layers,
            static_cache=static_cache,
            on_round=lambda done: bars.advance("measuring", done, rounds, unit="round"),
        )
    same = "the same tokens" if cost.same_tokens else "OTHER TOKENS, as ties in bf16 may bring"
    for label, text in (
        ("policy", f"{cost.parameters:,} parameters, prompt of {cost.prompt} tokens, on {cost.device}"),
        ("chunk", f"{cost.horizon} steps x {cost.action_dim} numbers"),
        ("prompt alone", _milliseconds(cost.prefill_s)),
        ("head", f"{_milliseconds(cost.head_s)}, {cost.head_ratio:.2f} x the prompt alone"),
        (
            "tokens",
            f"{_milliseconds(cost.blocks_s)} side by side, {_milliseconds(cost.one_by_one_s)} one after another",
        ),
        ("decoding", f"{cost.speed_up:.1f} x as fast side by side, {same}"),
    ):
        typer.echo(f"{label:<14}{text}")
    if (asked := cost.asked) is not None:
        same = "the same tokens" if asked.same_tokens else "other tokens"
        typer.echo(f"{'as asked':<14}head {_milliseconds(asked.head_s)}, {asked.head_gain:.2f} times as fast")
        typer.echo(f"{'':<14}tokens {_milliseconds(asked.blocks_s)}, {asked.blocks_gain:.2f} times as fast, {same}")
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        **describe_machine(),
        "settings": flatten(spec),
        "cost": asdict(cost),
    }
    output.write_text(json.dumps(content, indent=1) + "\n")
    typer.echo(f"wrote {output}")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
