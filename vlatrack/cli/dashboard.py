"""`vlatrack dashboard`: views of runs at a tracker."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlatrack.errors import MissingPackageError
from vlatrack.tracking.printable import printable

if TYPE_CHECKING:
    from vlatrack.tracking.backends.wandb.workspace import ViewOptions

FEW_LINES = 3
"""Of a chart, that are all listed."""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def dashboards() -> None:
    """Make views of runs at a tracker. The dashboard of vlatrack itself is `vlatrack ui`."""


@app.command("wandb")
def wandb_view(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="Run directory or id whose W&B project gets the view.", show_default=False
        ),
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="The project, instead of the run's or that of WANDB_PROJECT.", show_default=False)
    ] = None,
    entity: Annotated[
        str | None, typer.Option(help="User or team that the project belongs to.", show_default=False)
    ] = None,
    grouped: Annotated[
        bool, typer.Option("--grouped", help="Show the runs of a sweep, or else of an experiment, as one curve.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Save nothing; needs no account.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole view as JSON.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder of all runs, in which ids are looked for.")] = Path("runs"),
) -> None:
    """Write the workspace view "VLA losses" into a W&B project.

    The documented losses stand first, both heads side by side, then the L1 of each chunk step, validation, health,
    throughput and success rates. The second time the same view is written anew, over what somebody has changed in it.

    Examples:

    [bold]vlatrack dashboard wandb latest[/bold]

    [bold]vlatrack dashboard wandb --entity my-team --project vla[/bold]

    [bold]vlatrack dashboard wandb --project vla --dry-run[/bold]
    """
    _check_package()
    from vlatrack.tracking.backends.wandb.workspace import save_view, view_of

    options = _options(run, runs)
    options = replace(options, project=project or options.project, entity=entity or options.entity, is_grouped=grouped)
    view = view_of(options)
    told: dict[str, Any] = {"saved": False, "url": None, "view": view}
    lines = [f"{view['displayName']} for {options.entity or 'your default entity'}/{options.project}, not saved:"]
    lines += _listed(view)
    if not dry_run:
        saved = save_view(options)
        told |= {"saved": True, "url": saved.url, "view": view | {"entity": saved.entity}}
        done = "made" if saved.is_new else "written anew"
        lines = [f"{view['displayName']} of {saved.entity}/{saved.project} {done}: {saved.url}"]
    for line in [json.dumps(told, indent=1, ensure_ascii=True)] if as_json else lines:
        typer.echo(line if as_json else printable(line))


def _check_package() -> None:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise MissingPackageError("dashboard wandb: needs a package: pip install 'vlatrack[wandb]'")


def _options(word: str | None, runs: Path) -> "ViewOptions":
    """What the run, or else the environment, says of the project."""
    from vlatrack.runner.comparison.finding import run_folder
    from vlatrack.tracking.backends.wandb.workspace import ViewOptions

    if word is None:
        return ViewOptions.of_environment(runs)
    with run_folder(word, runs) as folder:
        return ViewOptions.of_run(folder, word)


def _listed(view: dict[str, Any]) -> list[str]:
    """Each section with its charts, and the metrics of each."""
    lines = []
    for section in view["spec"]["section"]["panelBankConfig"]["sections"]:
        lines.append(f"  {section['name']}")
        for panel in section["panels"]:
            config = panel["config"]
            first, *more = config["metrics"] or [config["metricRegex"]]
            of = [first, "…", more[-1]] if len(more) >= FEW_LINES else [first, *more]
            lines.append(f"    {config['chartTitle']:<50} {' '.join(of)}")
    return lines
