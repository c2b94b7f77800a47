"""What a notebook passes to `start_run`, checked and made plain before anything is written."""

import json
import numbers
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import BackendConfig, Scalar, scalar_text
from vlatrack.tracking.backends.registry import backend_config


def plain_backends(backends: Sequence[BackendConfig | Mapping[str, Any] | str]) -> list[BackendConfig]:
    """The trackers that a list names; TrackerError if it is no list, or one of them is none."""
    if isinstance(backends, str):
        raise TrackerError(f"backends={backends!r}: not a list; write backends=[{backends!r}]")
    if isinstance(backends, Mapping | BackendConfig) or not isinstance(backends, Iterable):
        raise TrackerError(f"backends: a {type(backends).__name__} is not a list; put it into brackets")
    for backend in backends:
        if not isinstance(backend, BackendConfig | Mapping | str):
            raise TrackerError(f"backends: {backend!r} is no tracker; write a name such as 'mlflow', or a mapping")
    return [backend_config(backend) for backend in backends]


def plain_params(params: Mapping[str, Any]) -> dict[str, Scalar]:
    """Text, numbers of Python, numpy or torch, and None stay; paths become text, and lists and mappings JSON.

    Raises TrackerError for anything else, naming the key.
    """
    return {key: _plain(value, f"params[{key!r}]") for key, value in _items(params, "params")}


def plain_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Text stays, numbers and paths become text; TrackerError for anything else, naming the key."""
    texts = {}
    for key, value in _items(tags, "tags"):
        if value is None or isinstance(value, list | tuple | Mapping):
            raise TrackerError(f"tags[{key!r}]: {_called(value)} is no tag; give a text")
        texts[key] = scalar_text(_plain(value, f"tags[{key!r}]"))
    return texts


def checked_text(what: str, value: str | None) -> str | None:
    """The text; TrackerError if it is none."""
    if value is None or isinstance(value, str):
        return value
    raise TrackerError(f"{what}: {_called(value)} is no text; write str(…)")


def _items(mapping: Mapping[str, Any], what: str) -> list[tuple[str, Any]]:
    if not isinstance(mapping, Mapping):
        raise TrackerError(f"{what}: {_called(mapping)} is no mapping; write a dict")
    for key in mapping:
        if not isinstance(key, str):
            raise TrackerError(f"{what}: the key {key!r} is no text; write {str(key)!r}")
    return list(mapping.items())


def _plain(value: Any, place: str) -> Scalar:
    try:
        match value:
            case None | str() | bool() | int() | float():
                return value
            case Path():
                return str(value)
            case numbers.Integral():
                return int(value)
            case list() | tuple() | Mapping():
                return json.dumps(value)
            case SupportsFloat():
                return float(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise TrackerError(f"{place}: {_called(value)} that cannot be kept ({error}); write str(…)") from error
    raise TrackerError(f"{place}: {_called(value)} cannot be kept; write str(…)")


def _called(value: object) -> str:
    return f"a value of type {type(value).__name__}"
