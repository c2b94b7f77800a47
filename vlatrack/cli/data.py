"""`vlatrack data`: record demonstrations, and look at a dataset."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlatrack.cli.data_convert import convert
from vlatrack.cli.data_hub import pull, push
from vlatrack.cli.data_info import info
from vlatrack.cli.data_probe import probe
from vlatrack.cli.data_regenerate import regenerate_app
from vlatrack.cli.data_tokenize import tokenize
from vlatrack.cli.data_validate import validate
from vlatrack.cli.data_view import view
from vlatrack.cli.keeping import saying_what_is_kept

if TYPE_CHECKING:
    from vlatrack.envs.record import ProgressCallback, TaskProgress

_START_S, _LONGEST_STEP_S = 120.0, 2.0
"""Seconds without an answer after which a simulator is given up, for its start and for each step of an attempt."""

_NoiseOn = Annotated[
    list[str] | None,
    typer.Option(help="Number of an action that gets noise, such as dx; repeatable.", show_default="all"),
]
_CameraNames = Annotated[
    list[str] | None, typer.Option(help="Camera to record; repeatable.", show_default="for metaworld: corner4")
]

app = typer.Typer(
    help="Record demonstrations, look at a dataset, check it, convert and share it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
for command in (info, view, validate, convert, tokenize, probe, push, pull):
    app.command()(command)
app.add_typer(regenerate_app, name="regenerate")


@app.command()
def record(
    tasks: Annotated[
        list[str],
        typer.Argument(metavar="TASK[:EPISODES]", help="The simulator's tasks: window-open-v3.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new dataset.", show_default=False)],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each task that is given without a number.")] = 20,
    env: Annotated[
        str, typer.Option(help="The simulator: metaworld, libero, or a class of yours as package.module:Class.")
    ] = ("metaworld"),
    env_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Keyword argument of that class; repeatable.", show_default=False),
    ] = None,
    camera: _CameraNames = None,
    resolution: Annotated[
        int | None,
        typer.Option(min=32, max=1024, help="Height and width of an image.", show_default="for metaworld: 128"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Determines layouts and noise.")] = 0,
    action_noise: Annotated[
        float, typer.Option(min=0, max=1, help="Standard deviation of the noise on executed actions.")
    ] = 0.2,
    noise_steps: Annotated[
        int, typer.Option(min=1, help="Steps for which a noise stays; in 8 it carries the robot off as a policy errs.")
    ] = 1,
    clean_steps: Annotated[
        int, typer.Option(min=0, help="Steps between bursts of noise, on average; only these are kept. 0: no bursts.")
    ] = 0,
    noise_on: _NoiseOn = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Of an attempt; one that takes more is not kept.")] = 500,
    storage: Annotated[Literal["video", "png"], typer.Option(help="mp4 files, or png in the tables: exact.")] = "video",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset.")] = False,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Simulators that run at the same time; the dataset is the same.")
    ] = 1,
) -> None:
    """Record demonstrations of a simulator's scripted expert as a LeRobot v3.0 dataset.

    metaworld and libero need the extra of their name, [bold]pip install 'vlatrack\\[metaworld]'[/bold], and an
    off-screen OpenGL (EGL or OSMesa). After an end before its time the same command goes on with what is there.

    Example: [bold]vlatrack data record window-open-v3 door-close-v3:5 --episodes 20 -o demos[/bold]

    Two cameras: [bold]vlatrack data record reach-v3 --camera corner4 --camera gripperPOV -o reach[/bold]

    Your own simulator: [bold]vlatrack data record red --env my_package:Arena --env-option stride=0.1 -o red[/bold]
    """
    from vlatrack.envs.kept_attempts import KeptAttempts
    from vlatrack.envs.record import record as record_demonstrations
    from vlatrack.envs.record_workers import AttemptsInWorkers
    from vlatrack.envs.watched import Simulator, ending_on_sigterm

    wanted = _episodes_of_tasks(tasks, episodes)
    options = _environment_options(env_option or [], camera, resolution)
    simulator = Simulator(env, options, timeout_s=_START_S + max_steps * _LONGEST_STEP_S)
    with (
        ending_on_sigterm(),
        closing(AttemptsInWorkers(simulator, workers=workers)) as attempts,
        KeptAttempts(attempts, output, overwrite=overwrite, identity=(env, options, attempts.source)) as kept,
        saying_what_is_kept(kept),
        _progress_bars() as progress,
    ):
        recorded = record_demonstrations(
            kept,
            wanted,
            output=output,
            seed=seed,
            action_noise=action_noise,
            noise_steps=noise_steps,
            clean_steps=clean_steps,
            noise_on=noise_on,
            longest=max_steps,
            storage=storage,
            overwrite=overwrite,
            progress=progress,
        )
    typer.echo(f"wrote {output}: {_recorded(recorded)}, {_megabytes(output)}; {_succeeded(recorded)}")


def _episodes_of_tasks(tasks: Sequence[str], episodes: int) -> dict[str, int]:
    """`window-open-v3:5` → 5 episodes; without a number, `episodes` of them."""
    from vlatrack.errors import DataError

    wanted: dict[str, int] = {}
    for word in tasks:
        task, colon, number = word.partition(":")
        if colon and (not number.isdecimal() or int(number) == 0):
            raise DataError(f"{word!r}: expected a number of episodes after the colon, such as {task}:5")
        if task in wanted:
            raise DataError(f"task {task!r} is listed twice; list it once, with a number of episodes: {task}:40")
        wanted[task] = int(number) if colon else episodes
    return wanted


def _environment_options(
    words: Sequence[str], cameras: Sequence[str] | None, resolution: int | None
) -> dict[str, object]:
    """`goals=3` → {"goals": 3}; the values are YAML. Cameras and resolution are options, too, where they are given."""
    from vlatrack.errors import SpecError
    from vlatrack.spec.yaml_tree import parse_value

    options: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise SpecError(f"--env-option {word!r}: expected KEY=VALUE, such as goals=3")
        try:
            options[key] = parse_value(value)
        except ValueError as error:
            raise SpecError(f"--env-option {word!r}: {error}") from None
    options |= {"cameras": tuple(cameras)} if cameras else {}
    return options | ({"resolution": resolution} if resolution is not None else {})


@contextmanager
def _progress_bars() -> "Iterator[ProgressCallback]":
    from rich.console import Console

    from vlatrack.cli.bars import Bars
    from vlatrack.envs.record import TaskProgress

    with Bars(Console()) as bars:

        def show(so_far: TaskProgress) -> None:
            details = [f"success {so_far.success_rate:.0%}", f"{so_far.frames:,} steps"]
            bars.advance(so_far.task, so_far.episodes, so_far.wanted, unit="episode", details=details)

        yield show


def _recorded(tasks: Sequence["TaskProgress"]) -> str:
    kept, stretches = sum(task.episodes for task in tasks), sum(task.stretches for task in tasks)
    episodes = f"{kept:,} episodes" if stretches == kept else f"{kept:,} demonstrations in {stretches:,} episodes"
    return f"{episodes}, {sum(task.frames for task in tasks):,} steps"


def _succeeded(tasks: Sequence["TaskProgress"]) -> str:
    kept, tried = sum(task.episodes for task in tasks), sum(task.attempts for task in tasks)
    return f"{kept} of {tried} attempts succeeded ({kept / tried:.0%})"


def _megabytes(folder: Path) -> str:
    files = [folder] if folder.is_file() else folder.rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    return f"{size / 1e6:.1f} MB"
