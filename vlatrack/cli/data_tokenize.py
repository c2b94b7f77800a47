"""`vlatrack data tokenize`: encode the frames of an experiment before it runs."""

from pathlib import Path
from typing import Annotated

import typer

from vlatrack.cli.completion import complete_setting
from vlatrack.errors import SpecError


def tokenize(
    file: Annotated[Path, typer.Argument(help="The experiment's YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Changes to it.", show_default=False, autocompletion=complete_setting
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the runs that will use it.")] = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes on this machine.", show_default="this one alone")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="On the machines of a Ray cluster (extra ray).")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file of the data and of the store, touched or not.")
    ] = False,
) -> None:
    """Encode the frames of an experiment's data into the store that its runs use; a run does it as well, at its start.

    What is there is kept: the command goes on where an earlier one has ended, however that was. Started by torchrun,
    each process has its share. With --ray, all machines have to see the data and the runs under the same paths.

    Examples:

    [bold]vlatrack data tokenize experiments/quickstart.yaml[/bold]

    [bold]torchrun --nproc-per-node 8 -m vlatrack data tokenize experiments/libero_goal.yaml[/bold]

    [bold]vlatrack data tokenize experiments/libero_goal.yaml --ray[/bold]
    """
    import os
    import time
    from contextlib import nullcontext

    from vlatrack.cli.progress import prepare_process
    from vlatrack.runner.processes import process_on_its_own

    if ray and workers is None and "RANK" in os.environ:
        raise SpecError("--ray: not together with torchrun; Ray starts its own processes")
    prepare_process()
    from rich.console import Console

    from vlatrack.cli.bars import Bars
    from vlatrack.data.digests import hashing_all_files
    from vlatrack.runner.tokenizing import TokenizeJob, tokenize_in_processes, tokenize_on_ray
    from vlatrack.runner.tokenizing import tokenize as tokenize_here
    from vlatrack.spec.load import load_spec

    spec = load_spec(file, overrides or [])
    if spec.data.images == "stream":
        if os.environ.get("RANK", "0") == "0":
            typer.echo(f"nothing to encode: {file} streams its images (data.images: stream): a run encodes them itself")
        return
    job, begin, frames = TokenizeJob(spec, runs), time.monotonic(), dict[str, int]()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    console = Console(highlight=False)
    with process_on_its_own() as rank, hashing_all_files() if verify else nullcontext(), Bars(console) as bars:

        def show(splits: str, done: int, total: int) -> None:
            if rank == 0:
                bars.advance(f"encoding {splits}", done, total, unit="frame")
            frames[splits] = max(frames.get(splits, 0), done)

        if ray:
            tokenize_on_ray(job, show, workers=workers)
        elif workers is not None:
            tokenize_in_processes(job, show, workers=workers)
        else:
            tokenize_here(job, show, rank=rank, world_size=world_size)
    if rank:
        return
    seconds, encoded = time.monotonic() - begin, sum(frames.values())
    what = f"encoded {encoded:,} frames in {seconds:,.0f} s" if encoded else "nothing to encode: all frames are there"
    typer.echo(f"{what}; {runs / '.cache' / 'data'} has what runs of {file} need")
