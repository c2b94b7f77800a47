"""`vlatrack evaluate` and `vlatrack export`: evaluate a checkpoint, or copy its policy to a new folder."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory: runs/<experiment>/<run-id>.")]
Checkpoint = Annotated[str, typer.Option(help="best, last, or a folder's name such as step-00000120.")]


def evaluate(run: Run, checkpoint: Checkpoint = "best") -> None:
    """Evaluate a checkpoint on val_ind and val_ood, open-loop.

    The numbers go into the run's journal and to its trackers, as evaluate/val_ind_closs at the checkpoint's step.

    Example: [bold]vlatrack evaluate runs/metaworld-quickstart/20260101-120000-ab12 --checkpoint last[/bold]
    """
    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    prepare_process()
    from vlatrack.runner.processes import joined_process_group

    with joined_process_group() as group, TerminalDisplay(shown=group.is_main_process) as display:
        from vlatrack.runner.evaluate import evaluate_run

        callbacks = [display] if group.is_main_process else []
        evaluation = evaluate_run(run, checkpoint=checkpoint, callbacks=callbacks, group=group)
        display.show_evaluation(evaluation)


def export(
    run: Run,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the policy, not there yet.", show_default=False)
    ],
    checkpoint: Checkpoint = "best",
) -> None:
    """Copy the policy of a checkpoint to a new folder, without the optimiser.

    The folder has everything needed to act: weights, spec, tokenizers, normalisation.

    Example: [bold]vlatrack export runs/metaworld-quickstart/20260101-120000-ab12 -o policy[/bold]
    """
    from vlatrack.cli.progress import prepare_process

    prepare_process()
    from vlatrack.runner.export import export_policy

    digest = export_policy(run, output, checkpoint=checkpoint)
    typer.echo(f"wrote {output}: policy {digest[:12]}")
