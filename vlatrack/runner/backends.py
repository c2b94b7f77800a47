"""Trackers that stand on the command line instead of in an experiment's YAML."""

from vlatrack import builders
from vlatrack.spec.load import parse_backends
from vlatrack.tracking.backends.base import BackendConfig


def backends_of_yaml(text: str) -> list[BackendConfig]:
    """The trackers that `text` lists as `tracking.backends` does; SpecError for what is wrong with it."""
    return builders.build_backends(parse_backends(text))
