"""From a backend's configuration to the backend, whose package is imported only when it is used."""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatrack.errors import MissingPackageError, TrackerError
from vlatrack.tracking.backends.base import NAMINGS, UNGROUPED, Backend, BackendConfig
from vlatrack.tracking.backends.custom import check_options, load_backend_class
from vlatrack.tracking.backends.destinations import target_of
from vlatrack.tracking.backends.environment import configure_libraries, ignored_line, refusal
from vlatrack.tracking.backends.wandb.account import NO_KEY, resolve_mode
from vlatrack.tracking.journal.history import first_start
from vlatrack.tracking.privacy import has_password
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.user import provide_user


@dataclass(frozen=True)
class BuiltIn:
    """A tracker that ships with vlatrack: its class, the pip line of the package that it needs, which has the tracker's
    name, and the options that the class takes."""

    target: str
    install: str
    options: tuple[str, ...] = ()


_NAMES = {
    "mlflow": ("experiment", "MLFLOW_EXPERIMENT_NAME", 500, ""),
    "wandb": ("project", "WANDB_PROJECT", 128, "/\\#?%:"),
}
"""Of where a run goes: the option, the variable, the longest name, and what it must not hold."""

BUILT_IN = {
    "mlflow": BuiltIn(
        "vlatrack.tracking.backends.mlflow.backend:MlflowBackend",
        "pip install mlflow",
        ("tracking_uri", "experiment", "copy_checkpoints", "copy_up_to_mb"),
    ),
    "wandb": BuiltIn(
        "vlatrack.tracking.backends.wandb.backend:WandbBackend",
        "pip install 'vlatrack[wandb]'",
        ("project", "entity", "mode", "copy_checkpoints", "copy_up_to_mb"),
    ),
    "tensorboard": BuiltIn(
        "vlatrack.tracking.backends.tensorboard:TensorboardBackend", "pip install 'vlatrack[tensorboard]'"
    ),
}


def check_backend(config: BackendConfig) -> None:
    """Raise, before any training, if the backend cannot be used: TrackerError or MissingPackageError.

    The module of a custom backend is imported for that, the packages of the built-in ones are not.
    """
    if config.kind == "custom":
        target = _target_of(config)
        check_options(target, load_backend_class(target), config.options)
    else:
        check_backend_available(config.kind)
    if (refused := refusal(config)) is not None:
        raise TrackerError(f"tracking: {config.kind}: {refused}")
    if config.kind == "wandb":
        resolve_mode(str(config.options.get("mode") or "auto"))
    if (named := _NAMES.get(config.kind)) is not None:
        _check_name(config, *named)
    for name, value in config.options.items():
        if isinstance(value, str) and has_password(value):
            raise TrackerError(f"tracking: {config.kind} {name}: holds a password; put it into the environment instead")


def _check_name(config: BackendConfig, option: str, variable: str, longest: int, forbidden: str) -> None:
    """What the tracker would refuse only when the training is under way."""
    name, place = config.options.get(option), option
    if name is None:
        name, place = os.environ.get(variable) or None, variable
    if name is None:
        return
    told = f"tracking: {config.kind} {place} {str(name)[:40]!r}"
    if not isinstance(name, str) or not 0 < len(name.strip()) <= longest:
        raise TrackerError(f"{told}: use 1 to {longest} letters")
    if wrong := [letter for letter in name if letter in forbidden]:
        raise TrackerError(f"{told}: {wrong[0]!r} is not allowed there; use another name")


def check_backend_available(kind: str) -> None:
    """Raise MissingPackageError, with the pip line, if the backend's package is not installed; imports nothing."""
    if kind not in BUILT_IN:
        raise TrackerError(f"tracking: unknown backend {kind!r}; choose one of {', '.join(BUILT_IN)}, custom")
    spec = importlib.util.find_spec(kind)
    if spec is None or spec.origin is None:  # a folder of that name, as offline W&B leaves one, is no package
        raise MissingPackageError(f"tracking: the {kind} backend needs a package: {BUILT_IN[kind].install}")


