"""`vlatrack bench`: how fast vlatrack is on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vlatrack.bench.steps import StepTime
    from vlatrack.bench.tracking import DeliverySpeed, JournalSpeed, LoggingSpeed

app = typer.Typer(help="Measure how fast vlatrack is on this machine.", no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def benchmarks() -> None:
    """Measure how fast vlatrack is on this machine."""


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value, and the bound that it should keep (`≤ 30 us`, `≥ 8000 /s`), if there is one."""

    what: str
    value: float
    unit: str
    bound: float | None
    at_most: bool = True

    @property
    def kept(self) -> bool:
        if self.bound is None:
            return True
        return self.value <= self.bound if self.at_most else self.value >= self.bound


@app.command()
def tracking(
    records: Annotated[int, typer.Option(min=1000, help="Records to catch up with, of one metric each.")] = 100_000,
    journal: Annotated[int, typer.Option(min=1000, help="Records of the long journal; 10000000 needs 1.3 GB.")] = (
        1_000_000
    ),
    calls: Annotated[int, typer.Option(min=1000, help="Calls of run.log.")] = 20_000,
    experiment: Annotated[
        Path, typer.Option(help="Experiment whose training steps are timed with tracking on and off.")
    ] = Path("experiments/quickstart.yaml"),
    pairs: Annotated[int, typer.Option(min=2, help="Pairs of blocks of such steps, six records in a block.")] = 20,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the figures as JSON.")] = Path(
        "bench-tracking.json"
    ),
) -> None:
    """Measure logging, delivery to MLflow on SQLite, the use of a long journal, and training steps; some minutes.

    Exits with 1 if a figure misses its bound. Other work on the machine shows in the figures.

    Example: [bold]vlatrack bench tracking --records 1000000 --journal 10000000[/bold]
    """
    from vlatrack.cli.progress import prepare_process

    prepare_process()
    import json
    import signal
    import tempfile

    from rich.console import Console

    from vlatrack.bench import tracking as bench

    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: a delivery process that is stopped just now must go on
        signal.signal(ending, signal.default_int_handler)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="vlatrack-bench-") as name, console.status("measuring"):
        folder = Path(name)
        log = bench.measure_logging(folder / "e" / "log", calls)
        down = bench.measure_logging_while_trackers_are_down(folder / "e" / "down", calls)
        (sustained,) = bench.measure_delivery(folder / "sustained", [max(records // 20, 1000)], bench.SCALARS)
        half, whole = bench.measure_delivery(folder / "catch-up", [records // 2, records], 1)
        long = bench.measure_journal(folder / "e" / "long", journal)
        steps = _measure_steps(experiment, folder / "runs", pairs, console)
    figures = [*_logging_figures(log, down), *_delivery_figures(sustained, half, whole), *_journal_figures(long)]
    figures += [] if steps is None else _step_figures(steps)
    _print(figures, console)
    output.write_text(json.dumps([vars(figure) | {"kept": figure.kept} for figure in figures], indent=2) + "\n")
    typer.echo(f"wrote {output}")
    if not all(figure.kept for figure in figures):
        raise typer.Exit(1)


def _measure_steps(experiment: Path, runs: Path, pairs: int, console: "Console") -> "StepTime | None":
    if not experiment.exists():
        console.print(f"training steps are left out: {experiment}: no such file; --experiment names another")
        return None
    from vlatrack.bench.steps import measure_step_time

    return measure_step_time(experiment, runs, pairs)


def _logging_figures(log: "LoggingSpeed", down: "LoggingSpeed") -> list[Figure]:
    return [
        figure
        for speed, when in ((log, ""), (down, ", trackers down"))
        for figure in (
            Figure(f"run.log of 20 scalars, p50{when}", speed.p50_us, "us", 30),
            Figure(f"run.log of 20 scalars, p99{when}", speed.p99_us, "us", 200),
            Figure(f"run.log of 20 scalars{when}", speed.calls_per_s, "calls/s", 20_000, at_most=False),
        )
    ]


def _delivery_figures(sustained: "DeliverySpeed", half: "DeliverySpeed", whole: "DeliverySpeed") -> list[Figure]:
    growth = whole.seconds / half.seconds / (whole.records / half.records)
    catch_up = f"catch-up of {whole.records:,} records"
    return [
        Figure(
            f"delivery of {sustained.metrics:,} metrics to MLflow SQLite",
            sustained.metrics_per_s,
            "metrics/s",
            8000,
            at_most=False,
        ),
        Figure(f"{catch_up}, metrics", whole.metrics_per_s, "metrics/s", 8000, at_most=False),
        Figure(f"{catch_up}, peak memory", max(half.peak_mb, whole.peak_mb), "MB", 300),
        Figure(f"{catch_up}, relative cost", growth, "", 1.25),
    ]


def _journal_figures(long: "JournalSpeed") -> list[Figure]:
    of = f"journal of {long.records:,} records"
    parts = {"opening": long.open_s, "tailing": long.tail_s, "status": long.status_s}
    return [Figure(f"{of}, {what}", seconds, "s", 1) for what, seconds in parts.items()]


def _step_figures(steps: "StepTime") -> list[Figure]:
    trackers, (low, high) = " + ".join(steps.trackers), steps.interval
    return [
        Figure("training step, tracking off", steps.off_mean_s * 1e3, "ms", None),
        Figure(f"training step, {trackers} on against off (95 %: {low:.3f} to {high:.3f})", steps.ratio, "", 1.01),
        Figure("delivery process while training", steps.delivery_load * 100, "% of a core", None),
    ]


def _print(figures: list[Figure], console: "Console") -> None:
    from rich.table import Table

    table = Table("what", box=None, pad_edge=False)
    for heading in ("measured", "wanted"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        wanted = "" if figure.bound is None else f"{'≤' if figure.at_most else '≥'} {figure.bound:,g} {figure.unit}"
        colour = "" if figure.kept else "red"
        table.add_row(figure.what, f"{_short(figure.value)} {figure.unit}", wanted, style=colour)
    console.print(table)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
