"""The identity of an experiment: its hash, its flat settings, and the differences between two experiments."""

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # comparing recorded settings needs no model of them, whose import takes half a second
    from pydantic import BaseModel, JsonValue

    from vlatrack.spec.experiment import ExperimentSpec

Scalar = str | int | float | bool | None

NOT_DECIDING = (
    "name",
    "tracking.*",
    "health.*",
    "train.device",
    "train.workers",
    "train.micro_batch",
    "train.memory.keep",
    "train.memory.offload",
    "train.group_by_length",
    "train.compile",
    "train.deterministic",
    "train.attention",
    "train.profile",
    "train.profile.*",
    "train.parallel.*",
    "train.grace_s",
    "train.checkpoint.*",
    "evaluate.*",
    "data.*.path",
    "data.*.root",
    "data.*.repo",
    "data.*.revision",
    "data.recorded.*",
    "backbone.checkpoint",
    "tokenizer.checkpoint",
    "init_from",
    "loss.gradient_share_every",
)
"""Settings of where, how fast or under which name an experiment runs. They do not decide its result.

Paths are among them because only the content counts: it enters the hash as a fingerprint.
"""

OF_A_NEW_RUN = ("name", "init_from")
"""Settings that do not decide the result, either, but that a run has from its start to its end."""

EXTENDING = (
    "train.epochs",
    "train.max_steps",
    "train.early_stopping",
    "train.early_stopping.*",
    "train.non_finite",
    "train.max_rollbacks",
)
"""Settings that decide the result and may still change on resume: how long to train, and what to do about a NaN."""

_ADDED_TO_SOURCES: Mapping[str, Scalar] = {
    "images": "upright",
    "order": "number",
    "prompt": "language",
    "skip_bad": False,
    "cap": None,
    "weight": None,
    "actions": None,
    "states": None,
    "cameras": "{}",
}

ADDED_LATER: Mapping[str, Scalar] = {
    **{
        f"data.{split}.{name}": value
        for split in ("train", "val_ind", "val_ood")
        for name, value in _ADDED_TO_SOURCES.items()
    },
    "train.non_finite": "halt",
    "train.max_rollbacks": 3,
    "loss.terms": "[]",
    "data.history_start": "repeat",
    "data.world_history": None,
    "data.history_deltas": None,
    "data.tolerance_s": None,
    "data.images": "store",
    "data.augmentation": None,
    "tokenizer.image.encoder": "convolutions",
    "backbone.adapter": None,
    "backbone.sizes": None,
    "train.freeze": "[]",
    "optim.kind": "adamw",
    "optim.groups": "[]",
    "optim.warmup_steps": None,
    "optim.decay_epochs": None,
    "optim.decay_steps": None,
    "optim.decay_shape": "sqrt",
    "train.memory.parameters": None,
    "train.memory.rounding": None,
    "train.memory.optimizer_states": None,
    "train.memory.gradients": None,
    "train.ema": None,
    "train.early_stopping": None,
}
"""Settings added after the hash was defined; with these values they are left out of it, so that it stays the same.

Those of a dataset are also those of each dataset of a mixture: see ``_value_before``.
"""

_OF_A_MIXTURE = re.compile(r"^(data\.\w+)\.sources\.\d+\.")


@dataclass(frozen=True)
class Difference:
    """A setting in which two experiments differ; None also stands for a missing key."""

    path: str
    before: Scalar
    after: Scalar

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.before)} -> {_shown(self.after)}"


def canonical_hash(spec: "ExperimentSpec", fingerprints: Mapping[str, str] | None = None) -> str:
    """The sha256 (64 hex digits) of what decides the result: settings, with defaults, and data.

    It does not depend on the order or style of the YAML, on settings in ``NOT_DECIDING``, or on a setting that a later
    version adds, as long as that has its default.

    Args:
        fingerprints: digests of the data and of pretrained weights, by name; None: only the settings.
    """
    flat = flatten(spec)
    deciding = {
        path: value
        for path, value in flat.items()
        if not matches(path, NOT_DECIDING) and not (_was_added_later(path) and value == _value_before(path))
    }
    content = {"settings": deciding, "content": dict(fingerprints or {})}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def flatten(spec: "BaseModel") -> dict[str, Scalar]:
    """Every setting by its dotted path, such as ``optim.lr``; lists of scalars are JSON text."""
    return dict(_leaves(spec.model_dump(mode="json"), ""))


def differences(before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> list[Difference]:
    """The differences between two flat experiments (see ``flatten``), in the order of the later one.

    A setting of ``ADDED_LATER``, or of the detectors, that is missing in the earlier one counts as having the value
    given there, or its default.
    """
    from vlatrack.spec.health import HealthSpec  # a model, as above

    detectors = dict(_leaves(HealthSpec().model_dump(mode="json"), "health"))
    added = {path: _value_before(path) for path in after if _was_added_later(path)}
    known = added | {path: value for path, value in detectors.items() if path in after} | dict(before)
    paths = dict.fromkeys([*after, *known])
    return [Difference(path, known.get(path), after.get(path)) for path in paths if known.get(path) != after.get(path)]


def split_by_resume(changes: Iterable[Difference]) -> tuple[list[Difference], list[Difference]]:
    """Split changes into (forbidden, allowed): those that make a different experiment, and those a resume may make."""
    forbidden: list[Difference] = []
    allowed: list[Difference] = []
    for change in changes:
        shortens = change.path == "train.epochs" and cast(int, change.after) < cast(int, change.before)
        may_change = matches(change.path, (*NOT_DECIDING, *EXTENDING)) and change.path not in OF_A_NEW_RUN
        may_change = may_change and not shortens
        (allowed if may_change else forbidden).append(change)
    return forbidden, allowed


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, such as those of ``NOT_DECIDING``, fits the dotted path."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _was_added_later(path: str) -> bool:
    """Whether the setting of a dotted path is one of ``ADDED_LATER``, or of a dataset in a mixture."""
    return _OF_A_MIXTURE.sub(r"\1.", path) in ADDED_LATER


def _value_before(path: str) -> Scalar:
    """The value that a setting had before it was added."""
    return ADDED_LATER[_OF_A_MIXTURE.sub(r"\1.", path)]


def _leaves(value: "JsonValue", path: str) -> Iterator[tuple[str, Scalar]]:
    children = _children(value)
    if children:
        for key, child in children.items():
            yield from _leaves(child, f"{path}.{key}" if path else key)
    elif isinstance(value, dict | list):
        yield path, json.dumps(value, ensure_ascii=False)
    else:
        yield path, value


def _children(value: "JsonValue") -> "dict[str, JsonValue]":
    """The entries of a mapping or of a list of mappings; a list of scalars is one value."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {str(index): item for index, item in enumerate(value)}
    return {}


def _shown(value: Scalar) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
