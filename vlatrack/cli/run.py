"""`vlatrack run`: train, evaluate and track one experiment."""

from pathlib import Path
from typing import Annotated

import typer

from vlatrack.errors import SpecError


def run(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The experiment's YAML file.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to the file, such as optim.lr=1e-5.", show_default=False),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs and the MLflow store.")] = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Continue this run directory from a checkpoint.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="With --resume: last, best, or a folder's name such as step-00000120.")
    ] = "last",
) -> None:
    """Train, evaluate and track an experiment.

    Everything it makes lies in runs/<experiment>/<run-id>/; the numbers go to the trackers while it trains.

    Examples:

    [bold]vlatrack run experiments/quickstart.yaml[/bold]

    [bold]vlatrack run experiments/quickstart.yaml train.epochs=2 loss.z_loss_weight=1e-4[/bold]

    [bold]vlatrack run --resume runs/metaworld-quickstart/20260101-120000-ab12[/bold]

    Several GPUs, or several processes on a CPU:

    [bold]torchrun --nproc-per-node 2 -m vlatrack run experiments/quickstart.yaml[/bold]
    """
    if (file is None) == (resume is None):
        raise SpecError("vlatrack run: give an experiment's YAML file, or --resume RUN to continue a run")
    if resume is None and checkpoint != "last":
        raise SpecError("vlatrack run: --checkpoint belongs to --resume RUN")
    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    prepare_process()
    import sys

    from vlatrack.runner.processes import joined_ranks

    with joined_ranks() as ranks, TerminalDisplay(shown=ranks.is_first) as display:
        display.stage("loading")
        if resume is not None:
            from vlatrack.runner.run import resume_run

            resume_run(resume, checkpoint=checkpoint, command=sys.argv, display=display, ranks=ranks)
        else:
            from vlatrack.spec.load import load_spec
            from vlatrack.tracking.run_files import checked_runs_folder

            assert file is not None
            checked_runs_folder(runs)
            with ranks.first_before_others():
                spec = load_spec(file, overrides or ())
            from vlatrack.runner.run import run_experiment

            run_experiment(spec, runs=runs, command=sys.argv, display=display, ranks=ranks)
