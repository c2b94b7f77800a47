"""`vlatrack evaluate` and `vlatrack export`: evaluate a checkpoint, or copy its policy to a new folder."""

from pathlib import Path
from typing import Annotated

import typer

from vlatrack.cli.delivery import delivery_line
from vlatrack.errors import SpecError

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
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EVALUATION.yaml] [KEY=VALUE]...",
            help="An evaluation in a simulator, and changes to it; without one, changes to data.val_ind, data.val_ood, "
            "evaluate, and train.device.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Simulators that run at the same time.")] = 1,
    videos: Annotated[int, typer.Option(min=0, help="Videos of episodes that are kept, failures first.")] = 8,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds without an answer after which a simulator is ended.")
    ] = 120,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the results, instead of one in the run and its trackers.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Evaluate although policy and simulator do not fit together.")
    ] = False,
) -> None:
    """Evaluate a checkpoint: on val_ind and val_ood, open-loop, or in the simulator of an evaluation's YAML.

    Open-loop, the numbers go into the run's journal and to its trackers, as evaluate/val_ind_closs at the checkpoint's
    step; those of an exported policy into its evaluation.json. Tables and figures stand beside them: errors by task,
    chunk step and action dimension, predicted beside recorded actions, and predicted images of world models.

    In a simulator, each episode that ends is a row of episodes.csv in the run's folder evaluation/; a killed evaluation
    goes on where it was when it is repeated. An episode whose simulator dies or hangs is begun again, and is an error,
    no failure, after three attempts. The success rates go to the trackers as sim/<suite>/success. The options from
    --workers on are about simulators.

    Examples:

    [bold]vlatrack evaluate runs/metaworld-quickstart/20260101-120000-ab12 --checkpoint last[/bold]

    [bold]vlatrack evaluate policy data.val_ind.path=/data/held-out data.val_ood=null[/bold]

    [bold]vlatrack evaluate policy experiments/evaluation/metaworld.yaml episodes=5 --workers 2[/bold]
    """
    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    prepare_process()
    if words and words[0].endswith((".yaml", ".yml")):
        from vlatrack.cli.simulation import evaluate_and_show
        from vlatrack.runner.closed_loop import Options

        options = Options(workers=workers, videos=videos, timeout_s=timeout, output=output, force=force)
        evaluate_and_show(path, Path(words[0]), checkpoint=checkpoint, overrides=words[1:], options=options)
        return
    if output is not None or force:
        from vlatrack.errors import SpecError

        raise SpecError("--output and --force are for an evaluation in a simulator: name its YAML file after the run")
    from vlatrack.runner.processes import joined_process_group

    with joined_process_group() as group, TerminalDisplay(shown=group.is_main_process) as display:
        from vlatrack.runner.evaluate import evaluate_run

        callbacks = [display] if group.is_main_process else []
        evaluation = evaluate_run(path, checkpoint=checkpoint, overrides=words or [], callbacks=callbacks, group=group)
        display.show_evaluation(evaluation)


def export(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run directory runs/<experiment>/<run-id>, one of its checkpoints, or an exported policy.",
        ),
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Folder of the policy, not there yet.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The same as FOLDER.", show_default=False)
    ] = None,
    checkpoint: Checkpoint = None,
    episodes: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Episodes of this policy (CSV, or a result of vla-eval), whose success the model card tells; may be "
            "given several times.",
            show_default=False,
        ),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="Also log the policy to the trackers of its run, which copy it whole.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="Upload FOLDER to the Hugging Face hub; without FOLDER, an exported policy as it is.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Of a repository that --push creates.")] = False,
) -> None:
    """Copy the policy of a checkpoint to a new folder, without the optimiser, with a model card.

    The folder has everything needed to act: weights, spec, tokenizers, normalisation. vlatrack.Policy.load and
    mlflow.pyfunc.load_model open it.

    Examples:

    [bold]vlatrack export runs/metaworld-quickstart/20260101-120000-ab12 policy[/bold]

    [bold]vlatrack export policy --push my-lab/my-policy --private[/bold]
    """
    target = folder or output
    if folder is not None and output is not None:
        raise SpecError("export: the folder is given twice; leave out --output")
    if target is None and push is None:
        raise SpecError("export: give the FOLDER to write, or --push ORG/NAME for a policy that is exported")
    if target is None and log:
        raise SpecError("--log: is for a new export; give its FOLDER")
    if private and push is None:
        raise SpecError("--private: is for --push ORG/NAME")
    from vlatrack.cli.progress import prepare_process

    prepare_process()
    from vlatrack.runner.export import export_policy, log_policy
    from vlatrack.runner.hub import HubPolicy

    hub = None if push is None else HubPolicy.of_name(push)
    if target is not None:
        name = None if hub is None else hub.repository
        digest = export_policy(path, target, checkpoint=checkpoint, episodes=episodes or [], hub_name=name)
        typer.echo(f"wrote {target}: policy {digest[:12]}")
        for share in log_policy(path, target, checkpoint=checkpoint).backends if log else ():
            typer.echo(delivery_line(share))
    if hub is not None:
        typer.echo(f"pushed {hub.push(target or path, private=private)}")
