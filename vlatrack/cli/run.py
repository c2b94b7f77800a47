"""`vlatrack run`: train, evaluate and track one experiment."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from vlatrack.cli.completion import complete_checkpoint, complete_resumed, complete_setting
from vlatrack.errors import SpecError
from vlatrack.tracking.printable import printable

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE] [KEY=VALUE]...",
        help="The experiment's YAML file (without it with --resume RUN), and changes to it, such as optim.lr=1e-5.",
        show_default=False,
        autocompletion=complete_setting,
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        help="Continue this run directory, or the latest one, from a checkpoint. auto, with FILE: the last "
        "unfinished run of this experiment, if there is one, else a new run.",
        show_default=False,
        autocompletion=complete_resumed,
    ),
]
JobName = Annotated[
    str | None,
    typer.Option(
        "--job",
        metavar="NAME",
        help="The name of a job that may be started again, the same each time: it continues the run that it began, or "
        "begins one; where that is finished, there is nothing to do.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        help="With --resume: last, best, or a folder's name such as step-00000120.", autocompletion=complete_checkpoint
    ),
]


def run(
    words: Words = None,
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs and the MLflow store.")] = Path("runs"),
    resume: Resume = None,
    checkpoint: Checkpoint = "last",
    job: JobName = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file of the data and of its store, touched or not.")
    ] = False,
) -> None:
    """Train, evaluate and track an experiment.

    All files of the run are in runs/<experiment>/<run-id>/; metrics go to the trackers while it trains. Ctrl-C, SIGTERM
    and SIGUSR1 save a checkpoint and end the run, SIGUSR2 saves one and training goes on.

    Examples:

    [bold]vlatrack run experiments/quickstart.yaml[/bold]

    [bold]vlatrack run experiments/quickstart.yaml train.epochs=2 loss.z_loss_weight=1e-4[/bold]

    [bold]vlatrack run --resume latest[/bold]

    [bold]vlatrack run --resume runs/metaworld-quickstart/20260101-120000-ab12 train.epochs=80[/bold]

    As a job that a scheduler may end and start again:

    [bold]vlatrack run experiments/quickstart.yaml --resume auto[/bold]

    [bold]vlatrack run experiments/quickstart.yaml --job night-7[/bold]

    With the weights of another run:

    [bold]vlatrack run exp.yaml init_from=runs/metaworld-quickstart/20260101-120000-ab12@best[/bold]

    Several GPUs, or several processes on a CPU:

    [bold]torchrun --nproc-per-node 2 -m vlatrack run experiments/quickstart.yaml[/bold]
    """
    words = words or []
    continues = resume not in (None, "auto")  # a run that is named, with its own spec
    _check_words(words, checkpoint, continues=continues)
    _check_job(job, resume)
    from contextlib import nullcontext

    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    prepare_process()
    from vlatrack.data.digests import hashing_all_files
    from vlatrack.runner.processes import joined_process_group

    with (
        joined_process_group() as group,
        hashing_all_files() if verify and os.environ.get("LOCAL_RANK", "0") == "0" else nullcontext(),  # a machine once
        TerminalDisplay(shown=group.is_main_process) as display,
    ):
        display.on_stage("loading")
        callbacks = [display] if group.is_main_process else []
        if resume is not None and continues:
            from vlatrack.runner.directory import RunDirectory
            from vlatrack.runner.run import resume_run

            with group.main_process_first():
                path = RunDirectory.latest(runs).path if resume == "latest" else Path(resume)
            resume_run(path, checkpoint=checkpoint, overrides=words, command=sys.argv, callbacks=callbacks, group=group)
        else:
            from vlatrack.spec.load import load_spec
            from vlatrack.tracking.run_files import checked_runs_folder

            file, *overrides = words
            checked_runs_folder(runs)
            with group.main_process_first():
                spec = load_spec(Path(file), overrides)
            from vlatrack.runner.run import resume_or_run, run_experiment

            start = run_experiment if resume is None and job is None else resume_or_run
            start(spec, runs=runs, overrides=overrides, command=sys.argv, callbacks=callbacks, group=group, job=job)


def _check_job(job: str | None, resume: str | None) -> None:
    if job is None:
        return
    if resume is not None:
        raise SpecError(f"vlatrack run: --job continues the run that the job began; leave out --resume {resume}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", job):
        raise SpecError(f"vlatrack run: --job '{printable(job)}': use up to 100 letters, digits and . _ -")


def _check_words(words: list[str], checkpoint: str, *, continues: bool) -> None:
    if not continues and not words:
        raise SpecError("vlatrack run: give an experiment's YAML file, or --resume RUN to continue a run")
    if not continues and "=" in words[0] and not Path(words[0]).exists():
        raise SpecError(f"vlatrack run: give an experiment's YAML file before {words[0]}")
    if continues and words and "=" not in words[0]:
        raise SpecError(f"vlatrack run: --resume continues a run with its own spec; leave out {words[0]}")
    if not continues and checkpoint != "last":
        raise SpecError("vlatrack run: --checkpoint belongs to --resume RUN")
