"""What the spec's models allow at a path: fields, kinds and keys."""

from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.yaml_tree import Path, Value


def blocks_at(root: Value, path: Path, model: type[BaseModel] = ExperimentSpec) -> list[type[BaseModel]]:
    """The models that the block at `path` may be: several if its kind is missing or wrong; `model` is the outermost."""
    blocks: list[type[BaseModel]] = [model]
    value = root
    for segment in path:
        if isinstance(segment, str):
            fields = [block.model_fields[segment] for block in blocks if segment in block.model_fields]
            blocks = [block for info in fields for block in _models_in(info.annotation)]
        value = _entry(value, segment)
        kind = value.get("kind") if isinstance(value, dict) else None
        blocks = [block for block in blocks if kind in kinds_of(block)] or blocks
    return blocks


def field_at(root: Value, path: Path, model: type[BaseModel] = ExperimentSpec) -> FieldInfo | None:
    """The field at `path`; None if there is none, as for an entry of a list."""
    *parent, name = path
    candidates = [block.model_fields.get(str(name)) for block in blocks_at(root, tuple(parent), model)]
    return next((info for info in candidates if info is not None), None)


def kinds_of(block: type[BaseModel]) -> tuple[str, ...]:
    """The values of ``kind`` that select `block`; empty for a block without a kind."""
    return get_args(block.model_fields["kind"].annotation) if "kind" in block.model_fields else ()


def known_paths(block: type[BaseModel] = ExperimentSpec, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every key of the spec, except inside lists of blocks."""
    for name, info in block.model_fields.items():
        yield prefix + name
        if getattr(info.annotation, "__origin__", None) is not tuple:
            for inner in _models_in(info.annotation):
                yield from known_paths(inner, f"{prefix}{name}.")


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _entry(value: Value, segment: str | int) -> Value:
    if isinstance(value, dict) and isinstance(segment, str):
        return value.get(segment)
    if isinstance(value, tuple) and isinstance(segment, int) and segment < len(value):
        return value[segment]
    return None
