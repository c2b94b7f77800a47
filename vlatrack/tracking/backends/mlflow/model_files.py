"""The files that make a folder with a policy a model of MLflow's flavour pyfunc: plain text, no code and no pickles."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vlatrack import __version__

MLMODEL, REQUIREMENTS, REFERENCE = "MLmodel", "requirements.txt", "policy.reference.json"
LOADER = "vlatrack.runner.pyfunc"
"""The module that MLflow imports to load such a folder."""


def write_model_files(folder: Path, *, policy_sha256: str, reference: Mapping[str, object] | None = None) -> list[Path]:
    """Write what MLflow reads, without MLflow: its own function runs pip to find out what a model needs.

    Args:
        reference: where the policy lies, if not in the folder: `checkpoint`, a path, and `copies`, URIs of MLflow.

    Returns:
        The files.
    """
    flavour: dict[str, Any] = {
        "loader_module": LOADER,
        "python_version": platform.python_version(),
        "config": {"route": "head", "device": "auto"},
    }
    content = {"flavors": {"python_function": flavour}, "metadata": {"policy_sha256": policy_sha256}}
    texts = {MLMODEL: yaml.safe_dump(content, sort_keys=False), REQUIREMENTS: f"vlatrack=={__version__}\n"}
    if reference is not None:
        texts[REFERENCE] = json.dumps({"policy_sha256": policy_sha256, **reference}, indent=1) + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]
