"""Backend classes by `package.module:Class`, or by an entry point of the group below: those of third parties, too."""

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import Backend, Scalar

GROUP = "vlatrack.backends"
WANDB_CLIENT = "WANDB_SERVICE"
"""Names the client process that the wandb library has started, to the children of this process as well."""
_METHODS = ("open", "describe", "deliver", "put_artifact", "alert", "finish", "audit", "close")


class BackendClass(Protocol):
    """What a target names: called with the run directory, the naming, and the options of the YAML."""

    def __call__(self, run_dir: Path, *, naming: str, **options: Scalar) -> Backend: ...


def load_backend_class(target: str) -> BackendClass:
    """The class that a target names; TrackerError, in one line, if it cannot be imported or lacks a method."""
    try:
        found = _import_target(target)
    except TrackerError:
        raise
    except Exception as error:  # importing runs code of others, which may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TrackerError(
            f"tracking: backend {target} cannot be loaded ({reason}); "
            "is its package installed, or its folder on PYTHONPATH?"
        ) from error
    missing = [name for name in _METHODS if not callable(getattr(found, name, None))]
    if not callable(found) or missing:
        raise TrackerError(f"tracking: backend {target} lacks {', '.join(missing)}; see Backend in base.py")
    return cast(BackendClass, found)


def check_options(target: str, backend: BackendClass, options: Mapping[str, Scalar]) -> None:
    """Raise TrackerError if the class does not take these options."""
    try:
        inspect.signature(backend).bind(Path(), naming="documented", **options)
    except TypeError as error:
        raise TrackerError(f"tracking: custom backend {target}: options: {error}") from error


def delivery_environment(*, serves_custom: bool) -> dict[str, str]:
    """The environment of a delivery process, which imports nothing from the current folder.

    It finds modules where PYTHONPATH says, and a custom backend's module where this process finds it: that may be the
    current folder, which comes last, so that nothing in it takes the place of a library. It starts a W&B client of its
    own where this process has one.
    """
    inherited = {name: value for name, value in os.environ.items() if name != WANDB_CLIENT}
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = list(filter(os.path.isabs, named))
    if serves_custom:
        places = [Path(entry).absolute() for entry in sys.path]
        path = [str(place) for place in sorted(places, key=lambda place: place == Path().absolute())]
    return inherited | {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


def _import_target(target: str) -> object:
    module, colon, name = target.partition(":")
    if colon:
        return getattr(importlib.import_module(module), name)
    named = entry_points(group=GROUP)
    found = [entry for entry in named if entry.name == target]
    if not found:
        there = ", ".join(sorted(entry.name for entry in named)) or "none"
        raise TrackerError(
            f"tracking: no installed package offers a backend {target!r} (entry points of {GROUP}: {there}); "
            "install it, or name a class as package.module:Class"
        )
    return found[0].load()
