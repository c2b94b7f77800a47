"""The manifest of a run: code, packages, machine, seed, data."""

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from vlatrack import __version__
from vlatrack.builders.experiment import Experiment
from vlatrack.runner.directory import write_in_run
from vlatrack.runner.git_state import GitState, git_state, tracks
from vlatrack.tracking.privacy import redact

_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "pyarrow", "av", "mlflow", "wandb", "pydantic")
FORMAT = 2
"""Manifests without one, of vlatrack 0.1.0, have ten packages, and of repositories vlatrack's commit and diff alone."""

RECORDED_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOMP_SPINCOUNT", "PYTHONHASHSEED"),
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "NCCL_ALGO", "NCCL_PROTO", "MUJOCO_GL", "PYOPENGL_PLATFORM"),
)
"""Variables that may change a result or its speed; no other is recorded."""
_IMAGE = ("VLATRACK_IMAGE_DIGEST", "VLATRACK_IMAGE")
"""Variables that may say which container image this is; nothing inside a container knows it otherwise."""
_IMAGE_COMMIT = "VLATRACK_COMMIT"
"""The variable that says of which commit the image was built, which holds no checkout."""


def describe_run(
    experiment: Experiment, command: Sequence[str], processes: int, *, runs: Path | None = None, job: str | None = None
) -> dict[str, Any]:
    """The manifest as JSON values.

    Args:
        processes: the number of ranks.
        runs: the folder of all runs, whose files are no part of the code.
        job: the name of the job that began the run.
    """
    return {
        "format": FORMAT,
        "vlatrack": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "job": job,
        "directory": str(Path.cwd()),
        "processes": processes,
        "spec_hash": experiment.hash,
        "seed": experiment.spec.seed,
        **describe_code(command, runs=runs),
        "image": next((os.environ[name] for name in _IMAGE if os.environ.get(name)), None),
        "data": {
            name: {
                "source": split.source.name,
                "sha256": experiment.fingerprints[f"data.{name}"],
                "episodes": split.episodes.indices.tolist(),
                "steps": int(split.episodes.lengths.sum()),
            }
            for name, split in experiment.splits.items()
        },
        "images": experiment.spec.data.images,
        "statistics": experiment.norm_stats.to_json(),
        "token_costs": None if experiment.token_costs is None else asdict(experiment.token_costs),
        "fingerprints": dict(experiment.fingerprints),
        "lineage": [dict(parent) for parent in experiment.lineage],
    }


def describe_code(command: Sequence[str], *, runs: Path | None) -> dict[str, Any]:
    """Repositories, packages, variables and hardware as they are here and now, as JSON values."""
    runs = None if runs is None else runs.resolve()
    ours = _own_git(runs)
    return {
        "git": None if ours is None else ours.to_json(),
        "user_git": _user_git(command, ours, runs),
        "image_commit": image_commit() if ours is None else None,
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "packages": _all_packages(),
        "environment": {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ},
        "hardware": _hardware(),
    }


def describe_machine() -> dict[str, Any]:
    """Hardware, packages and code, as JSON values, of what is measured here."""
    git = _own_git()
    return {
        "vlatrack": __version__,
        "commit": None if git is None else git.commit,
        "dirty": None if git is None else git.dirty,
        "packages": _packages(),
        "hardware": _hardware(),
    }


def write_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest. It is uploaded to trackers, so keys in the command or in uncommitted code are redacted."""
    write_in_run(file, redact(json.dumps(manifest, indent=1)) + "\n")


def image_commit() -> str | None:
    """The commit that this container's image says it was built of; None outside of one, or if it says no such thing."""
    commit = os.environ.get(_IMAGE_COMMIT, "")
    return commit if re.fullmatch(r"[0-9a-f]{7,64}", commit) else None


def _all_packages() -> dict[str, str]:
    """The version of every installed distribution by its name; of two of one name, the one that is imported."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata  # parsed anew each time that it is asked for
        if metadata["Name"]:
            found.setdefault(metadata["Name"], metadata["Version"])
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _packages() -> dict[str, str]:
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return {"python": platform.python_version(), **installed}


def _hardware() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cpu() -> str:
    """The model of the processor, which decides in which order some kernels add."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", described, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _own_git(runs: Path | None = None) -> GitState | None:
    """The repository of the running code; None where it was installed from a package, also below another repository."""
    folder = Path(__file__).parents[1]
    return git_state(folder, leave_out=runs) if tracks(folder, folder / "__init__.py") else None


def _user_git(command: Sequence[str], ours: GitState | None, runs: Path | None) -> dict[str, Any] | None:
    """The repository that holds the experiment's YAML, or else the working directory; None if that is none, or ours."""
    yaml = next((Path(word) for word in command if word.endswith((".yaml", ".yml")) and Path(word).is_file()), None)
    folders = [Path.cwd()] if yaml is None else [yaml.resolve().parent, Path.cwd()]
    for folder in folders:
        state = git_state(folder, leave_out=runs)
        if state is not None:
            return None if ours is not None and state.root == ours.root else state.to_json()
    return None
