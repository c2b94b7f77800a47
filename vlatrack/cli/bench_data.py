"""`vlatrack bench data`: what data costs on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.cli.bench_figures import HEADING, Figure, write_figures
from vlatrack.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def data(
    only: Annotated[
        str, typer.Option(metavar="PARTS", help="Parts to measure: batches, tokens, start, images, video, passes.")
    ] = "batches,tokens,start,images,video,passes",
    samples: Annotated[
        int,
        typer.Option(
            min=100,
            help="Samples of 1,200 tokens; images: a hundredth of them; video: half as many frames; passes: ten times "
            "as many steps.",
        ),
    ] = 20_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each way is measured, in turns.")] = 3,
    frames: Annotated[
        int, typer.Option(min=10_000, help="start: frames of the dataset; 10000000 need 1.5 GB of disk and minutes.")
    ] = 1_000_000,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the figures as JSON.")] = Path(
        "bench-data.json"
    ),
) -> None:
    """Measure samples into batches against one pickle a sample, tokens of text, state and actions, the warm start and
    the memory of a large dataset, image tokens against the bare encoder, video against PyAV alone, and statistics and
    checks against reading; synthetic data, about 8 minutes.

    Exits with 1 if a figure misses its bound. Other load on the machine affects the figures.

    Examples:

    [bold]vlatrack bench data --only batches[/bold]

    Quick: [bold]vlatrack bench data --samples 500 --rounds 1 --frames 10000[/bold]

    The large one: [bold]vlatrack bench data --only start --frames 10000000[/bold]
    """
    import tempfile

    parts = [part.strip() for part in only.split(",")]
    if unknown := [part for part in parts if part not in PARTS]:
        raise SpecError(f"--only {only}: no part {unknown[0]!r}; choose from {', '.join(PARTS)}, separated by commas")
    output.open("a").close()  # fails now, not after minutes
    from rich.console import Console

    from vlatrack.cli.bars import StillAtIt

    console = Console(highlight=False)
    console.print(HEADING, soft_wrap=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="vlatrack-bench-") as name:
        for number, part in enumerate(parts, 1):
            with StillAtIt(console, f"part {number} of {len(parts)}: {part}"):
                for figure in PARTS[part](Path(name) / part, samples, rounds, frames):
                    figures.append(figure)
                    console.print(figure.line, style="" if figure.kept else "red", soft_wrap=True)
                    write_figures(output, figures)
    console.print(f"wrote {output}", soft_wrap=True)
    if not all(figure.kept for figure in figures):
        raise typer.Exit(1)


def _batches(folder: Path, samples: int, rounds: int, frames: int) -> "Iterator[Figure]":
    from statistics import median

    from vlatrack.bench.data import measure_batches

    folder.mkdir()
    speed = measure_batches(folder, samples=samples, rounds=rounds)
    what = f"{speed.samples:,} samples of {speed.tokens:,} tokens into batches"
    yield Figure(what, median(speed.own_us), "us", None)
    yield Figure(f"{what}, one pickle a sample", median(speed.pickle_us), "us", None)
    yield Figure(f"{what}, against pickles", speed.ratio, "x", 20, at_most=False)


def _tokens(folder: Path, samples: int, rounds: int, frames: int) -> "Iterator[Figure]":
    from vlatrack.bench.data import measure_tokens

    speed = measure_tokens(folder, samples=samples)
    yield Figure("text, state and action tokens", speed, "samples/s", 10_000, at_most=False)


def _start(folder: Path, samples: int, rounds: int, frames: int) -> "Iterator[Figure]":
    from vlatrack.bench.data import measure_warm_start

    small = measure_warm_start(folder / "small", frames=max(10_000, frames // 100))
    large = measure_warm_start(folder / "large", frames=frames)
    yield Figure(f"warm start, {large.frames:,} frames", large.seconds, "s", 10)
    yield Figure(f"private memory, {small.frames:,} frames", small.private_mb, "MB", 100)
    yield Figure(f"private memory, {large.frames:,} frames", large.private_mb, "MB", 100)
    yield Figure(f"a sample into a batch, {small.frames:,} frames", small.batch_us, "us", None)
    yield Figure(f"a sample into a batch, {large.frames:,} frames", large.batch_us, "us", None)


def _video(folder: Path, samples: int, rounds: int, frames: int) -> "Iterator[Figure]":
    from vlatrack.bench.data_video import IMAGE_SIZE, measure_video, measure_video_memory

    speed = measure_video(folder, frames=samples // 20, rounds=rounds)
    lean, plain = speed.beside_lean, speed.beside_plain
    yield Figure(f"video of {IMAGE_SIZE} x {IMAGE_SIZE} pixels", speed.frames_per_s, "frames/s", None)
    yield Figure("video, time against PyAV alone", lean.wall_ratio, "x", 1.2)
    yield Figure("video, time of processors against PyAV alone", lean.cpu_ratio, "x", 1.2)
    yield Figure("video, time against PyAV's to_ndarray", plain.wall_ratio, "x", None)
    for length in (samples // 20, samples // 2):
        peak = measure_video_memory(folder, frames=length)
        yield Figure(f"video, private memory at the peak, {length:,} frames", peak, "MB", 200)


def _passes(folder: Path, samples: int, rounds: int, frames: int) -> "Iterator[Figure]":
    from vlatrack.bench.data_passes import measure_images, measure_numbers

    numbers = measure_numbers(folder / "numbers", steps=10 * samples, rounds=rounds)
    yield Figure(f"statistics and checks of {numbers.steps:,} steps", numbers.costs.own_s, "s", None)
    images = measure_images(folder / "images", steps=samples // 10, rounds=rounds)
    yield Figure(f"statistics and checks of {images.steps:,} steps with all frames", images.costs.own_s, "s", None)
    for what, measured in (("the numbers", numbers), ("numbers and frames", images)):
        yield Figure(f"the same, time against reading {what}", measured.costs.wall_ratio, "x", 1.5)
        yield Figure(f"the same, time of processors against reading {what}", measured.costs.cpu_ratio, "x", 1.5)


def _images(folder: Path, samples: int, rounds: int, frames: int) -> "Iterator[Figure]":
    import torch

    from vlatrack.bench.image_tokens import measure_image_tokens

    threads = f"threads: {torch.get_num_threads()}"
    for speed in measure_image_tokens(images=max(8, samples // 100), rounds=rounds):
        what = f"image tokens, {speed.encoder}, {speed.image_size} pixels"
        yield Figure(f"{what}, bare encoder, {threads}", speed.tokens_per_s(speed.bare_s), "tokens/s", None)
        for name, seconds in (("in size", speed.in_size_s), ("to be resized", speed.resized_s)):
            costly = speed.encoder in ("chameleon", "convolutions") or (speed.encoder, name) == ("squares", "in size")
            yield Figure(f"{what}, frames {name}", speed.tokens_per_s(seconds), "tokens/s", None)
            yield Figure(
                "the same, of the bare encoder", speed.share(seconds), "x", 0.8 if costly else None, at_most=False
            )


PARTS: "Mapping[str, Callable[[Path, int, int, int], Iterator[Figure]]]" = {
    "batches": _batches,
    "tokens": _tokens,
    "start": _start,
    "video": _video,
    "passes": _passes,
    "images": _images,
}
