"""`vlatrack data push` and `vlatrack data pull`: datasets to and from the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a LeRobot dataset.", show_default=False)],
    name: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="What it is called at the hub.", show_default=False)
    ],
    public: Annotated[bool, typer.Option("--public", help="Everybody may see it.")] = False,
) -> None:
    """Upload a dataset to the Hugging Face hub, in one commit and with a card; it is private unless --public is given.

    The login is that of [bold]hf auth login[/bold], or HF_TOKEN. Only the dataset's own files are uploaded; a README.md
    in its folder becomes part of the card.

    Example: [bold]vlatrack data push demos my-lab/window-open[/bold]
    """
    from contextlib import nullcontext

    from rich.console import Console

    from vlatrack.cli.bars import StillAtIt, is_live
    from vlatrack.runner.dataset_hub import HubDataset

    console = Console(stderr=True, highlight=False)
    # In a terminal the hub's own bars show how far the upload has come.
    with nullcontext() if is_live(console) else StillAtIt(console, f"uploading {folder}"):
        pushed = HubDataset.of_name(name).push(folder, public=public)
    seen = "public" if public else "private"
    typer.echo(f"pushed {pushed.files} files to {pushed.place} ({seen}), commit {pushed.commit}")


def pull(
    name: Annotated[
        str, typer.Argument(metavar="OWNER/NAME[@REVISION]", help="A dataset of the hub.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for it.", show_default="its name, here")
    ] = None,
) -> None:
    """Download a dataset of the Hugging Face hub, as it is at one commit, whose name is printed.

    The folder appears when all files are there; after an interruption the same command goes on.

    Examples:

    [bold]vlatrack data pull lerobot/pusht -o data/pusht[/bold]

    The same again, whatever has been pushed since:

    [bold]vlatrack data pull lerobot/pusht@c3f5a1e0 -o data/pusht[/bold]
    """
    from rich.console import Console

    from vlatrack.cli.bars import Bars
    from vlatrack.runner.dataset_hub import HubDataset

    dataset = HubDataset.of_name(name)
    with Bars(Console(stderr=True, highlight=False)):
        pulled = dataset.pull(output or Path(dataset.name))
    typer.echo(f"pulled {pulled.files} files of {dataset.repository} at commit {pulled.commit} into {pulled.place}")
