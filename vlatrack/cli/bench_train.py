"""`vlatrack bench train`: what the training steps of an experiment cost on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlatrack.cli.completion import complete_setting
from vlatrack.training.callback import Callback

if TYPE_CHECKING:
    from rich.console import Console

    from vlatrack.bench.train import TrainingCost
    from vlatrack.cli.bars import Bars
    from vlatrack.spec.experiment import ExperimentSpec
    from vlatrack.training.state import TrainState

_GIB = 1 << 30
_PHASES = {
    "data_wait_s": "data",
    "forward_s": "forward",
    "backward_s": "backward",
    "optimiser_s": "optimiser",
    "exchange_s": "exchange",
    "metrics_s": "metrics",
    "tracking_s": "tracking",
}


def train(
    file: Annotated[Path, typer.Argument(help="The experiment's YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes to it, such as train.micro_batch=4.",
            show_default=False,
            autocompletion=complete_setting,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps; as many before them are not measured.")] = 10,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Keep only so many layers of the backbone.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--json", help="File for the figures as JSON.")] = Path("bench-train.json"),
) -> None:
    """Measure training steps: speed, share of the chip that is used, where the time and the memory go.

    Needs neither data nor weights: the weights are random, and each row is as long as the experiment's longest sample.
    Nothing is evaluated, saved or sent to a tracker.

    Examples:

    [bold]vlatrack bench train experiments/quickstart.yaml[/bold]

    8 layers of the 7B with 8 rows on one GPU:

    [bold]vlatrack bench train experiments/libero_goal.yaml data.samples=\\[vla] backbone.max_seq_len=1208
    train.batch_size=8 --layers 8[/bold]

    With train.deterministic=true, the same is measured without it too, and the line "deterministic" says what it costs:

    [bold]vlatrack bench train experiments/quickstart.yaml train.deterministic=true[/bold]
    """
    import sys

    from vlatrack.cli.progress import prepare_process

    output.open("a").close()  # fails now, not after minutes
    prepare_process()
    from rich.console import Console

    from vlatrack.cli.bars import Bars
    from vlatrack.runner.processes import joined_process_group
    from vlatrack.spec.load import load_spec

    spec, console = load_spec(file, overrides or []), Console(highlight=False)
    with joined_process_group() as group:
        from vlatrack.bench.memory import assumed_7b
        from vlatrack.bench.train import measure_training, measure_without_deterministic

        if group.is_main_process and (checkpoint := assumed_7b(spec)) is not None:
            told = f"assumed: {checkpoint}, which is not here, has the sizes of the 7b preset"
            console.print(told, markup=False)
        with Bars(console) as bars:
            shown = _ShownSteps(bars)
            plain_s = measure_without_deterministic(spec, steps=steps, layers=layers, group=group, callback=shown)
            cost = measure_training(spec, steps=steps, layers=layers, group=group, callback=shown)
    if cost is not None:
        _print(console, cost, plain_s)
        _write(output, spec, cost, plain_s, sys.argv)
        console.print(f"wrote {output}", soft_wrap=True)


class _ShownSteps(Callback):
    def __init__(self, bars: "Bars") -> None:
        self._bars, self._total = bars, 0

    def on_train_start(self, state: "TrainState", total_steps: int, epochs: int) -> None:
        self._total = total_steps
        self.on_step(state)

    def on_step(self, state: "TrainState") -> None:
        self._bars.advance("measuring", state.step, self._total, unit="step")


def _print(console: "Console", cost: "TrainingCost", plain_s: float | None) -> None:
    """`plain_s` is the step time without `train.deterministic`, if the experiment has it."""
    speeds = cost.speeds
    step = speeds["step_time_s"]
    lines = [
        ("device", cost.device if cost.processes == 1 else f"{cost.processes} x {cost.device}"),
        ("policy", f"{cost.parameters:,} parameters, {cost.trainable:,} trainable, {cost.layers} layers"),
        ("step", f"{cost.rows} rows x {cost.tokens} tokens ({cost.longest_row})"),
        ("step time", f"{_seconds(step)}, mean of {cost.steps}"),
    ]
    if plain_s is not None:
        lines.append(("deterministic", f"{step / plain_s:.2f} times the step time without, {_seconds(plain_s)}"))
    lines += [
        (f"  {label}", f"{_seconds(speeds[name])}  {speeds[name] / step:6.1%}") for name, label in _PHASES.items()
    ]
    lines += [
        ("samples", f"{speeds['samples_per_s']:,.2f} /s"),
        ("tokens", f"{speeds['tokens_per_s']:,.0f} /s without padding; {speeds['padding_share']:.1%} is padding"),
        ("arithmetic", f"{cost.flops / step / 1e12:.4g} TFLOP/s of {cost.flops / 1e12:.4g} TFLOP a step"),
        ("MFU", f"{speeds['mfu']:.1%}" if "mfu" in speeds else "unknown: this device is not in the table of chips"),
    ]
    if cost.floor is not None and cost.ratio is not None:
        parts = f"arithmetic {_seconds(cost.floor.arithmetic_s)}, memory {_seconds(cost.floor.memory_s)}"
        lines.append(("floor", f"{_seconds(cost.floor.total_s)} ({parts}; {cost.floor.source})"))
        lines.append(("step / floor", f"{cost.ratio:.2f}"))
    memory = cost.memory
    kept = f"weights {_gib(memory.weights)}, gradients {_gib(memory.gradients)}, states {_gib(memory.optimizer_states)}"
    if memory.peak is not None and memory.activations is not None:
        lines.append(("memory", f"{_gib(memory.peak)} GiB at the peak: {kept}, the rest {_gib(memory.activations)}"))
    else:
        lines.append(("memory", f"{kept} GiB; {speeds['memory_mib'] / 1024:.2f} GiB in the process"))
    for label, text in lines:
        console.print(f"{label:<15}{text}", soft_wrap=True)


def _write(
    output: Path, spec: "ExperimentSpec", cost: "TrainingCost", plain_s: float | None, command: list[str]
) -> None:
    import json
    from dataclasses import asdict
    from datetime import UTC, datetime

    from vlatrack.runner.manifest import describe_machine
    from vlatrack.spec.identity import flatten

    floor = None if cost.floor is None else asdict(cost.floor) | {"total_s": cost.floor.total_s}
    content: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        **describe_machine(),
        "settings": flatten(spec),
        "cost": asdict(cost)
        | {"floor": floor, "ratio_to_floor": cost.ratio, "step_time_without_deterministic_s": plain_s},
    }
    content["cost"]["memory"]["activations"] = cost.memory.activations
    output.write_text(json.dumps(content, indent=1) + "\n")


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}"
