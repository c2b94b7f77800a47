"""`vlatrack show`: what a run is, from its directory or an archive of it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.tracking.printable import printable

if TYPE_CHECKING:
    from vlatrack.runner.comparison.recorded import RecordedRun

_SETTINGS = (
    *("seed", "backbone.kind", "backbone.init", "backbone.preset", "backbone.checkpoint", "init_from"),
    *("action_head.time_horizon", "action_head.action_dim", "data.samples", "data.train.kind", "data.train.path"),
    "data.images",
    *("loss.loss_ct_weights", "loss.z_loss_weight", "optim.lr"),
    *("train.epochs", "train.max_steps", "train.batch_size", "train.precision"),
)


RecordedRunWord = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run directory, archive (vlatrack export RUN --archive), run id or its beginning, latest, latest~1, "
        "mlflow:RUN_ID or wandb:ENTITY/PROJECT/RUN_ID of a run that a tracker has, or the address of its "
        "page at W&B.",
    ),
]


def show(
    run: RecordedRunWord,
    runs: Annotated[Path, typer.Option(help="Folder of all runs, in which ids are looked for.")] = Path("runs"),
) -> None:
    """Show what a run is: its settings, results, code and data, and how to reproduce it.

    Examples:

    [bold]vlatrack show latest[/bold]

    [bold]vlatrack show quickstart.tar.gz[/bold]
    """
    from vlatrack.cli.compare_runs import metric_table
    from vlatrack.cli.simulation import result_console
    from vlatrack.runner.comparison.finding import run_folder
    from vlatrack.runner.comparison.metrics import metric_rows
    from vlatrack.runner.comparison.recorded import RecordedRun

    console = result_console()
    with run_folder(run, runs) as folder:
        recorded = RecordedRun.read(folder, place=run)
        for label, text in [*_what(recorded), *_made_of(recorded)]:
            console.print(f"{label:<12}{printable(text)}", markup=False, soft_wrap=True)
        rows = metric_rows([recorded.history])
        if rows:
            console.print()
            console.print(metric_table(rows, ["value"]))
        console.print()
        for label, text in _how_again(recorded):
            console.print(f"{label:<12}{printable(text)}", markup=False, soft_wrap=True)


def _what(run: "RecordedRun") -> list[tuple[str, str]]:
    status = run.status
    step = "no step" if status.last_step is None else f"{status.last_step} steps"
    reason = "" if status.reason is None else f", {status.reason}"
    told = [("run", f"{run.experiment}/{run.name}"), ("status", f"{status.status} after {step}{reason}")]
    shown = [f"{path}={run.settings[path]}" for path in _SETTINGS if run.settings.get(path) is not None]
    told += [] if run.damaged is None else [("damaged", run.damaged)]
    return [*told, *([("settings", " ".join(shown))] if shown else [])]


def _made_of(run: "RecordedRun") -> list[tuple[str, str]]:
    from vlatrack.runner.comparison.differences import summary

    manifest = run.manifest
    if not manifest.format:
        return [("manifest", "none: code, packages and data are not known")]
    told = [("vlatrack", f"{manifest.vlatrack}, Python {manifest.python}, {len(manifest.packages)} packages")]
    for name, repository in manifest.repositories.items():
        where = "" if repository.remote is None else f" of {repository.remote}"
        told.append(("code", f"{name} {repository.commit[:12]}{where}; uncommitted: {summary(repository)}"))
    data = [f"{name} {digest[:12]}" for name, digest in manifest.fingerprints.items() if "(" not in name]
    told.append(("data", ", ".join(data) or "none"))
    machine = [
        f"{name} {manifest.hardware[name]}" for name in ("host", "cpu_cores", "gpus") if name in manifest.hardware
    ]
    told.append(("machine", ", ".join([*machine, f"processes {manifest.processes}"])))
    if manifest.command:
        told.append(("command", shlex.join(manifest.command)))
    return told


def _how_again(run: "RecordedRun") -> list[tuple[str, str]]:
    told = [("again", f"vlatrack reproduce {shlex.quote(run.place)} (--steps 50: a quick check)")]
    for name, repository in run.manifest.repositories.items():
        if repository.remote is not None:
            told.append(("by hand", f"git clone {repository.remote}; git checkout {repository.commit}  ({name})"))
    return told
