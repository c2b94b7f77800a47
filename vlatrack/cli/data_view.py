"""`vlatrack data view`: an episode of a dataset as a video, or in Rerun."""

from pathlib import Path
from typing import Annotated

import typer

from vlatrack.cli.dataset_options import (
    ACTION,
    INSTRUCTION,
    SPLIT,
    STATE,
    Action,
    Fps,
    Instruction,
    Split,
    State,
)

VIDEO, RECORDING = ".mp4", ".rrd"


def view(
    path: Annotated[Path, typer.Argument(help="The dataset, in any format that vlatrack reads.", show_default=False)],
    episode: Annotated[int, typer.Option(min=0, help="Index of the episode.")] = 0,
    camera: Annotated[list[str] | None, typer.Option(help="Camera to show; repeatable.", show_default="all")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for the video (.mp4), or for Rerun (.rrd).", show_default=False),
    ] = None,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Show it in Rerun; with -o FILE.rrd write it for that.")
    ] = False,
    action: Action = ACTION,
    state: State = STATE,
    fps: Fps = None,
    split: Split = SPLIT,
    instruction: Instruction = INSTRUCTION,
) -> None:
    """Show an episode: all cameras side by side, the instruction, and the numbers of the action.

    Example: [bold]vlatrack data view experiments/data/metaworld-mini --episode 3 -o episode-3.mp4[/bold]

    In Rerun, which needs the extra of its name: [bold]vlatrack data view demos --episode 3 --rerun[/bold]
    """
    from rich.console import Console

    from vlatrack.cli.bars import Bars
    from vlatrack.data.formats.opening import open_dataset
    from vlatrack.data.view.choice import chosen_cameras, find_episode
    from vlatrack.data.view.rerun import show_recording, write_recording
    from vlatrack.data.view.video import write_video
    from vlatrack.errors import DataError
    from vlatrack.tracking.printable import printable

    if output is None and not rerun:
        raise DataError("give -o FILE.mp4 for a video, -o FILE.rrd for a recording of Rerun, or --rerun to see it now")
    if output is not None and output.suffix not in ((RECORDING,) if rerun else (VIDEO, RECORDING)):
        kinds = RECORDING if rerun else f"{VIDEO} or {RECORDING}"
        raise DataError(f"{output}: expected a file that ends with {kinds}")
    source = open_dataset(path, action=action, state=state, fps=fps, split=split, instruction=instruction)
    cameras, chosen = chosen_cameras(source, camera), find_episode(source, episode)
    with Bars(Console(stderr=True, highlight=False)):
        if output is None:
            show_recording(source, chosen, cameras)
            return
        write = write_video if output.suffix == VIDEO else write_recording
        write(source, chosen, cameras, output)
    seconds = chosen.length / source.fps
    shown = printable(", ".join(cameras))
    typer.echo(f"wrote {output}: episode {episode}, {chosen.length:,} steps, {seconds:.1f} s, {shown}")
