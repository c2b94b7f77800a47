"""`vlatrack evaluate` and `vlatrack export`: evaluate a checkpoint, or copy its policy to a new folder."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="Of a run: best (the default), last, or a folder's name such as step-00000120.", show_default=False
    ),
]


def evaluate(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run directory runs/<experiment>/<run-id>, one of its checkpoints, or an exported policy.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes to data.val_ind, data.val_ood, evaluate, and train.device.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Evaluate a checkpoint on val_ind and val_ood, open-loop.

    The numbers go into the run's journal and to its trackers, as evaluate/val_ind_closs at the checkpoint's step; those
    of an exported policy into its evaluation.json.

    Examples:

    [bold]vlatrack evaluate runs/metaworld-quickstart/20260101-120000-ab12 --checkpoint last[/bold]

    [bold]vlatrack evaluate policy data.val_ind.path=/data/held-out data.val_ood=null[/bold]
    """
    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    prepare_process()
    from vlatrack.runner.processes import joined_process_group

    with joined_process_group() as group, TerminalDisplay(shown=group.is_main_process) as display:
        from vlatrack.runner.evaluate import evaluate_run

        callbacks = [display] if group.is_main_process else []
        evaluation = evaluate_run(
            path, checkpoint=checkpoint, overrides=overrides or [], callbacks=callbacks, group=group
        )
        display.show_evaluation(evaluation)


def export(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run directory runs/<experiment>/<run-id>, or one of its checkpoints."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the policy, not there yet.", show_default=False)
    ],
    checkpoint: Checkpoint = None,
) -> None:
    """Copy the policy of a checkpoint to a new folder, without the optimiser.

    The folder has everything needed to act: weights, spec, tokenizers, normalisation.

    Example: [bold]vlatrack export runs/metaworld-quickstart/20260101-120000-ab12 -o policy[/bold]
    """
    from vlatrack.cli.progress import prepare_process

    prepare_process()
    from vlatrack.runner.export import export_policy

    digest = export_policy(path, output, checkpoint=checkpoint)
    typer.echo(f"wrote {output}: policy {digest[:12]}")
