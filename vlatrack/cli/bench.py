"""`vlatrack bench`: how fast vlatrack is on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vlatrack.cli.bench_act import act
from vlatrack.cli.bench_data import data
from vlatrack.cli.bench_figures import HEADING, Figure, write_figures
from vlatrack.cli.bench_serve import serve
from vlatrack.cli.bench_train import train
from vlatrack.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from vlatrack.bench.tracking import LoggingSpeed

app = typer.Typer(help="Measure how fast vlatrack is on this machine.", no_args_is_help=True, rich_markup_mode="rich")


app.command()(train)
app.command()(act)
app.command()(data)
app.command()(serve)


@app.callback()
def benchmarks() -> None:
    """Measure how fast vlatrack is on this machine."""


@dataclass(frozen=True)
class Sizes:
    """How much each part of the benchmark measures."""

    calls: int
    records: int
    journal: int
    experiment: Path
    pairs: int


@app.command()
def tracking(
    only: Annotated[
        str, typer.Option(metavar="PARTS", help="Parts to measure: logging, delivery, journal, steps.")
    ] = "logging,delivery,journal,steps",
    calls: Annotated[int, typer.Option(min=1000, help="logging: calls of run.log.")] = 20_000,
    records: Annotated[int, typer.Option(min=2000, help="delivery: records to catch up with, of one metric.")] = 50_000,
    journal: Annotated[
        int, typer.Option(min=1000, help="journal: its records; 10000000 need 1.3 GB of disk.")
    ] = 300_000,
    experiment: Annotated[
        Path, typer.Option(help="steps: the experiment whose training steps are timed, tracking on and off.")
    ] = Path("experiments/quickstart.yaml"),
    pairs: Annotated[int, typer.Option(min=2, help="steps: pairs of blocks; 20 resolve 1 %, in 8 minutes.")] = 2,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the figures as JSON.")] = Path(
        "bench-tracking.json"
    ),
) -> None:
    """Measure logging and health, delivery to MLflow, the use of a long journal, and training steps; under 3 minutes.

    Exits with 1 if a figure misses its bound. Other load on the machine affects the figures. If the command is stopped,
    the figures measured so far are in the file.

    Examples:

    [bold]vlatrack bench tracking --only logging,delivery[/bold]

    The long one, about 15 minutes: [bold]vlatrack bench tracking --records 1000000 --journal 10000000 --pairs 20[/bold]
    """
    import signal
    import tempfile

    from vlatrack.cli.progress import prepare_process

    parts = _chosen_parts(only)
    if "steps" in parts:
        _check_experiment(experiment)
    sizes = Sizes(calls, records, journal, experiment, pairs)
    output.open("a").close()  # fails now, not after minutes
    prepare_process()
    from rich.console import Console

    from vlatrack.cli.bars import StillAtIt

    for ending in (signal.SIGTERM, signal.SIGHUP):  # by an exception, so that a suspended delivery process is resumed
        signal.signal(ending, _end)
    console = Console(highlight=False)
    console.print(HEADING, soft_wrap=True)
    figures: list[Figure] = []
    try:
        with tempfile.TemporaryDirectory(prefix="vlatrack-bench-") as name:
            for number, part in enumerate(parts, 1):
                with StillAtIt(console, f"part {number} of {len(parts)}: {part}"):
                    for figure in PARTS[part](Path(name), sizes):
                        figures.append(figure)
                        console.print(figure.line, style="" if figure.kept else "red", soft_wrap=True)
                        write_figures(output, figures)
    except (KeyboardInterrupt, SystemExit):
        console.print(f"stopped; {len(figures)} figures are in {output}", soft_wrap=True)
        raise
    console.print(f"wrote {output}", soft_wrap=True)
    if not all(figure.kept for figure in figures):
        raise typer.Exit(1)


def _end(number: int, frame: "FrameType | None") -> NoReturn:
    raise SystemExit(128 + number)


def _chosen_parts(only: str) -> list[str]:
    wanted = [part.strip() for part in only.split(",")]
    if unknown := [part for part in wanted if part not in PARTS]:
        raise SpecError(f"--only {only}: no part {unknown[0]!r}; choose from {', '.join(PARTS)}, separated by commas")
    return [part for part in PARTS if part in wanted]


def _check_experiment(file: Path) -> None:
    """Check it now: the steps are measured last, after minutes."""
    from vlatrack.spec.load import load_spec

    if not file.exists():
        raise SpecError(f"{file}: no such file; name one with --experiment, or leave steps out with --only")
    load_spec(file)


def _logging(folder: Path, sizes: Sizes) -> "Iterator[Figure]":
    from vlatrack.bench.tracking import measure_health, measure_logging, measure_logging_while_trackers_are_down

    yield from _logging_figures(measure_logging(folder / "e" / "log", sizes.calls), "")
    down = measure_logging_while_trackers_are_down(folder / "e" / "down", sizes.calls)
    yield from _logging_figures(down, ", trackers down")
    # Ten records a second are looked at with a hundredth of a core.
    yield Figure("health of a record of 20 scalars", measure_health(sizes.calls), "us", 1000)


def _delivery(folder: Path, sizes: Sizes) -> "Iterator[Figure]":
    from vlatrack.bench.tracking import SCALARS, measure_delivery

    (sustained,) = measure_delivery(folder / "sustained", [max(sizes.records // 20, 1000)], SCALARS)
    what = f"delivery of {sustained.metrics:,} metrics to MLflow SQLite"
    yield Figure(what, sustained.metrics_per_s, "metrics/s", 8000, at_most=False)
    half, whole = measure_delivery(folder / "catch-up", [sizes.records // 2, sizes.records], 1)
    growth = whole.seconds / half.seconds / (whole.records / half.records)
    what = f"catch-up of {whole.records:,} records"
    yield Figure(f"{what}, metrics", whole.metrics_per_s, "metrics/s", 8000, at_most=False)
    yield Figure(f"{what}, peak memory", max(half.peak_mb, whole.peak_mb), "MB", 300)
    yield Figure(f"{what}, relative cost", growth, "", 1.25)


def _journal(folder: Path, sizes: Sizes) -> "Iterator[Figure]":
    from vlatrack.bench.tracking import measure_journal

    long = measure_journal(folder / "e" / "long", sizes.journal)
    for what, seconds in {"opening": long.open_s, "tailing": long.tail_s, "status": long.status_s}.items():
        yield Figure(f"journal of {long.records:,} records, {what}", seconds, "s", 1)


def _steps(folder: Path, sizes: Sizes) -> "Iterator[Figure]":
    from vlatrack.bench.steps import measure_step_time

    steps = measure_step_time(sizes.experiment, folder / "runs", sizes.pairs)
    trackers, (low, high) = " + ".join(steps.trackers), steps.interval
    yield Figure("training step, tracking off", steps.off_mean_s * 1e3, "ms", None)
    what = f"training step, {trackers} on against off (95 %: {low:.3f} to {high:.3f})"
    yield Figure(what, steps.ratio, "", 1.01)
    yield Figure("delivery process while training", steps.delivery_load * 100, "% of a core", None)


PARTS: "Mapping[str, Callable[[Path, Sizes], Iterator[Figure]]]" = {
    "logging": _logging,
    "delivery": _delivery,
    "journal": _journal,
    "steps": _steps,
}


def _logging_figures(speed: "LoggingSpeed", when: str) -> "Iterator[Figure]":
    yield Figure(f"run.log of 20 scalars, p50{when}", speed.p50_us, "us", 30)
    yield Figure(f"run.log of 20 scalars, p99{when}", speed.p99_us, "us", 200)
    yield Figure(f"run.log of 20 scalars{when}", speed.calls_per_s, "calls/s", 20_000, at_most=False)
