"""`vlatrack evaluate`: a checkpoint of a run on its validation splits."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory: runs/<experiment>/<run-id>.")],
    checkpoint: Annotated[str, typer.Option(help="best, last, or a folder's name such as step-00000120.")] = "best",
) -> None:
    """Evaluate a checkpoint on val_ind and val_ood, open-loop.

    Example: [bold]vlatrack evaluate runs/metaworld-quickstart/20260101-120000-ab12 --checkpoint last[/bold]
    """
    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    prepare_process()
    from vlatrack.runner.processes import joined_ranks

    with joined_ranks() as ranks, TerminalDisplay(shown=ranks.is_first) as display:
        from vlatrack.runner.evaluate import evaluate_run

        evaluation = evaluate_run(run, checkpoint=checkpoint, display=display, ranks=ranks)
        display.show_evaluation(evaluation)
