"""What an experiment is: its hash, its settings as flat parameters, and how two of them differ."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from vlatrack.spec.models import ExperimentSpec

NOT_DECIDING = (
    ("name",),
    ("tracking",),
    ("train", "device"),
    ("train", "workers"),
    ("train", "gradient_checkpointing"),
    ("train", "checkpoint", "keep_last"),
    ("evaluate", "open_loop", "batch_size"),
    ("loss", "gradient_share_every"),
)
"""Settings that change where, how fast or under which name an experiment runs, not its result."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Difference:
    """One setting that two experiments do not share; None also stands for a key that is not there."""

    path: str
    before: JsonValue
    after: JsonValue


def canonical_hash(spec: ExperimentSpec) -> str:
    """Return the sha256 (64 hex digits) of every setting that decides the result, defaults included.

    It does not depend on the order or style of the YAML, nor on the settings in ``NOT_DECIDING``.
    """
    deciding = _without(_data(spec), NOT_DECIDING)
    canonical = json.dumps(deciding, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def flatten(spec: ExperimentSpec) -> dict[str, Scalar]:
    """Return every setting under its dotted path, such as ``optim.lr``; lists of scalars are JSON text."""
    return dict(_leaves(_data(spec), ""))


def semantic_diff(a: ExperimentSpec, b: ExperimentSpec) -> list[Difference]:
    """Return what changes from `a` to `b`, in the order of the spec; lists of scalars are compared whole."""
    return list(_differences(_data(a), _data(b), ""))


def _data(spec: ExperimentSpec) -> dict[str, JsonValue]:
    data: dict[str, JsonValue] = spec.model_dump(mode="json")
    return data


def _without(data: Mapping[str, JsonValue], paths: tuple[tuple[str, ...], ...]) -> dict[str, JsonValue]:
    kept: dict[str, JsonValue] = {}
    for key, value in data.items():
        inner = tuple(path[1:] for path in paths if path[0] == key)
        if () not in inner:
            kept[key] = _without(value, inner) if inner and isinstance(value, dict) else value
    return kept


def _leaves(value: JsonValue, path: str) -> Iterator[tuple[str, Scalar]]:
    children = _children(value)
    if children:
        for key, child in children.items():
            yield from _leaves(child, f"{path}.{key}" if path else key)
    elif isinstance(value, dict | list):
        yield path, json.dumps(value, ensure_ascii=False)
    else:
        yield path, value


def _differences(a: JsonValue, b: JsonValue, path: str) -> Iterator[Difference]:
    children_a, children_b = _children(a), _children(b)
    if children_a and children_b:
        for key in {**children_a, **children_b}:
            inner = f"{path}.{key}" if path else key
            yield from _differences(children_a.get(key), children_b.get(key), inner)
    elif a != b:
        yield Difference(path, a, b)


def _children(value: JsonValue) -> dict[str, JsonValue]:
    """Return the entries of a mapping or of a list of mappings; a list of scalars is one value."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {str(index): item for index, item in enumerate(value)}
    return {}
