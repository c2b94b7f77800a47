"""`vlatrack data probe`: how much of where things are image tokens still tell."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vlatrack.data.probe import Fit, Probed, Reading

_Sizes = Annotated[list[int] | None, typer.Option(min=32, max=1024, show_default="64", help="Repeatable.")]
_Encoder = Annotated[Literal["squares", "projections", "convolutions"], typer.Option(help="As in the YAML.")]
_Codes = Annotated[list[int] | None, typer.Option(min=2, max=8192, show_default="512", help="Repeatable.")]


def probe(
    path: Annotated[Path, typer.Argument(help="Folder of a dataset.", show_default=False)],
    camera: Annotated[str | None, typer.Option(help="Camera to look through.", show_default="the first")] = None,
    number: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Number of the state that is to be read; repeatable.", show_default="0, 1 and 2"),
    ] = None,
    image_size: _Sizes = None,
    codebook_size: _Codes = None,
    encoder: Annotated[
        Literal["squares", "projections", "convolutions"], typer.Option(help="As in the YAML.")
    ] = "squares",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an image tokenizer, such as that of a run, instead of fitting.", show_default=False
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=30, max=5000, help="Frames, spread over all episodes.")] = 1500,
    folds: Annotated[int, typer.Option(min=3, max=20, help="Parts that episodes are dealt to.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Determines folds and codebooks.")] = 0,
) -> None:
    """Measure how well the position of the hand can be read from image tokens, compared with pixels.

    Ridge regression reads numbers of the state from the ids of a frame, from what its codes look like, and from the
    pixels of the same size, and is tested on other episodes than it was fitted to. At a ratio of 1, tokens tell as
    much as the pixels. Where the state does not begin with a position, choose its numbers with --number.

    Example: [bold]vlatrack data probe experiments/data/metaworld-mini --image-size 64 --codebook-size 256[/bold]
    """
    from functools import partial

    from rich.console import Console

    from vlatrack.cli.bars import Bars
    from vlatrack.data.formats.opening import open_dataset
    from vlatrack.data.probe import fitted, probe_frames, stored
    from vlatrack.data.probe import probe as measure

    source = open_dataset(path, action="action", state="observation.state")
    camera = camera or next(iter(source.cameras), "")
    tokenizers: dict[str, Fit] = {}
    if tokenizer is not None:
        tokenizers[str(tokenizer)] = stored(tokenizer)
    else:
        for size in image_size or [64]:
            for codes in codebook_size or [512]:
                name = f"{encoder}, {size} pixels, {codes:,} codes"
                tokenizers[name] = fitted(image_size=size, codebook_size=codes, encoder=encoder, seed=seed)
    console = Console(highlight=False, markup=False, emoji=False)
    results = {}
    with Bars(console) as bars:
        seen = probe_frames(source, source.episodes(), camera, numbers=number or [0, 1, 2], count=frames)
        for name, fit in tokenizers.items():
            advance = partial(bars.advance, name, total=folds, unit="fold")
            results[name] = measure(seen, fit, folds=folds, seed=seed, progress=advance)
    console.print(_table(results))
    console.print(f"{len(seen.frames):,} frames of {camera}; mean distance, and its least and largest of {folds} folds")


def _table(results: "dict[str, Probed]") -> "Table":
    from rich.table import Table

    table = Table("read from", "error", "folds", "to pixels", "folds", box=None, pad_edge=False)
    for name, found in results.items():
        table.add_row(name)
        rows = {"ids": found.ids, "looks of the codes": found.looks, "pixels": found.pixels, "nothing": found.blind}
        for label, reading in rows.items():
            table.add_row(f"  {label}", *_numbers(reading, found.pixels))
    return table


def _numbers(reading: "Reading", pixels: "Reading") -> list[str]:
    errors, ratios = reading.of_folds, reading.ratio(pixels)
    return [
        f"{reading.mean:.4g}",
        f"{errors.min():.3g} to {errors.max():.3g}",
        f"{reading.mean / pixels.mean:.2f}",
        f"{ratios.min():.2f} to {ratios.max():.2f}",
    ]