def connect(config: BackendConfig, run_dir: Path) -> Backend:
    """The backend of one run, not yet open; TypeError for an option that it does not know, TrackerError if the
    environment does not say where the tracker is that the run was meant for."""
    destination = target_of(config, RunFiles(run_dir).runs)
    if destination.unset is not None:
        raise TrackerError(destination.unset)
    provide_user()
    configure_libraries()
    target = BUILT_IN[config.kind].target if config.kind in BUILT_IN else _target_of(config)
    return load_backend_class(target)(run_dir, naming=naming_of(config, run_dir), **destination.options)


def notices_of(config: BackendConfig, run_dir: Path) -> list[str]:
    """What a user should know of this backend before the run, a line each."""
    unset, ignored = target_of(config, RunFiles(run_dir).runs).unset, ignored_line(config.kind)
    notices = [f"{config.kind}: {told}" for told in (unset, ignored) if told is not None]
    offline_by_default = config.kind == "wandb" and config.options.get("mode", "auto") in ("auto", None)
    if unset is None and offline_by_default and resolve_mode("auto") == "offline":
        notices.append(NO_KEY)
    return notices


def backend_config(backend: BackendConfig | Mapping[str, Any] | str) -> BackendConfig:
    """A tracker as a notebook names it: `"mlflow"`, or a mapping such as the YAML's `{kind: wandb, project: vla}`.

    Raises TrackerError for what is neither, or for an option that the tracker does not have.
    """
    if isinstance(backend, BackendConfig):
        return backend
    fields: dict[str, Any] = {"kind": backend} if isinstance(backend, str) else dict(backend)
    kind, target = fields.pop("kind", None), fields.pop("target", None)
    naming = fields.pop("naming", "documented")
    if not isinstance(kind, str):
        raise TrackerError(f"tracking: {backend!r}: a backend needs a kind: {', '.join(BUILT_IN)} or custom")
    if naming not in NAMINGS:
        raise TrackerError(f"tracking: {kind}: naming {naming!r}: choose one of {', '.join(NAMINGS)}")
    options: Mapping[str, Any] = fields.pop("options", {}) if kind == "custom" else fields
    allowed = BUILT_IN[kind].options if kind in BUILT_IN else ()
    if unknown := [name for name in fields if name not in allowed and kind in (*BUILT_IN, "custom")]:
        raise TrackerError(f"tracking: {kind}: no option {unknown[0]!r}; it has {', '.join(allowed) or 'none'}")
    return BackendConfig(kind, naming, options, target)


def backend_label(config: BackendConfig, index: int) -> str:
    """The name of the files of a run's backend number `index`: `mlflow-0`."""
    return f"{config.kind}-{index}"


def backends_text(configs: Sequence[BackendConfig]) -> str:
    """The configurations as JSON, for the delivery process."""
    fields = [
        {
            "kind": config.kind,
            "target": config.target,
            "naming": config.naming,
            "options": dict(config.options),
            "started_with": dict(config.started_with),
        }
        for config in configs
    ]
    return json.dumps(fields, indent=2)


def backends_of(text: str) -> list[BackendConfig]:
    """The inverse of `backends_text`; ValueError or TypeError for anything else."""
    configs = [BackendConfig(**fields) for fields in json.loads(text)]
    for config in configs:
        if not isinstance(config.options, dict) or not isinstance(config.target, str | None):
            raise TypeError("options are no mapping, or a target is no text")
        if config.naming not in NAMINGS:
            raise ValueError(f"naming {config.naming!r}")
        if not all(isinstance(value, str) for value in dict(config.started_with).values()):
            raise ValueError("started_with holds texts")
    return configs


def naming_of(config: BackendConfig, run_dir: Path) -> str:
    """A run keeps the keys with which it began to its end: else trackers would have it twice."""
    journal = RunFiles(run_dir).journal
    if config.naming == "documented" and journal.exists() and not first_start(journal).groups_metrics:
        return UNGROUPED
    return config.naming


def _target_of(config: BackendConfig) -> str:
    assert config.kind == "custom", config.kind
    if config.target is None:
        raise TrackerError("tracking: a custom backend needs a target: package.module:Class, or an entry point's name")
    return config.target
