"""From the spec's tracker backends to plain settings."""

from collections.abc import Sequence
from typing import Any, assert_never

from vlatrack.spec.load import parse_backends
from vlatrack.spec.tracking import Backend, CustomBackend, MlflowBackend, TensorboardBackend, WandbBackend
from vlatrack.tracking.backends.base import BackendConfig


def build_backends(backends: Sequence[Backend]) -> list[BackendConfig]:
    """The settings of each backend, as the tracking room takes them."""
    configs = []
    for backend in backends:
        target: str | None = None
        options: dict[str, Any] = {}
        match backend:
            case MlflowBackend() | WandbBackend() | TensorboardBackend():
                options = backend.model_dump(exclude={"kind", "naming"})
            case CustomBackend():
                target, options = backend.target, dict(backend.options)
            case _:
                assert_never(backend)
        configs.append(BackendConfig(kind=backend.kind, naming=backend.naming, options=options, target=target))
    return configs


def backends_of_yaml(text: str) -> list[BackendConfig]:
    """The settings of the backends in `text`, the YAML of `tracking.backends`.

    Raises:
        SpecError: the text is not such a list.
    """
    return build_backends(parse_backends(text))
