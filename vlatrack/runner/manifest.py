"""The manifest of a run: code, packages, machine, seed, data."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from vlatrack import __version__
from vlatrack.builders.experiment import Experiment
from vlatrack.runner.directory import write_in_run
from vlatrack.tracking.privacy import redact

_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "pyarrow", "av", "mlflow", "wandb", "pydantic")
_MAX_DIFF = 1 << 20


def describe_run(experiment: Experiment, command: Sequence[str], processes: int) -> dict[str, Any]:
    """The manifest as JSON values; ``processes`` is the number of ranks."""
    return {
        "vlatrack": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "processes": processes,
        "spec_hash": experiment.hash,
        "seed": experiment.spec.seed,
        "git": _git(Path(__file__).parent),
        "packages": _packages(),
        "hardware": _hardware(),
        "data": {
            name: {
                "source": split.source.name,
                "sha256": experiment.fingerprints[f"data.{name}"],
                "episodes": [episode.index for episode in split.episodes],
                "steps": sum(episode.length for episode in split.episodes),
            }
            for name, split in experiment.splits.items()
        },
        "statistics": experiment.norm_stats.to_json(),
        "fingerprints": dict(experiment.fingerprints),
        "lineage": [dict(parent) for parent in experiment.lineage],
    }


def describe_machine() -> dict[str, Any]:
    """Hardware, packages and code, as JSON values, of what is measured here."""
    git = _git(Path(__file__).parent)
    return {
        "vlatrack": __version__,
        "commit": None if git is None else git["commit"],
        "dirty": None if git is None else git["dirty"],
        "packages": _packages(),
        "hardware": _hardware(),
    }


def write_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest. It is uploaded to trackers, so keys in the command or in uncommitted code are redacted."""
    write_in_run(file, redact(json.dumps(manifest, indent=1)) + "\n")


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
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the running code; None outside a git checkout."""
    git = shutil.which("git")
    if git is None:
        return None

    def run_git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [git, "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)

    commit = run_git("rev-parse", "HEAD")
    if commit.returncode != 0:
        return None
    diff = run_git("diff", "HEAD").stdout
    return {"commit": commit.stdout.strip(), "dirty": bool(diff), "diff": diff[:_MAX_DIFF]}
