"""`vlatrack import`: a training of RynnVLA-002 or WorldVLA as a run beside the new ones."""

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
        typer.Option(min=1, help="Steps between two epochs on the axis of the event files.", show_default=False),
    ] = None,
) -> None:
    """Bring the logs of a RynnVLA-002 or WorldVLA training into a run, and from there to the trackers.

    The step is the epoch, or what TensorBoard event files give. The same files are always the same run: importing them
    again delivers what is left.

    Example: [bold]vlatrack import output/libero_goal --name libero-goal[/bold]
    """
    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    prepare_process()
    from vlatrack.importers.run_import import import_run
    from vlatrack.runner.backends import backends_of_yaml
    from vlatrack.tracking.run_files import checked_runs_folder

    checked_runs_folder(runs)
    configs = backends_of_yaml(backends)
    with TerminalDisplay() as display:
        done = import_run(paths, name=name, runs=runs, backends=configs, steps_per_epoch=steps_per_epoch)
        for notice in done.notices:
            display.notice(notice)
        if done.delivery is None:
            display.notice(f"{done.directory}: imported and delivered already")
        else:
            display.finished(done.directory, done.delivery, done.horizon)
