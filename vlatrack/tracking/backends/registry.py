"""From a backend's configuration to the backend; a tracker's package is imported only here, when it is used."""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlatrack.errors import MissingPackageError, TrackerError
from vlatrack.tracking.backends.base import NAMINGS, ONLY_ONE, Backend, BackendConfig, Destination
from vlatrack.tracking.backends.custom import check_options, load_backend_class
from vlatrack.tracking.backends.wandb.account import NO_KEY, resolve_mode
from vlatrack.tracking.privacy import has_password, redact

_INSTALL = {
    "mlflow": "pip install mlflow",
    "wandb": "pip install 'vlatrack[wandb]'",
    "tensorboard": "pip install 'vlatrack[tensorboard]'",
}

_OPTIONS = {
    "mlflow": ("tracking_uri", "experiment", "copy_checkpoints", "copy_up_to_mb"),
    "wandb": ("project", "entity", "mode", "copy_checkpoints", "copy_up_to_mb"),
    "tensorboard": (),
}
"""The options of each built-in backend; its class, whose package would have to be imported, takes the same ones."""


def check_backend(config: BackendConfig) -> None:
    """Raise, before any training, if the backend cannot be used: TrackerError or MissingPackageError.

    Of a custom backend the module is imported, nothing of the others.
    """
    if config.kind == "custom":
        target = _target_of(config)
        check_options(target, load_backend_class(target), config.options)
    else:
        check_backend_available(config.kind)
    for name, value in config.options.items():
        if isinstance(value, str) and has_password(value):
            raise TrackerError(f"tracking: {config.kind} {name}: holds a password; put it into the environment instead")


def check_backend_available(kind: str) -> None:
    """Raise MissingPackageError, with the pip line, if the backend's package is not installed; imports nothing."""
    if kind not in _INSTALL:
        raise TrackerError(f"tracking: unknown backend {kind!r}; choose one of {', '.join(_INSTALL)}, custom")
    spec = importlib.util.find_spec(kind)
    if spec is None or spec.origin is None:  # a folder of that name, as offline W&B leaves one, is no package
        raise MissingPackageError(f"tracking: the {kind} backend needs a package: {_INSTALL[kind]}")


def connect(config: BackendConfig, run_dir: Path) -> Backend:
    """The backend of one run, not yet open; TypeError for an option that it does not know."""
    tame_libraries()
    options: dict[str, Any] = dict(config.options)
    match config.kind:
        case "mlflow":
            from vlatrack.tracking.backends.mlflow.backend import MlflowBackend

            return MlflowBackend(run_dir, naming=config.naming, **options)
        case "wandb":
            from vlatrack.tracking.backends.wandb.backend import WandbBackend

            return WandbBackend(run_dir, naming=config.naming, **options)
        case "tensorboard":
            from vlatrack.tracking.backends.tensorboard import TensorboardBackend

            return TensorboardBackend(run_dir, naming=config.naming, **options)
        case "custom":
            return load_backend_class(_target_of(config))(run_dir, naming=config.naming, **options)
        case other:
            raise TrackerError(f"tracking: unknown backend {other!r}")


def notice_of(config: BackendConfig) -> str | None:
    """What a user should know of this backend before the run, in one line."""
    offline_by_default = config.kind == "wandb" and config.options.get("mode", "auto") in ("auto", None)
    return NO_KEY if offline_by_default and resolve_mode("auto") == "offline" else None


def destination_of(config: BackendConfig) -> Destination:
    """Where the backend would deliver to here and now: that may change with the environment."""
    options = config.options
    match config.kind:
        case "mlflow":
            server = options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
            return Destination(redact(str(server or "the store in the runs folder")))
        case "wandb":
            if resolve_mode(str(options.get("mode") or "auto")) == "offline":
                return Destination("offline files", is_temporary=True)
            return Destination(redact(os.environ.get("WANDB_BASE_URL", "W&B")))
        case _:
            return ONLY_ONE


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
        raise TrackerError(f"tracking: {backend!r}: a backend needs a kind: {', '.join(_INSTALL)} or custom")
    if naming not in NAMINGS:
        raise TrackerError(f"tracking: {kind}: naming {naming!r}: choose one of {', '.join(NAMINGS)}")
    options: Mapping[str, Any] = fields.pop("options", {}) if kind == "custom" else fields
    allowed = {} if kind == "custom" else _OPTIONS.get(kind, fields)
    if unknown := [name for name in fields if name not in allowed]:
        raise TrackerError(f"tracking: {kind}: no option {unknown[0]!r}; it has {', '.join(allowed) or 'none'}")
    return BackendConfig(kind, naming, options, target)


def backend_label(config: BackendConfig, index: int) -> str:
    """The name of the files of a run's backend number `index`: `mlflow-0`."""
    return f"{config.kind}-{index}"


def backends_text(configs: Sequence[BackendConfig]) -> str:
    """The configurations as JSON, for the delivery process."""
    fields = [{"kind": c.kind, "target": c.target, "naming": c.naming, "options": dict(c.options)} for c in configs]
    return json.dumps(fields, indent=2)


def backends_of(text: str) -> list[BackendConfig]:
    """The inverse of `backends_text`."""
    return [BackendConfig(**fields) for fields in json.loads(text)]


def _target_of(config: BackendConfig) -> str:
    if config.target is None:
        raise TrackerError("tracking: a custom backend needs a target: package.module:Class, or an entry point's name")
    return config.target


def tame_libraries() -> None:
    """Keep both libraries from reporting to their makers, and MLflow's from repeating requests by itself.

    Where the answer to "create a run" was cut, it would make a second one; delivery first looks what is there.
    """
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", WANDB_ERROR_REPORTING="false", DO_NOT_TRACK="true")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
