"""What an experiment is: its hash, its settings as flat parameters, and how two of them differ."""

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from vlatrack.spec.models import ExperimentSpec

Scalar = str | int | float | bool | None

NOT_DECIDING = (
    "name",
    "tracking.*",
    "train.device",
    "train.workers",
    "train.micro_batch",
    "train.gradient_checkpointing",
    "train.checkpoint.*",
    "evaluate.*",
    "data.*.path",
    "backbone.checkpoint",
    "tokenizer.checkpoint",
    "init_from",
    "loss.gradient_share_every",
)
"""Settings that say where, how fast or under which name an experiment runs: they do not decide its result.

Of what a path names, the content decides: it enters an experiment's hash as a fingerprint.
"""

EXTENDING = ("train.epochs", "train.max_steps", "train.non_finite", "train.max_rollbacks")
"""Settings of the result that a run may go on with nevertheless: how long it trains, and what it does about a NaN."""

ADDED_LATER: Mapping[str, Scalar] = {
    "train.non_finite": "halt",
    "train.max_rollbacks": 3,
    "loss.terms": "[]",
}
"""Settings that came after the hash was defined, with the value that changes nothing: so they leave it as it was."""


@dataclass(frozen=True)
class Difference:
    """One setting that two experiments do not share; None also stands for a key that is not there."""

    path: str
    before: Scalar
    after: Scalar

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.before)} -> {_shown(self.after)}"


def canonical_hash(spec: ExperimentSpec, fingerprints: Mapping[str, str] | None = None) -> str:
    """Return the sha256 (64 hex digits) of what decides the result: the settings, defaults included, and the data.

    It depends neither on the order or style of the YAML, nor on the settings in ``NOT_DECIDING``, nor on a setting that
    a later version adds, as long as that has its default.

    Args:
        fingerprints: digests of the data and of pretrained weights, by what they are; None: only the settings.
    """
    flat = flatten(spec)
    deciding = {
        path: value
        for path, value in flat.items()
        if not _matches(path, NOT_DECIDING) and not (path in ADDED_LATER and value == ADDED_LATER[path])
    }
    content = {"settings": deciding, "content": dict(fingerprints or {})}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def flatten(spec: ExperimentSpec) -> dict[str, Scalar]:
    """Return every setting under its dotted path, such as ``optim.lr``; lists of scalars are JSON text."""
    return dict(_leaves(spec.model_dump(mode="json"), ""))


def differences(before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> list[Difference]:
    """Return what changes between two flat experiments (see ``flatten``), in the order of the later one.

    A setting of ``ADDED_LATER`` that the earlier one does not know had the value that changes nothing.
    """
    known = {path: value for path, value in ADDED_LATER.items() if path in after} | dict(before)
    paths = dict.fromkeys([*after, *known])
    return [Difference(path, known.get(path), after.get(path)) for path in paths if known.get(path) != after.get(path)]


def split_by_resume(changes: Iterable[Difference]) -> tuple[list[Difference], list[Difference]]:
    """Part the changes into those that make another experiment of a run, and those that it may go on with."""
    forbidden: list[Difference] = []
    allowed: list[Difference] = []
    for change in changes:
        shortens = change.path == "train.epochs" and cast(int, change.after) < cast(int, change.before)
        may_change = _matches(change.path, (*NOT_DECIDING, *EXTENDING)) and not shortens
        (allowed if may_change else forbidden).append(change)
    return forbidden, allowed


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _leaves(value: JsonValue, path: str) -> Iterator[tuple[str, Scalar]]:
    children = _children(value)
    if children:
        for key, child in children.items():
            yield from _leaves(child, f"{path}.{key}" if path else key)
    elif isinstance(value, dict | list):
        yield path, json.dumps(value, ensure_ascii=False)
    else:
        yield path, value


def _children(value: JsonValue) -> dict[str, JsonValue]:
    """Return the entries of a mapping or of a list of mappings; a list of scalars is one value."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {str(index): item for index, item in enumerate(value)}
    return {}


def _shown(value: Scalar) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
