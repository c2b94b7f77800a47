"""What a job of `vlatrack submit` executes: `vlatrack run`, so that it goes on with its run when it begins again."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vlatrack.cli.main import reporting_errors
from vlatrack.errors import SubmitError
from vlatrack.submission.folder import JobFolder, Order
from vlatrack.training.callback import Callback

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from vlatrack.training.process_group import ProcessGroup

MOST_IN_VAIN = 3
"""A job that has begun so often at the same step and comes no further is not queued again."""
_NEAR_ITS_END = 128 + signal.SIGUSR1


class SubmittedRun:
    """A training as a job.

    submitit pickles this object, and the job loads it again: Python would execute whatever stands in that file. It
    holds nothing but the path of the job's folder, which is this user's alone (0700, see `JobFolder`) and in which
    nobody else can put another file; what to train stands there as YAML and JSON, which are checked as all input is. So
    a job executes what this user has submitted, as it would from a script of theirs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self) -> None:
        """Train; SystemExit with the exit code of `vlatrack run`, unless that is 0.

        At SIGUSR1, which Slurm sends before the time limit, the run has saved a checkpoint and has ended by now, and
        the job asks to be queued again. At SIGTERM it only ends: that is `scancel`, or Slurm queues it again by itself.
        """
        folder = JobFolder(Path(self.folder))
        try:
            with reporting_errors():
                _train(folder)
        except SystemExit as end:
            if end.code == _NEAR_ITS_END:
                with reporting_errors():
                    _requeue(folder)
            raise

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit is to queue again: the same. The folder of the job says which run it goes on with."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _NotesRun(Callback):
    """Keeps the run's directory in the folder of the job."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder

    def on_run_start(self, directory: Path) -> None:
        self._folder.note_run(directory)


def _train(folder: JobFolder) -> None:
    from vlatrack.cli.progress import TerminalDisplay, prepare_process

    logging.getLogger("submitit").propagate = False  # it prints by itself
    prepare_process()
    order = folder.order()
    os.chdir(order.directory)
    sys.argv = list(order.command)
    _describe_ranks()
    from vlatrack.runner.processes import joined_process_group

    with joined_process_group() as group, TerminalDisplay(shown=group.is_main_process) as display:
        display.on_stage("loading")
        callbacks: list[Callback] = [display, _NotesRun(folder)] if group.is_main_process else []
        run = group.broadcast(_run_to_continue(folder, order) if group.is_main_process else None)
        if run is None:
            _begin(folder, order, callbacks, group)
            return
        from vlatrack.runner.run import resume_run

        overrides = order.overrides if order.resume is not None else ()
        resume_run(run, overrides=overrides, command=sys.argv, callbacks=callbacks, group=group)


def _begin(folder: JobFolder, order: Order, callbacks: list[Callback], group: "ProcessGroup") -> None:
    from vlatrack.runner.run import run_experiment
    from vlatrack.spec.load import load_spec

    with group.main_process_first():
        spec = load_spec(folder.experiment)
    run_experiment(spec, runs=order.runs, overrides=order.overrides, command=sys.argv, callbacks=callbacks, group=group)


def _run_to_continue(folder: JobFolder, order: Order) -> Path | None:
    """The run that an earlier start of this job has left with a checkpoint, or that it was submitted to go on with."""
    run = order.resume or folder.noted_run()
    step = None if run is None else _last_step(run)
    folder.note_start(step or 0)
    return order.resume if step is None else run


def _last_step(run: Path) -> int | None:
    """The step of its last checkpoint; None for a run that has none."""
    from vlatrack.runner.directory import RunDirectory
    from vlatrack.runner.unfinished import has_checkpoint
    from vlatrack.training.checkpoint.store import step_of

    directory = RunDirectory(run)
    return step_of(directory.checkpoints.all()[-1]) if has_checkpoint(directory) else None


def _requeue(folder: JobFolder) -> None:
    """Let submitit queue the job again, which its handler of the signal does; only the main process has to.

    Raises:
        SubmitError: the last starts have all ended where they began.
    """
    from submitit import JobEnvironment

    environment = JobEnvironment()
    if environment.global_rank == 0:
        run, last = folder.noted_run(), folder.starts()[-MOST_IN_VAIN:]
        step = 0 if run is None else _last_step(run) or 0
        if last == [step] * MOST_IN_VAIN:
            raise SubmitError(
                f"{folder.path}: began {MOST_IN_VAIN} times at step {step} and came no further, so it is not queued "
                "again; give it more --time"
            )
        print("the job is queued again, and will go on with this run", flush=True)
    signal.raise_signal(environment._usr_sig())
    raise SystemExit(0)  # of another rank: a failure of one could end the main process before it has asked


def _describe_ranks() -> None:
    """Set, for several processes, the variables that torchrun sets."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    environment = JobEnvironment()
    if environment.num_tasks == 1:
        return
    ranks = TorchDistributedEnvironment()
    if environment.num_nodes == 1:
        ranks.master_addr = "127.0.0.1"
    ranks.export(set_cuda_visible_devices=False, overwrite=True)  # each takes the GPU of its LOCAL_RANK
