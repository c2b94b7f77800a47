"""`vlatrack new`: an experiment as a file of your own, to train or to change: one that ships, or one for your data."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from vlatrack.cli.dataset_options import ACTION, INSTRUCTION, SPLIT, STATE, Action, Fps, Instruction, Split, State
from vlatrack.errors import MissingPackageError, SpecError
from vlatrack.tracking.printable import printable


@dataclass(frozen=True)
class _Shipped:
    """An experiment, its files below experiments/ (a folder stands for all in it), and what has to be brought along."""

    about: str
    files: tuple[str, ...]
    needs: str = ""


def _libero(suite: str, steps: int) -> _Shipped:
    name = suite.removeprefix("libero_").replace("_", "-")
    return _Shipped(
        f"Chameleon 7B on LIBERO-{name.capitalize()}, chunks of {steps} actions",
        (f"{suite}.yaml", f"evaluation/{suite}.yaml"),
        f"put its demonstrations into data/{suite} and a Chameleon into checkpoints/chameleon-7b: "
        f"experiments/{suite}.yaml says where both come from",
    )


SHIPPED = {
    "quickstart": _Shipped(
        "a small policy from scratch on Meta-World demonstrations, which come along; a CPU is enough",
        ("quickstart.yaml", "evaluation/metaworld.yaml", "sweeps/quickstart.yaml", "data/metaworld-mini"),
    ),
    "libero_goal": _libero("libero_goal", 5),
    "libero_object": _libero("libero_object", 5),
    "libero_spatial": _libero("libero_spatial", 10),
    "libero_10": _libero("libero_10", 10),
}


def new(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Where to write it; made if it is not there.", show_default=False),
    ] = None,
    experiment: Annotated[
        str, typer.Option(help="Which one; --list shows them.", autocompletion=lambda: list(SHIPPED))
    ] = "quickstart",
    show_list: Annotated[bool, typer.Option("--list", help="Show the experiments that there are.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET",
            help="Instead: an experiment on your own dataset, in any of the formats, which stays where it is.",
            show_default=False,
        ),
    ] = None,
    action: Action = ACTION,
    state: State = STATE,
    fps: Fps = None,
    split: Split = SPLIT,
    instruction: Instruction = INSTRUCTION,
) -> None:
    """Write an experiment that ships with vlatrack into a folder, with what belongs to it; or one for your own data.

    The files lie in DIR/experiments, as in a checkout, so that the commands of the documentation work in DIR. No file
    is overwritten.

    Examples:

    [bold]vlatrack new my-vla[/bold]

    [bold]vlatrack new my-vla --experiment libero_goal[/bold]

    [bold]vlatrack new my-vla --data demonstrations/pick-and-place[/bold]
    """
    if show_list:
        for name, shipped in SHIPPED.items():
            typer.echo(f"{name:<16} {shipped.about}")
        return
    if folder is None:
        raise SpecError("vlatrack new: give the folder to write to, such as my-vla")
    change = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    if data is not None:
        experiments = folder / "experiments"
        file = _write_for(data, experiments, action=action, state=state, fps=fps, split=split, instruction=instruction)
        typer.echo(f"wrote {printable(str(file))}")
        own = shlex.quote(f"experiments/{file.name}")
        typer.echo(f"next: {printable(change)}vlatrack data validate {own} && vlatrack run {own}")
        return
    if experiment not in SHIPPED:
        close = get_close_matches(experiment, SHIPPED, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise SpecError(f"vlatrack new: no experiment {experiment!r}; {meant}There are {', '.join(SHIPPED)}")
    chosen = SHIPPED[experiment]
    _copy(_source(), folder / "experiments", chosen.files)
    for name in chosen.files:
        typer.echo(f"wrote {printable(str(folder / 'experiments' / name))}")
    before = f"{chosen.needs}; then " if chosen.needs else ""
    typer.echo(f"next: {before}{printable(change)}vlatrack run experiments/{experiment}.yaml")


def _write_for(data: Path, folder: Path, *, action: str, state: str, **options: Any) -> Path:
    """Write an experiment on a dataset; SpecError if something is there."""
    from vlatrack.builders.own_data import experiment_of
    from vlatrack.cli.data_info import reading
    from vlatrack.data.checks.scan import scan_dataset
    from vlatrack.data.formats.opening import open_dataset

    if data.suffix in (".yaml", ".yml"):
        raise SpecError(f"{data}: finished token rows belong to an experiment that is there already; see docs/data.md")
    source = open_dataset(data, action=action, state=state, **options)
    with reading(data, source):
        scan = scan_dataset(source, skip_bad=False)
    name, text = experiment_of(data, scan, action=action, state=state)
    file = folder / f"{name}.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise SpecError(f"{file}: is there, and nothing was written; choose another folder, or move it away") from None
    except OSError as error:
        if file.is_file():  # half of it, on a full disk
            file.unlink()
        raise SpecError(f"{file}: cannot be written ({error.strerror})") from None
    return file


def _source() -> Path:
    """The experiments: in the package of a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    for place in (package / "experiments", package.parent / "experiments"):
        if (place / "quickstart.yaml").is_file():
            return place
    raise MissingPackageError("vlatrack new: this installation lacks the experiments; install vlatrack again")


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy all or nothing; SpecError if something is there."""
    files = [file for name in names for file in _files_of(source / name)]
    places = {file: target / file.relative_to(source) for file in files}
    for place in places.values():
        if place.exists() or place.is_symlink():
            raise SpecError(f"{place}: is there, and nothing was written; choose another folder, or move it away")
    written = list[Path]()
    try:
        for file, place in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            written.append(place)
            shutil.copyfile(file, place)
    except BaseException:
        for place in written:
            place.unlink(missing_ok=True)
        raise


def _files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
