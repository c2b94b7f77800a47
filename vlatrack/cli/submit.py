"""`vlatrack submit`: train as a job of Slurm, or in the background of this machine."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.cli.completion import complete_resumed, complete_setting
from vlatrack.errors import SpecError

if TYPE_CHECKING:
    from vlatrack.spec.experiment import ExperimentSpec
    from vlatrack.submission.clusters import SubmittedJob
    from vlatrack.submission.folder import JobFolder, Order
    from vlatrack.submission.resources import Resources

_SLURM = "Slurm"


class ClusterName(StrEnum):
    """What `--cluster` takes."""

    SLURM = "slurm"
    LOCAL = "local"


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE] [KEY=VALUE]...",
        help="The experiment's YAML file (without it with --resume RUN), and changes to it.",
        show_default=False,
        autocompletion=complete_setting,
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        help="Go on with this run directory, or the latest one.",
        show_default=False,
        autocompletion=complete_resumed,
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Time limit, after which the job is queued again: 8h, 2-12:00:00.", show_default=False
    ),
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Processes on each node, if not one a GPU.", show_default=False)
]
OfSlurm = Annotated[str | None, typer.Option(rich_help_panel=_SLURM, show_default=False)]
Cores = Annotated[
    int | None, typer.Option(min=1, help="Cores of each process.", rich_help_panel=_SLURM, show_default=False)
]
Memory = Annotated[
    int | None, typer.Option(min=1, help="Memory of each node.", rich_help_panel=_SLURM, show_default=False)
]
Sbatch = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Another option of sbatch; repeatable.",
        rich_help_panel=_SLURM,
        show_default=False,
    ),
]
Setup = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COMMAND",
        help="Shell command before the training, 'module load cuda'; repeatable.",
        rich_help_panel=_SLURM,
        show_default=False,
    ),
]


def submit(
    words: Words = None,
    cluster: Annotated[
        ClusterName, typer.Option(help="slurm, or local: the background of this machine.")
    ] = ClusterName.SLURM,
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs, which the nodes share.")] = Path("runs"),
    resume: Resume = None,
    time: Time = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each node, with a process each.")] = 0,
    processes: Processes = None,
    cpus_per_task: Cores = None,
    mem_gb: Memory = None,
    partition: OfSlurm = None,
    account: OfSlurm = None,
    qos: OfSlurm = None,
    constraint: OfSlurm = None,
    sbatch: Sbatch = None,
    setup: Setup = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the script, submit nothing.")
    ] = False,
) -> None:
    """Train as a job: checked now, queued by Slurm, and continued as the same run whenever it is interrupted.

    The experiment is kept as it is now; the code is that of when the job begins. Before the time limit the run saves a
    checkpoint, and the job is queued again. The log is in the job's folder, runs/jobs/<name>-<time>-<id>/.

    Exit codes: 0 submitted, 2 a mistake.

    Examples:

    [bold]vlatrack submit experiments/quickstart.yaml --time 8h --gpus 1 --partition gpu[/bold]

    [bold]vlatrack submit exp.yaml optim.lr=1e-5 --time 2-00 --nodes 2 --gpus 8 --cpus-per-task 12 --mem-gb 500[/bold]

    [bold]vlatrack submit --resume runs/quickstart/20260101-120000-ab12 train.epochs=80 --time 8h[/bold]

    [bold]vlatrack submit experiments/quickstart.yaml --cluster local[/bold]

    [bold]vlatrack submit exp.yaml --time 8h --setup 'module load cuda' --sbatch reservation=vla --dry-run[/bold]
    """
    words = words or []
    _check_words(words, resumes=resume is not None)
    from vlatrack.submission.resources import Resources, parse_minutes

    resources = Resources(
        nodes=nodes,
        gpus=gpus,
        processes=processes or max(1, gpus),
        cpus_per_task=cpus_per_task,
        mem_gb=mem_gb,
        minutes=None if time is None else parse_minutes(time),
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        setup=tuple(setup or ()),
        more=_of_sbatch(sbatch or []),
    )
    _submit(words, resume, cluster, runs, resources, dry_run=dry_run)


def _submit(
    words: list[str], resume: str | None, cluster: ClusterName, runs: Path, resources: "Resources", *, dry_run: bool
) -> None:
    from vlatrack.submission.clusters import check_cluster, check_submitit
    from vlatrack.submission.clusters import script as script_of
    from vlatrack.submission.folder import JobFolder
    from vlatrack.tracking.run_files import checked_runs_folder

    check_submitit()
    checked_runs_folder(runs)
    from vlatrack.cli.progress import prepare_process

    prepare_process()
    spec, order = _order(words, resume, runs, resources)
    grace_s = spec.train.grace_s
    check_cluster(cluster.value, resources, grace_s=grace_s)
    folder = JobFolder.planned(runs, spec.name)
    if dry_run:
        typer.echo(script_of(cluster.value, folder, resources, name=spec.name, grace_s=grace_s), nl=False)
        typer.echo("dry run: all of it was checked, nothing was submitted", err=True)
        return
    job = _hand_in(folder, order, spec, cluster, resources)
    shown = runs / "jobs" / folder.path.name
    _say(f"folder of the job: {shown}")
    _say(
        f"watch it: tail -F {shown / job.log.name} · vlatrack status{'' if runs == Path('runs') else f' --runs {runs}'}"
    )
    _say(f"SUBMITTED job {job.id} ({cluster}) · log: {shown / job.log.name} · end it: {job.cancel}")


def _order(
    words: list[str], resume: str | None, runs: Path, resources: "Resources"
) -> tuple["ExperimentSpec", "Order"]:
    """What the job is to do, checked as far as it can be without its machines."""
    from vlatrack.spec.load import load_spec
    from vlatrack.submission.checks import check_new, check_resumed
    from vlatrack.submission.folder import Order

    place = {"directory": Path.cwd(), "runs": runs.resolve(), "command": tuple(sys.argv)}
    if resume is not None:
        from vlatrack.runner.directory import RunDirectory

        run = (RunDirectory.latest(runs) if resume == "latest" else RunDirectory.open(Path(resume))).path
        return check_resumed(run, words, resources), Order(**place, overrides=tuple(words), resume=run)
    file, *overrides = words
    spec = load_spec(Path(file), overrides)
    check_new(spec, resources)
    return spec, Order(**place, overrides=tuple(overrides))


def _hand_in(
    folder: "JobFolder", order: "Order", spec: "ExperimentSpec", cluster: ClusterName, resources: "Resources"
) -> "SubmittedJob":
    """Make the folder and submit the job; nothing is left of one that could not be."""
    import shutil

    from vlatrack.cli.submitted import SubmittedRun
    from vlatrack.errors import VlatrackError
    from vlatrack.spec.load import dump_spec
    from vlatrack.submission.clusters import submit as submit_job

    try:
        folder.create(order, dump_spec(spec))
        return submit_job(
            cluster.value, folder, resources, SubmittedRun(folder.path), name=spec.name, grace_s=spec.train.grace_s
        )
    except VlatrackError:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _of_sbatch(options: list[str]) -> dict[str, str]:
    pairs = [option.removeprefix("--").partition("=") for option in options]
    for option, (_, equals, _) in zip(options, pairs, strict=True):
        if not equals:
            raise SpecError(f"vlatrack submit: --sbatch {option}: write it as NAME=VALUE, such as reservation=vla")
    return {name: value for name, _, value in pairs}


def _check_words(words: list[str], *, resumes: bool) -> None:
    if not resumes and (not words or ("=" in words[0] and not Path(words[0]).exists())):
        raise SpecError("vlatrack submit: give an experiment's YAML file, or --resume RUN to go on with a run")
    if resumes and words and "=" not in words[0]:
        raise SpecError(f"vlatrack submit: --resume goes on with a run's own spec; leave out {words[0]}")


def _say(text: str) -> None:
    from vlatrack.tracking.printable import printable

    typer.echo(printable(text))
