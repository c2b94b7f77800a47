"""`vlatrack data convert`: any dataset as a LeRobot v3.0 one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from vlatrack.data.convert import Converted, ConvertProgress
    from vlatrack.errors import DataError


def convert(
    source: Annotated[Path, typer.Argument(help="The dataset, in any format that vlatrack reads.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new dataset.", show_default=False)],
    storage: Annotated[Literal["video", "png"], typer.Option(help="mp4 files, or png in the tables: exact.")] = "video",
    tasks: Annotated[
        list[str] | None, typer.Option(help="Only episodes of this task; repeatable.", show_default="all")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out episodes that cannot be read, and list them.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset.")] = False,
    robot_type: Annotated[str, typer.Option(help="Name of the robot, for meta/info.json.")] = "unknown",
    action: Action = ACTION,
    state: State = STATE,
    fps: Fps = None,
    split: Split = SPLIT,
    instruction: Instruction = INSTRUCTION,
) -> None:
    """Write a dataset of any format as a LeRobot v3.0 dataset, which appears when it is whole.

    Example: [bold]vlatrack data convert data/libero_goal -o libero-goal --storage png[/bold]

    RLDS, whose action is in several features: [bold]vlatrack data convert ur5/0.1.0 -o ur5 --fps 5
    --action action/world_vector,action/rotation_delta --instruction observation/natural_language_instruction[/bold]
    """
    from vlatrack.data.convert import convert as convert_dataset
    from vlatrack.data.formats.opening import open_dataset
    from vlatrack.envs.watched import ending_on_sigterm

    dataset = open_dataset(source, action=action, state=state, fps=fps, split=split, instruction=instruction)
    with ending_on_sigterm(), _progress_bar(output.name) as progress:
        converted = convert_dataset(
            dataset,
            output,
            storage=storage,
            tasks=tasks,
            robot_type=robot_type,
            skip_bad=skip_bad,
            overwrite=overwrite,
            on_bad=_tell,
            progress=progress,
        )
    typer.echo(f"wrote {output}: {_written(converted, len(dataset.cameras), storage)}, {_megabytes(output)}")


def _tell(_: int, error: "DataError") -> None:
    from vlatrack.tracking.printable import printable

    typer.echo(f"left out: {printable(str(error))}", err=True)


@contextmanager
def _progress_bar(name: str) -> "Iterator[ConvertProgress]":
    from rich.console import Console

    from vlatrack.cli.bars import Bars

    with Bars(Console()) as bars:

        def show(done: int, total: int, episodes: int) -> None:
            bars.advance(name, done, total, unit="step", details=[_counted(episodes, "episode")])

        yield show


def _written(converted: "Converted", cameras: int, storage: str) -> str:
    counts = f"{_counted(converted.episodes, 'episode')}, {_counted(converted.frames, 'step')}"
    text = f"{counts}, {_counted(len(converted.tasks), 'task')}, {_counted(cameras, 'camera')} as {storage}"
    bad = len(converted.bad)
    return f"{text}; {_counted(bad, 'bad episode')} left out" if bad else text


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _megabytes(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{size / 1e6:.1f} MB"
