"""`vlatrack data regenerate`: repeat stored demonstrations in their simulator."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlatrack.cli.keeping import saying_what_is_kept
from vlatrack.tracking.printable import printable

if TYPE_CHECKING:
    from vlatrack.envs.regenerate import Plan, ProgressCallback, Regeneration
    from vlatrack.envs.replay import Replays
    from vlatrack.envs.watched import Simulator

_START_S, _LONGEST_STEP_S = 120.0, 2.0
"""Seconds without an answer after which a simulator is given up, for its start and for each step of an attempt."""
_SHOWN_REASONS = 10
_CAMERAS = ("agentview", "robot0_eye_in_hand")

regenerate_app = typer.Typer(
    help="Repeat stored demonstrations in their simulator, and record them anew.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@regenerate_app.callback()
def _group() -> None:
    """Repeat stored demonstrations in their simulator, and record them anew."""


_Cameras = Annotated[
    list[str] | None, typer.Option(help="Camera to record; repeatable.", show_default="agentview, robot0_eye_in_hand")
]
_Images = Annotated[
    Literal["rotated", "upright", "raw"],
    typer.Option(
        help="LIBERO's turned by 180 degrees; as a person sees the scene, their mirror image; or as they are."
    ),
]
_Prompt = Annotated[
    Literal["language", "name"], typer.Option(help="The instruction: the task's, or its name with the scene in front.")
]
_Order = Annotated[
    Literal["name", "number"], typer.Option(help="Of a task's episodes: demo_10 before demo_2, or after it.")
]
_Rendering = Annotated[
    Literal["original", "fast"], typer.Option(help="LIBERO's own pixels; or without shadows and multisampling.")
]


@regenerate_app.command()
def libero(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SUITE_OR_FOLDER",
            help="Folder of LIBERO's *.hdf5, or a suite, such as libero_goal, whose files are in data/libero_goal.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new dataset.", show_default=False)],
    benchmark: Annotated[
        str | None, typer.Option(help="The suite of the files.", show_default="by their names")
    ] = None,
    resolution: Annotated[int, typer.Option(min=32, max=1024, help="Height and width of an image.")] = 256,
    camera: _Cameras = None,
    images: _Images = "rotated",
    prompt: _Prompt = "language",
    order: _Order = "name",
    keep_no_ops: Annotated[bool, typer.Option("--keep-no-ops", help="Repeat steps that do nothing, too.")] = False,
    rendering: _Rendering = "original",
    storage: Annotated[Literal["png", "video"], typer.Option(help="png in the tables: exact; or mp4 files.")] = "png",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset.")] = False,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Simulators that run at the same time; the dataset is the same.")
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Go on with a MuJoCo that moves LIBERO's objects.")] = False,
) -> None:
    """Repeat LIBERO's demonstrations in the simulator, and write those that succeed as a LeRobot v3.0 dataset.

    As RynnVLA-002 and OpenVLA prepare their data: from the first state of each, after 10 steps in which objects settle,
    without steps that do nothing, at 256 pixels. After an end before its time the same command goes on with what is
    there. What was dropped, and why, stands in OUTPUT.regeneration.json.

    Example: [bold]vlatrack data regenerate libero libero_goal -o data/libero_goal_256 --workers 8[/bold]
    """
    from rich.console import Console

    from vlatrack.cli.bars import StillAtIt
    from vlatrack.envs.regenerate import WAITS, make_plan
    from vlatrack.envs.watched import Simulator, ending_on_sigterm
    from vlatrack.spec.libero_tasks import TASKS

    folder = Path("data", source) if source in TASKS and not Path(source).exists() else Path(source)
    plan = make_plan(folder, order=order, skip_no_ops=not keep_no_ops)
    options: dict[str, object] = {
        "benchmark": benchmark or suite_of(plan.tasks, folder),
        "cameras": tuple(camera or _CAMERAS),
        "resolution": resolution,
        "images": images,
        "prompt": prompt,
        "rendering": rendering,
    }
    simulator = Simulator("libero", options, timeout_s=_START_S + (WAITS + plan.longest) * _LONGEST_STEP_S)
    settings = {"source": str(folder), "order": order, "skip_no_ops": not keep_no_ops, **options}
    with ending_on_sigterm():
        if not force:
            with StillAtIt(Console(stderr=True, highlight=False), "starting the simulator once, to see that it fits"):
                _check_simulator(simulator)
        _regenerate(plan, simulator, output, settings, storage=storage, overwrite=overwrite, workers=workers)
    rotation = 180 if images == "rotated" else 0
    known = f"rotation: {rotation}, prompt: {prompt}, gripper: raw, waits: {WAITS}"
    typer.echo(f"in an experiment: data.recorded: {{{known}}}")


def _regenerate(
    plan: "Plan",
    simulator: "Simulator",
    output: Path,
    settings: dict[str, object],
    *,
    storage: Literal["png", "video"],
    overwrite: bool,
    workers: int,
) -> None:
    from vlatrack.envs.kept_attempts import KeptAttempts
    from vlatrack.envs.record_workers import AttemptsInWorkers
    from vlatrack.envs.regenerate import regenerate

    report = output.absolute().with_name(f"{output.absolute().name}.regeneration.json")
    with closing(AttemptsInWorkers(simulator, workers=workers)) as attempts:
        identity = (simulator.name, simulator.options, attempts.source)
        with (
            KeptAttempts(attempts, output, overwrite=overwrite, identity=identity) as kept,
            saying_what_is_kept(kept),
            _progress_bars(plan) as progress,
        ):
            result = regenerate(
                kept,
                plan,
                output=output,
                report=report,
                settings=settings,
                storage=storage,
                overwrite=overwrite,
                progress=progress,
            )
    _tell(result, output, report)


def suite_of(tasks: "Sequence[Replays]", folder: Path) -> str:
    """The suite that has all of these tasks.

    Raises:
        DataError: there is none.
    """
    from difflib import get_close_matches

    from vlatrack.errors import DataError
    from vlatrack.spec.libero_tasks import TASKS

    names = [replays.task for replays in tasks]
    for suite, known in TASKS.items():
        if set(names) <= set(known):
            return suite
    everything = [name for known in TASKS.values() for name in known]
    unknown = next((name for name in names if name not in everything), None)
    if unknown is None:
        raise DataError(f"{folder}: files of several suites; put each suite into a folder of its own")
    close = get_close_matches(unknown, everything, n=1, cutoff=0.4)
    remedy = f"did you mean {close[0]}_demo.hdf5?" if close else "a file is called TASK_demo.hdf5"
    raise DataError(f"{folder}: LIBERO has no task {unknown!r}; {remedy}")


def _check_simulator(simulator: "Simulator") -> None:
    """Raise DataError where this MuJoCo moves objects; a simulator without cameras is enough to see that."""
    from vlatrack.envs.watched import WatchedWorker, checked, opened
    from vlatrack.errors import DataError

    worker = WatchedWorker(replace(simulator, options={**simulator.options, "cameras": ()}))
    try:
        opened(worker)
        wrong = checked(worker)
        worker.close()
    finally:
        worker.kill()
    if wrong:
        raise DataError(f"{wrong[0]}; install that version (make simulators), or go on with --force")


@contextmanager
def _progress_bars(plan: "Plan") -> "Iterator[ProgressCallback]":
    from rich.console import Console

    from vlatrack.cli.bars import Bars

    with Bars(Console()) as bars:

        def show(replays: "Replays", so_far: "Regeneration") -> None:
            done = len(so_far.kept) + len(so_far.dropped) - len(plan.damaged)
            task = f"task {plan.tasks.index(replays) + 1} of {len(plan.tasks)}: {replays.task}"
            details = [f"{len(so_far.kept)} succeeded", task]
            bars.advance("repeating", done, plan.demonstrations, unit="demonstration", details=details)

        yield show


def _tell(result: "Regeneration", output: Path, report: Path) -> None:
    kept, total = len(result.kept), len(result.kept) + len(result.dropped)
    steps, no_ops = sum(kept.steps for kept in result.kept), sum(kept.no_ops for kept in result.kept)
    size = f"{kept:,} of {total:,} demonstrations, {steps:,} steps"
    typer.echo(f"wrote {output}: {size}; left out {no_ops:,} steps in which nothing moves")
    for reason, number in list(result.reasons.items())[:_SHOWN_REASONS]:
        typer.echo(f"dropped {number:,}: {printable(reason)}")
    typer.echo(f"{report} says what became of each")
