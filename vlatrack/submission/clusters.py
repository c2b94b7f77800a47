"""How a job gets to Slurm, or to this machine, through submitit."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlatrack.errors import MissingPackageError, SubmitError
from vlatrack.submission.folder import JobFolder
from vlatrack.submission.resources import Resources

if TYPE_CHECKING:
    from submitit import Executor

Cluster = Literal["slurm", "local"]

_SIGNAL = {"SUBMITIT_PREEMPT_SIGNAL": "USR1"}
"""Says to submitit in the job which signal comes before the time limit. Not its SIGUSR2: to a run that means to save
and go on."""
_SAVING_S = 95
"""Beside the grace of the run: to write its end and its report, and to deliver to the trackers (60 s at most)."""
_ENDLESS_MINUTES = 60 * 24 * 366
_MANY_TIMES = 1_000_000
"""submitit would give up after so many time limits; `vlatrack.cli.submitted` does after three without progress."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job that a cluster has taken."""

    id: str
    log: Path
    """what its main process prints"""
    cancel: str
    """the command that ends it after a checkpoint"""


def check_submitit() -> None:
    """Check that submitit is there.

    Raises:
        MissingPackageError: it is not.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            "jobs need submitit, which is not installed: pip install 'vlatrack[submit]'"
        ) from None


def check_cluster(cluster: Cluster, resources: Resources, *, grace_s: float) -> None:
    """Check that the cluster can be asked, and that the resources are such as it has.

    Raises:
        SubmitError: it cannot.
    """
    least = _signal_delay_s(grace_s) // 60 + 1
    if resources.minutes is not None and resources.minutes < least:
        raise SubmitError(f"--time: {resources.minutes} minutes; a run needs {least} at least, to save before they end")
    if cluster == "local":
        of_slurm = ("partition", "account", "qos", "constraint", "cpus_per_task", "mem_gb", "setup", "more")
        given = [name for name in of_slurm if getattr(resources, name)] + ["nodes"] * (resources.nodes > 1)
        if given:
            names = ", ".join({"more": "--sbatch"}.get(name, f"--{name.replace('_', '-')}") for name in given)
            raise SubmitError(f"{names}: --cluster local is this machine, as it is; leave it out")
        return
    if resources.minutes is None:
        raise SubmitError(
            "--time: say how long the job may run, such as --time 8h; when it is over, the job is requeued"
        )


def script(cluster: Cluster, folder: JobFolder, resources: Resources, *, name: str, grace_s: float) -> str:
    """What would be submitted: the script for sbatch, or the command of each local process."""
    executor: Any = _executor(cluster, folder, resources, name=name, grace_s=grace_s)
    command = executor._submitit_command_str
    return command + "\n" if cluster == "local" else executor._make_submission_file_text(command, "")


def submit(
    cluster: Cluster,
    folder: JobFolder,
    resources: Resources,
    task: Callable[[], None],
    *,
    name: str,
    grace_s: float,
) -> SubmittedJob:
    """Submit a task whose folder has been made.

    Args:
        task: what submitit pickles.
        name: of the job in the queue.
        grace_s: seconds that the run may take to save; it is told to so much earlier than the time limit, and more.

    Raises:
        SubmitError: there is no such cluster here, or it refuses the job.
    """
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise SubmitError("sbatch: not found, so there is no Slurm here; --cluster local trains on this machine")
    try:
        executor = _executor(cluster, folder, resources, name=name, grace_s=grace_s)
        with contextlib.redirect_stderr(io.StringIO()):  # the error below has it as well
            job = executor.submit(task)
    except OSError as error:
        raise SubmitError(f"{error.filename or folder.path}: {error.strerror}; nothing was submitted") from error
    except RuntimeError as error:  # submitit's own are of this kind
        raise SubmitError(f"{cluster} has refused the job: {' '.join(str(error).split())}") from error
    cancel = f"scancel {job.job_id}" if cluster == "slurm" else f"kill {job.job_id}"
    return SubmittedJob(job.job_id, job.paths.stdout, cancel)


def _executor(cluster: Cluster, folder: JobFolder, resources: Resources, *, name: str, grace_s: float) -> "Executor":
    from submitit.local.local import LocalExecutor, LocalJob
    from submitit.slurm.slurm import SlurmExecutor

    class Slurm(SlurmExecutor):
        """Also where no Slurm is: then it can only show its script."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    class Local(LocalExecutor):
        """Leaves the session of the terminal, and prints into the job's folder; GPUs are all of this machine, unless a
        number is asked for."""

        def _submit_command(self, command: str) -> "LocalJob[Any]":
            with (folder.path / "local.log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "submitit.local._local", str(self.folder)],
                    env=os.environ | _local_environment(command, resources, grace_s),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            process.returncode = 0  # it is to outlive this process, which does not wait for it
            return LocalJob(self.folder, str(process.pid), tasks=list(range(resources.processes)))

    if cluster == "local":
        local = Local(folder.path, max_num_timeout=_MANY_TIMES)
        local.update_parameters(tasks_per_node=resources.processes, timeout_min=_minutes(resources))
        return local
    slurm = Slurm(folder.path, max_num_timeout=_MANY_TIMES)
    slurm.update_parameters(**_of_sbatch(resources, name=name, grace_s=grace_s))
    return slurm


def _of_sbatch(resources: Resources, *, name: str, grace_s: float) -> dict[str, Any]:
    wanted = {
        "job_name": name,
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes,
        "gpus_per_node": resources.gpus or None,
        "cpus_per_task": resources.cpus_per_task,
        "mem": None if resources.mem_gb is None else f"{resources.mem_gb}GB",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
    }
    return {name: value for name, value in wanted.items() if value is not None} | {
        "setup": [*(f"export {name}={value}" for name, value in _SIGNAL.items()), *resources.setup],
        "stderr_to_stdout": True,
        "wckey": None,
        # srun does not take them over from sbatch since Slurm 22.05: each process would have a single core.
        "srun_args": [] if resources.cpus_per_task is None else [f"--cpus-per-task={resources.cpus_per_task}"],
        "additional_parameters": {"requeue": True, "signal": f"USR1@{_signal_delay_s(grace_s)}", **resources.more},
    }


def _local_environment(command: str, resources: Resources, grace_s: float) -> dict[str, str]:
    """What submitit's local controller reads."""
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(resources.gpus)))} if resources.gpus else {}
    return gpus | {
        **_SIGNAL,
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_NTASKS": str(resources.processes),
        "SUBMITIT_LOCAL_COMMAND": command,
        "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * _minutes(resources)),
        "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(_signal_delay_s(grace_s)),
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_STDERR_TO_STDOUT": "1",
        "SUBMITIT_LOCAL_WITH_SHELL": "",
    }


def _minutes(resources: Resources) -> int:
    return resources.minutes or _ENDLESS_MINUTES


def _signal_delay_s(grace_s: float) -> int:
    return int(grace_s) + _SAVING_S
