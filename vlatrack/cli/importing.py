"""`vlatrack import`: a training of RynnVLA-002 or WorldVLA as a run among the others."""

from pathlib import Path
from typing import Annotated

import typer


def import_logs(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="An output folder, or its log_train.txt, log_eval_ind.txt, log_eval_ood.txt and event files.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="Experiment that the run joins.", show_default=False)],
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs and the MLflow store.")] = Path("runs"),
    backends: Annotated[
        str, typer.Option(metavar="YAML", help="Trackers, as in tracking.backends; '[]': only the journal.")
    ] = "[{kind: mlflow}]",
    steps_per_epoch: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of one epoch in the event files.", show_default=False),
    ] = None,
) -> None:
    """Import the logs of a RynnVLA-002 or WorldVLA training as a run, and deliver it to the trackers.

    The step is the epoch, or that of the TensorBoard event files. The same files are always the same run: importing
    them again delivers what is left.

    Example: [bold]vlatrack import output/libero_goal --name libero-goal[/bold]
    """
    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    prepare_process()
    from vlatrack.builders.trackers import backends_of_yaml
    from vlatrack.importers.run import import_run
    from vlatrack.tracking.run_files import checked_runs_folder
    from vlatrack.training.callback import RunEnd

    checked_runs_folder(runs)
    configs = backends_of_yaml(backends)
    with TerminalDisplay() as display:
        done = import_run(paths, name=name, runs=runs, backends=configs, steps_per_epoch=steps_per_epoch)
        for notice in done.notices:
            display.on_warning(notice)
        if done.delivery is None:
            display.on_warning(f"{done.directory}: already imported and delivered")
        else:
            end = RunEnd(done.directory, "FINISHED", horizon=done.horizon, backends=done.delivery.backends)
            display.on_run_end(end)
