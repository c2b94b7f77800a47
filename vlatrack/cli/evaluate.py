"""`vlatrack evaluate` and `vlatrack export`: evaluate a checkpoint, or copy its policy to a new folder."""

import os
from pathlib import Path
from typing import Annotated

import typer

from vlatrack.cli.delivery import delivery_line
from vlatrack.errors import ServingError, SpecError

_SCHEMES = ("ws://", "wss://")

Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="Of a run: best (the default), last, or a folder's name such as step-00000120.", show_default=False
    ),
]
Evaluated = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run directory runs/<experiment>/<run-id>, one of its checkpoints, or an exported policy; with "
        "--policy, EVALUATION.yaml is the first word.",
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[EVALUATION.yaml] [KEY=VALUE]...",
        help="An evaluation in a simulator, and changes to it; without one, changes to data.val_ind, data.val_ood, "
        "evaluate, and train.device.",
        show_default=False,
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="ws://HOST:PORT",
        help="A server of openpi's protocol, such as vlatrack serve, instead of RUN.",
        show_default=False,
    ),
]
ApiKeyVariable = Annotated[
    str | None, typer.Option(metavar="NAME", help="Variable with the server's key.", show_default=False)
]
Episodes = Annotated[int | None, typer.Option(min=1, help="Of each task; short for episodes=N.", show_default=False)]
Workers = Annotated[int, typer.Option(min=1, max=256, help="Simulators that run at the same time.")]
Videos = Annotated[int, typer.Option(min=0, help="Videos of episodes that are kept, failures first.")]
Timeout = Annotated[
    float,
    typer.Option(min=1, help="Seconds without an answer after which a simulator or a server is given up."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder of the results, instead of one in the run and its trackers.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Evaluate although policy and simulator do not fit together.")]


def evaluate(
    path: Evaluated,
    words: Words = None,
    checkpoint: Checkpoint = None,
    policy: Server = None,
    api_key_env: ApiKeyVariable = None,
    episodes: Episodes = None,
    workers: Workers = 1,
    videos: Videos = 8,
    timeout: Timeout = 120,
    output: Output = None,
    force: Force = False,
) -> None:
    """Evaluate a checkpoint: on val_ind and val_ood, open-loop, or in the simulator of an evaluation's YAML.

    Open-loop, the numbers go into the run's journal and to its trackers, as evaluate/val_ind_closs at the checkpoint's
    step; those of an exported policy into its evaluation.json. Tables and figures stand beside them: errors by task,
    chunk step and action dimension, predicted beside recorded actions, and predicted images of world models.

    In a simulator, each episode that ends is a row of episodes.csv in the run's folder evaluation/; a killed evaluation
    goes on where it was when it is repeated. An episode whose simulator dies or hangs is begun again, and is an error,
    no failure, after three attempts. The success rates go to the trackers as sim/<suite>/success. The options from
    --policy on are about simulators.

    Several of these commands on one folder divide the episodes, on one machine or on several that share it; so do the
    processes of torchrun. What a killed one has begun, the others take over.

    Examples:

    [bold]vlatrack evaluate runs/metaworld-quickstart/20260101-120000-ab12 --checkpoint last[/bold]

    [bold]vlatrack evaluate policy data.val_ind.path=/data/held-out data.val_ood=null[/bold]

    [bold]vlatrack evaluate policy experiments/evaluation/metaworld.yaml --episodes 5 --workers 2[/bold]

    [bold]vlatrack evaluate --policy ws://127.0.0.1:8000 experiments/evaluation/metaworld.yaml[/bold]
    """
    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    prepare_process()
    given = [*([] if policy is None else [_address(policy)]), path, *(words or [])]
    subject, rest = given[0], given[1:]
    if rest and rest[0].endswith((".yaml", ".yml")):
        from vlatrack.cli.simulation import evaluate_and_show
        from vlatrack.runner.closed_loop import Options

        options = Options(
            workers=workers,
            videos=videos,
            timeout_s=timeout,
            output=output,
            force=force,
            api_key=api_key_in(api_key_env),
        )
        changes = [*rest[1:], *([] if episodes is None else [f"episodes={episodes}"])]
        evaluate_and_show(subject, Path(rest[0]), checkpoint=checkpoint, overrides=changes, options=options)
        return
    if subject.startswith(_SCHEMES) or output is not None or force or episodes is not None:
        raise SpecError(
            "--policy, --episodes, --output and --force are for an evaluation in a simulator: name its YAML file after "
            "the run"
        )
    from vlatrack.runner.processes import joined_process_group

    with joined_process_group() as group, TerminalDisplay(shown=group.is_main_process) as display:
        from vlatrack.runner.evaluate import evaluate_run

        callbacks = [display] if group.is_main_process else []
        evaluation = evaluate_run(subject, checkpoint=checkpoint, overrides=rest, callbacks=callbacks, group=group)
        display.show_evaluation(evaluation)


def _address(policy: str) -> str:
    if not policy.startswith(_SCHEMES):
        raise SpecError(f"--policy {policy}: expected ws://HOST:PORT; a run or a folder goes without --policy")
    return policy


def api_key_in(variable: str | None) -> str | None:
    """The key that an environment variable holds; None without one.

    Raises:
        ServingError: it is not set.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ServingError(f"--api-key-env {variable}: the variable is not set or empty; export the key in it")
    return key


Target = Annotated[
    Path | None,
    typer.Argument(
        metavar="FOLDER",
        help="Folder of the policy, or with --archive the file, not there yet.",
        show_default=False,
    ),
]
EpisodeFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Episodes of this policy (CSV, or a result of vla-eval), whose success the model card tells; may be "
        "given several times.",
        show_default=False,
    ),
]
Archive = Annotated[
    bool,
    typer.Option(
        "--archive",
        help="Instead of the policy, pack the run into one file (RUN-ID.tar.gz unless named): what show, compare "
        "and reproduce need, years later.",
    ),
]
WithCheckpoints = Annotated[bool, typer.Option("--with-checkpoints", help="With --archive: its checkpoints as well.")]


def export(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run directory runs/<experiment>/<run-id>, one of its checkpoints, or an exported policy.",
        ),
    ],
    folder: Target = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The same as FOLDER.", show_default=False)
    ] = None,
    checkpoint: Checkpoint = None,
    episodes: EpisodeFiles = None,
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
    archive: Archive = False,
    with_checkpoints: WithCheckpoints = False,
) -> None:
    """Copy the policy of a checkpoint to a new folder, without the optimiser, with a model card.

    The folder has everything needed to act: weights, spec, tokenizers, normalisation. vlatrack.Policy.load and
    mlflow.pyfunc.load_model open it.

    Examples:

    [bold]vlatrack export runs/metaworld-quickstart/20260101-120000-ab12 policy[/bold]

    [bold]vlatrack export policy --push my-lab/my-policy --private[/bold]

    [bold]vlatrack export runs/metaworld-quickstart/20260101-120000-ab12 --archive quickstart.tar.gz[/bold]
    """
    if archive:
        others = {"--checkpoint": checkpoint, "--episodes": episodes, "--log": log, "--push": push}
        if given := [name for name, value in others.items() if value]:
            raise SpecError(f"{given[0]}: is for a policy; leave it out with --archive")
        _archive(path, folder or output, with_checkpoints=with_checkpoints)
        return
    if with_checkpoints:
        raise SpecError("--with-checkpoints: is for --archive")
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


def _archive(run: Path, file: Path | None, *, with_checkpoints: bool) -> None:
    from vlatrack.runner.archive import SUFFIX, write_archive

    file = file or Path(f"{run.resolve().name}{SUFFIX}")
    size = write_archive(run, file, with_checkpoints=with_checkpoints)
    typer.echo(f"wrote {file}: {size / 1e6:.1f} MB · look at it: vlatrack show {file}")
